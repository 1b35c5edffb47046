"""Files of low-rank adaptations: one safetensors file, or the directory that peft writes."""

from __future__ import annotations

import json
import pathlib

from diffusion_jax.types import Params
from diffusion_jax.weights import lora, tensors, writing
from diffusion_jax.weights.lora import Lora

CONFIG_FILE = "adapter_config.json"  # of a directory of peft
TENSOR_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps what peft's config says


def split(word: str) -> tuple[str, float]:
    """FILE or FILE:scale; the scale is 1 if none is given."""
    file, colon, scale = word.rpartition(":")
    if not colon or pathlib.Path(word).expanduser().exists():
        return word, 1.0
    try:
        return file, float(scale)
    except ValueError:
        return word, 1.0


def load(path: str | pathlib.Path, like: Params) -> Lora:
    """The Lora of a file or directory, for a model of parameters `like`."""
    path = pathlib.Path(path)
    file, config = path, None
    if path.is_dir():
        file = _tensor_file(path)
        config = path / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no lora at {file}")
    stored = tensors.read_header(file)
    try:
        said = json.loads(tensors.read_metadata(file).get(METADATA_KEY, "{}"))
        if config is not None and config.is_file():
            said |= json.loads(config.read_text(encoding="utf-8"))
        return lora.read(stored, like, metadata=said)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tensor_file(directory: pathlib.Path) -> pathlib.Path:
    for name in TENSOR_FILES:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"none of {', '.join(TENSOR_FILES)} in {directory}")


def write(path: str | pathlib.Path, saved: Lora, *, dialect: str = "diffusers") -> None:
    """Writes a safetensors file in one of `lora.DIALECTS`."""
    writing.write_file(path, lora.save(saved, dialect))
