"""Files of low-rank adaptations: one safetensors file, or the directory that peft writes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from diffusion_jax.types import Params
from diffusion_jax.weights import lora, writing
from diffusion_jax.weights.lora import Lora

CONFIG_FILE = "adapter_config.json"  # of a directory of peft
TENSOR_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps what peft's config says


def load(path: str | pathlib.Path, like: Params) -> Lora:
    """The Lora of a file or directory, for a model of parameters `like`."""
    path = pathlib.Path(path)
    file, config = path, None
    if path.is_dir():
        file = _tensor_file(path)
        config = path / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no lora at {file}")
    tensors, metadata = _read(file)
    try:
        said = json.loads(metadata.get(METADATA_KEY, "{}"))
        if config is not None and config.is_file():
            said |= json.loads(config.read_text(encoding="utf-8"))
        return lora.read(tensors, like, metadata=said)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tensor_file(directory: pathlib.Path) -> pathlib.Path:
    for name in TENSOR_FILES:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"none of {', '.join(TENSOR_FILES)} in {directory}")


def _read(file: pathlib.Path) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(file, "np") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from error


def write(path: str | pathlib.Path, saved: Lora, *, dialect: str = "diffusers") -> None:
    """Writes a safetensors file in one of `lora.DIALECTS`."""
    tensors: dict[str, Any] = lora.save(saved, dialect)
    writing.write_file(path, tensors)
