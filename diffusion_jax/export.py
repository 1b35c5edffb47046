"""Writes a model as a directory that diffusers loads.

What was trained here (its averaged parameters):

    python -m diffusion_jax.export --workdir runs/quickstart/ldm --out ldm_for_torch

What was published, in another dtype, with loras merged in, or a single file as a
directory; by default in the dtype in which each part is stored (of several, float32):

    python -m diffusion_jax.export --weights model.safetensors --out model \
        --dtype float16 --variant fp16 --lora style.safetensors:0.8

What a low-rank adaptation learned, alone, for other programs to load:

    python -m diffusion_jax.export --workdir runs/lora --lora_out style.safetensors

`--out` is a new or empty directory and appears when it is complete. In torch,
`StableDiffusionPipeline.from_pretrained(OUT)` samples it. Its U-Net hears no pooled
captions, though: of a run with `unet.vector`, unet/ is written as one whose `class_labels`
are the pooled output of text_encoder/, and is called by hand.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusion_jax import build, command, runs
from diffusion_jax import published as published_models
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.types import Params
from diffusion_jax.weights import (
    lora,
    lora_files,
    writing,
    writing_directory,
    writing_scheduler,
)
from diffusion_jax.weights import published as weights
from diffusion_jax.weights.published import Published

DTYPES = ("float32", "float16", "bfloat16")
OF_RUNS = ("step", "lora_out", "dialect")  # flags
OF_WEIGHTS = ("lora", "ema", "from_variant", "tokenizer", "prediction_type")
OF_MODELS = ("out", "dtype", "variant", "max_shard_size")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


# ---- what was trained here ----------------------------------------------------------


def of_run(workdir: str, *, step: int | None = None) -> tuple[Published, Params]:
    """A latent diffusion run as a published model, and its averaged parameters."""
    config = runs.read_config(workdir)
    if config.task.name != "latent_diffusion":
        raise build.ConfigError(
            f"{workdir} holds a {config.task.name!r} run; only a latent_diffusion is "
            "written as Stable Diffusion"
        )
    scheduler = scheduler_of(config)
    run = runs.load(workdir, step=step)
    params = build.sampling_params(run.params, run.frozen)
    if "text_encoders" in config:
        return of_tuned_run(workdir, config, scheduler, params), params
    unet = fields_of(build.unet(config))
    hears_pooled = build.hears_pooled(config)
    if hears_pooled:
        params["unet"] = dict(params["unet"])
        heard = params["unet"].pop(unet["vector"])
        params["unet"]["class_embedding"] = heard
        unet["vector"] = "class_embedding"
    text = build.text_encoder(config, run.tokenizer)
    text, kept = without_skipped(text, params["text_encoder"], hears_pooled)
    params["text_encoder"] = kept
    made = Published(
        unet=unet,
        vae=fields_of(build.autoencoder(config)),
        texts={"text_encoder": fields_of(text)},
        tokenizers={"tokenizer": pathlib.Path(workdir) / runs.TOKENIZER},
        scheduler=scheduler,
        tensors={},
        latent_scale=float(run.frozen["latent_scale"]),
        sample_size=build.latent_shape(config)[0],
    )
    return made, params


def of_tuned_run(
    workdir: str, config: ConfigDict, scheduler: dict[str, Any], params: Params
) -> Published:
    """A run that began with published weights: what it had from them, as it was."""
    texts = {name: dict(fields) for name, fields in config.text_encoders.items()}
    directory = pathlib.Path(workdir) / runs.TOKENIZER
    names = [name.replace("text_encoder", "tokenizer") for name in texts]
    return Published(
        unet=fields_of(build.unet(config)),
        vae=dict(config.vae),
        texts=texts,
        tokenizers={name: directory / name for name in names},
        scheduler=scheduler,
        tensors={},
        latent_scale=float(params["latent_scale"]),
        latent_shift=config.latent_shift,
        sample_size=build.latent_shape(config)[0],
        num_size_ids=config.num_size_ids,
        size_id_width=config.size_id_width,
        zero_empty=config.zero_empty,
    )


def write_lora(
    workdir: str, path: str, *, step: int | None = None, dialect: str = "diffusers"
) -> None:
    """What a run with a `lora` learned, as a safetensors file of its own."""
    if "lora" not in runs.read_config(workdir):
        raise build.ConfigError(f"{workdir} holds a run without a lora")
    target = pathlib.Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"--lora_out {path} does not end in .safetensors")
    if target.exists() or target.is_symlink():
        raise ValueError(f"{path} exists; nothing is overwritten")
    params = runs.load(workdir, step=step).params
    target.parent.mkdir(parents=True, exist_ok=True)
    lora_files.write(target, params["lora"], dialect=dialect)


def scheduler_of(config: ConfigDict) -> dict[str, Any]:
    """The run's schedule and objective as diffusers has them; raises if it has not."""
    if build.learns_variance(config):
        raise build.ConfigError(
            "a learned variance is not written: no pipeline reads it"
        )
    spec = config.parameterization
    name = spec if isinstance(spec, str) else spec.name
    grid = config.sampling.grid.name
    schedule = build.schedule(config.schedule)
    return writing_scheduler.scheduler_config(schedule, name, grid=grid)


def fields_of(module: Any) -> dict[str, Any]:
    """The fields of a module as plain values."""
    names = set(module.__dataclass_fields__) - {"parent", "name"}
    return {name: getattr(module, name) for name in sorted(names)}


def without_skipped(
    text: CLIPText, params: Params, hears_pooled: bool
) -> tuple[CLIPText, Params]:
    """A text tower that ends where it is read: StableDiffusionPipeline skips nothing."""
    if not text.norm_hidden or (text.skip_layers and hears_pooled):
        raise build.ConfigError(
            f"a text encoder with skip_layers = {text.skip_layers}, norm_hidden = "
            f"{text.norm_hidden} is not written: StableDiffusionPipeline reads the last "
            "layer, normed"
        )
    kept = text.num_layers - text.skip_layers
    layers = {f"layers.{i}": params["encoder"][f"layers.{i}"] for i in range(kept)}
    shorter = text.clone(num_layers=kept, skip_layers=0)
    return shorter, {**params, "encoder": layers}


# ---- what was published -------------------------------------------------------------


def load_published(published: Published, loras: Sequence[str] = ()) -> Params:
    """Parameters on the host, in the `stored_dtypes` of their parts.

    Each of `loras` is PATH or PATH:SCALE; with any, all is float32.
    """
    read, scales = read_loras(published, loras)
    dtypes = stored_dtypes(published)

    def keep(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
        return array if loras else np.asarray(array, dtypes[path[0]])

    params = weights.load_params(published, dtype="float32", place=keep)
    if not loras:
        return params
    return lora.merge(params, read, scales)


def read_loras(
    published: Published, loras: Sequence[str]
) -> tuple[list[lora.Lora], list[float]]:
    """Those of PATH or PATH:SCALE and their scales; the model itself is not read."""
    paths, scales = zip(*map(lora_files.split, loras)) if loras else ((), ())
    for text, scale in zip(loras, scales):
        if not math.isfinite(scale):
            raise build.ConfigError(f"--lora {text}: the scale is not finite")
    like = weights.shapes(published) if loras else {}
    return [lora_files.load(path, like) for path in paths], list(scales)


def stored_dtypes(published: Published) -> dict[str, np.dtype]:
    """Of each part, the float dtype of its numbers; of several, float32, which holds all."""
    found = {}
    for name, tensors in published.tensors.items():
        dtypes = {np.dtype(tensor.dtype) for tensor in tensors.values()}
        floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
        found[name] = floats[0] if len(floats) == 1 else np.dtype(np.float32)
    return found


def num_bytes(text: str) -> int:
    """5GB, 500MB, or a plain number."""
    match = re.fullmatch(r"(\d+)\s*([KMG]B)?", text.strip().upper())
    if match is None or int(match[1]) == 0:
        raise build.ConfigError(f"max_shard_size {text!r}; such as 5GB or 500MB")
    return int(match[1]) * UNITS[match[2] or ""]


# ---- the command --------------------------------------------------------------------


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    def string(name: str, text: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, text, values)

    string("workdir", "A latent diffusion run of this project.")
    flags.DEFINE_integer(
        "step", None, "Its checkpoint; else the newest.", flag_values=values
    )
    string("lora_out", "Of a run with a lora: a new .safetensors file for it alone.")
    flags.DEFINE_enum(
        "dialect", None, sorted(lora.DIALECTS), "Its names; diffusers.", values
    )
    string("weights", "A published directory, file or hub id.")
    string("from_variant", "Which files of it, such as fp16.")
    flags.DEFINE_bool("ema", False, "Of a single file, the averaged U-Net.", values)
    string("tokenizer", "For a single file: a tokenizer directory.")
    flags.DEFINE_multi_string("lora", [], "Merged in: PATH or PATH:SCALE.", values)
    string("prediction_type", "Of a single file: epsilon, ...")
    string("out", "A new directory.")
    flags.DEFINE_enum(
        "dtype", None, DTYPES, "Of what is written; else as it is.", values
    )
    string("variant", "In the names of the files, such as fp16.")
    string("max_shard_size", "Of one file.", "10GB")


def find(chosen: flags.FlagValues) -> Published:
    """What --weights names."""
    return published_models.find(
        chosen.weights,
        variant=chosen.from_variant,
        ema=chosen.ema,
        tokenizer=chosen.tokenizer,
        prediction_type=chosen.prediction_type,
    )


def check_flags(chosen: flags.FlagValues) -> None:
    """Refuses a flag that would have no effect on what the others ask for."""
    if (chosen.workdir is None) == (chosen.weights is None):
        raise build.ConfigError("give either --workdir or --weights")
    is_run = chosen.workdir is not None
    useless, wanted = (OF_WEIGHTS, "--weights") if is_run else (OF_RUNS, "--workdir")
    refuse_given(chosen, useless, f"only with {wanted}")
    if chosen.lora_out is not None:
        refuse_given(chosen, OF_MODELS, "not with --lora_out, which writes one file")
        return
    refuse_given(chosen, ("dialect",), "only with --lora_out")
    if chosen.out is None:
        raise build.ConfigError("--out is not given: a new directory")


def refuse_given(chosen: flags.FlagValues, names: Sequence[str], reason: str) -> None:
    """Raises if any of the named flags is on the command line."""
    given = [f"--{name}" for name in names if chosen[name].present]
    if given:
        raise build.ConfigError(f"{', '.join(given)}: {reason}")


def run(chosen: flags.FlagValues) -> str:
    """Does what the flags say; the path of what was written."""
    check_flags(chosen)
    most = num_bytes(chosen.max_shard_size)
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            if chosen.lora_out is None:
                write_model(chosen, most)
                return chosen.out
            write_lora(
                chosen.workdir,
                chosen.lora_out,
                step=chosen.step,
                dialect=chosen.dialect or "diffusers",
            )
            return chosen.lora_out
    except ValueError as error:
        raise build.ConfigError(str(error)) from error


def write_model(chosen: flags.FlagValues, max_shard_size: int) -> None:
    """What --workdir or --weights names, as the directory --out."""
    writing.check_free(chosen.out)
    if chosen.workdir is not None:
        found, params = of_run(chosen.workdir, step=chosen.step)
        dtypes = {}
    else:
        found = find(chosen)
        params = load_published(found, chosen.lora)
        dtypes = stored_dtypes(found)
    if chosen.dtype is not None:
        dtypes = dict.fromkeys(params, np.dtype(jnp.dtype(chosen.dtype)))
    writing_directory.write(
        chosen.out,
        found,
        params.pop,
        dtypes=dtypes,
        variant=chosen.variant,
        max_shard_size=max_shard_size,
    )


def main(_: list[str]) -> None:
    print(run(flags.FLAGS))


if __name__ == "__main__":
    define_flags()
    command.run(main)
