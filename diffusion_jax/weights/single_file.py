"""Single-file checkpoints of Stable Diffusion 1, 2, XL and the refiner.

The layout of the original code, in which most fine-tuned models are shared: one
safetensors file with

    model.diffusion_model.*     the U-Net          model_ema.*   its moving average
    first_stage_model.*         the autoencoder
    cond_stage_model.*          the text encoder   conditioner.embedders.N.*  those of XL

Which model it is follows from the names, its fields from the shapes. Tokenizers and the
scheduler are not in such a file.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.weights import single_file_families as families
from diffusion_jax.weights import single_file_fields, single_file_keys, tensors
from diffusion_jax.weights.published import Published
from diffusion_jax.weights.single_file_families import Family, Tower
from diffusion_jax.weights.tensors import Stored

UNET, VAE = "model.diffusion_model.", "first_stage_model."
PLAIN, EMA = "model.", "model_ema."
FIRST = UNET + "input_blocks.0.0.weight"
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SAID = {"epsilon": "epsilon", "v": "v_prediction"}  # by modelspec.prediction_type
NOT_YET = {  # input channels of four latent ones
    5: "a depth-to-image model",
    7: "the x4 upscaler",
    8: "InstructPix2Pix",
}
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Transposed:
    """A stored matrix, transposed when it is read."""

    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1]

    @property
    def dtype(self) -> np.dtype:
        return self.stored.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.stored, dtype).T


class Part(NamedTuple):
    """One module: its tensors by the names of a directory, and the file's names."""

    tensors: dict[str, Any]
    keys: set[str]


def read(
    path: str | pathlib.Path,
    *,
    ema: bool = False,
    tokenizers: Mapping[str, pathlib.Path] = NONE,
    scheduler: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    fields: Mapping[str, Mapping[str, Any]] = NONE,
) -> Published:
    """The model of a file; `ema` takes the moving average of the U-Net.

    What the network predicts is, in this order: `scheduler`'s, `prediction_type`, what
    the file says (the metadata `modelspec.prediction_type` or `.architecture`, or a
    tensor `v_pred`), the family's: "epsilon", but "v_prediction" for the 4-channel
    Stable Diffusion 2, whose weights do not tell the 512 px model from the 768 px one.
    `fields` replaces fields of "unet", "vae", "text_encoder", which shapes do not tell.
    """
    path = pathlib.Path(path)
    header = tensors.read_header(path)
    kind = families.family(header)
    if FIRST not in header or kind is None:
        raise ValueError(f"{path} {_what_else(header)}")
    parts = {
        "unet": _unet(path, header, ema),
        "vae": _renamed(header, VAE, _vae_layers),
        **{name: _text(header, tower) for name, tower in kind.towers.items()},
    }
    _check_keys(path, header, kind, parts)
    found = {name: part.tensors for name, part in parts.items()}
    try:
        made = _fields(kind, found)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: layers are missing or misshapen: {error}") from error
    made = {name: made[name] | dict(fields.get(name, {})) for name in made}
    _check_channels(path, kind, made, found)
    scheduler = _scheduler(path, header, kind, scheduler, prediction_type, found)
    is_v = scheduler.get("prediction_type") == "v_prediction"
    sample_size = kind.sample_size
    if kind.name == "Stable Diffusion 2" and is_v:
        sample_size = 96
        made["unet"] = {"upcast_attention": True} | made["unet"]
    return Published(
        unet=made["unet"],
        vae=made["vae"],
        texts={name: made[name] for name in kind.towers},
        tokenizers={name: pathlib.Path(place) for name, place in tokenizers.items()},
        scheduler=scheduler,
        tensors=found,
        latent_scale=kind.latent_scale,
        sample_size=sample_size,
        zero_empty=kind.zero_empty,
        **_size_ids(kind, made, found),
    )


# ---- the modules --------------------------------------------------------------------


def _renamed(
    header: Mapping[str, Stored],
    prefix: str,
    layers: Callable[[Collection[str]], Mapping[str, str]],
) -> Part:
    inner = {key[len(prefix) :]: key for key in header if key.startswith(prefix)}
    names = single_file_keys.rename(inner, layers(inner))
    return Part(
        {new: header[inner[old]] for old, new in names.items()},
        {inner[old] for old in names},
    )


def _unet_layers(keys: Collection[str]) -> dict[str, str]:
    return single_file_keys.unet_layers(single_file_keys.unet_levels(keys))


def _vae_layers(keys: Collection[str]) -> dict[str, str]:
    num_levels = single_file_fields.count(keys, r"encoder\.down\.(\d+)\.")
    num_blocks = single_file_fields.count(keys, r"encoder\.down\.0\.block\.(\d+)\.")
    return single_file_keys.vae_layers(num_levels, num_blocks)


def _unet(path: pathlib.Path, header: Mapping[str, Stored], ema: bool) -> Part:
    """The U-Net or its moving average, in whose names there are no dots."""
    part = _renamed(header, UNET, _unet_layers)
    averages = {
        EMA + key.removeprefix(PLAIN).replace(".", ""): key for key in part.keys
    }
    if len(averages) < len(part.keys):
        raise ValueError(f"{path}: names without dots are ambiguous")
    has_average = any(key in header for key in averages)
    if not ema:
        return Part(part.tensors, part.keys | (averages.keys() & header.keys()))
    if not has_average:
        raise ValueError(f"{path} has no moving average ({EMA}*); read it without ema")
    missing = [plain for average, plain in averages.items() if average not in header]
    if missing:
        raise ValueError(f"{path}: no moving average of {tensors.shown(missing)}")
    of_plain = {plain: average for average, plain in averages.items()}
    averaged = {key: header[of_plain[key]] for key in part.keys}
    return Part(_renamed(averaged, UNET, _unet_layers).tensors, part.keys | {*averages})


def _text(header: Mapping[str, Stored], tower: Tower) -> Part:
    if tower.is_open_clip:
        return _open_clip(header, tower)
    found, keys = {}, set()
    unused = families.unused(tower)
    for key in header:
        name = key.removeprefix(tower.prefix)
        if name != key and key not in unused:
            found["text_model." + name.removeprefix("text_model.")] = header[key]
            keys.add(key)
    return Part(found, keys)


def _open_clip(header: Mapping[str, Stored], tower: Tower) -> Part:
    prefix = tower.prefix
    inner = [key[len(prefix) :] for key in header if key.startswith(prefix)]
    stored = single_file_fields.count(inner, r"transformer\.resblocks\.(\d+)\.")
    # Some trainers leave out the last layer of OpenCLIP-H, which nothing reads.
    is_cut = tower.drops_last and stored != families.LAYERS_WITHOUT_LAST
    num_layers = stored - 1 if is_cut else stored
    part = _renamed(
        header, prefix, lambda _: single_file_keys.open_clip_layers(num_layers)
    )
    for old, names in single_file_keys.open_clip_fused(num_layers).items():
        if prefix + old in header:
            part.tensors.update(zip(names, thirds(header[prefix + old])))
            part.keys.add(prefix + old)
    last = f"{prefix}transformer.resblocks.{num_layers}."
    part.keys.update(key for key in header if key.startswith(last))
    projection = prefix + "text_projection"
    if tower.is_projected and projection in header:
        part.tensors["text_projection.weight"] = Transposed(header[projection])
        part.keys.add(projection)
    return part


def thirds(fused: Stored) -> list[Stored]:
    """Queries, keys and values, which lie one below the other, not read yet."""
    rows, *others = fused.shape
    if rows % 3:
        raise ValueError(f"{rows} rows are not queries, keys and values")
    shape = (rows // 3, *others)
    size = math.prod(shape) * np.dtype(fused.dtype).itemsize
    return [
        dataclasses.replace(fused, offset=fused.offset + i * size, shape=shape)
        for i in range(3)
    ]


def _fields(kind: Family, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    shapes = {
        name: {key: tuple(tensor.shape) for key, tensor in part.items()}
        for name, part in found.items()
    }
    made = {
        "unet": single_file_fields.unet(shapes["unet"], num_heads=kind.num_heads),
        "vae": single_file_fields.autoencoder(shapes["vae"]),
    }
    for name, tower in kind.towers.items():
        activation = "gelu" if tower.is_open_clip else "quick_gelu"
        made[name] = single_file_fields.text(shapes[name], activation=activation)
        if tower.skip_layers:
            made[name] |= dict(skip_layers=tower.skip_layers)
            made[name] |= dict(norm_hidden=tower.norm_hidden)
        if tower.is_projected:
            projection = shapes[name]["text_projection.weight"]
            made[name]["projection_dim"] = projection[0]
    return made


def _size_ids(
    kind: Family, made: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, int]:
    """How many numbers XL's U-Net hears of sizes, and how wide each is."""
    if not kind.num_size_ids:
        return {}
    heard = found["unet"]["add_embedding.linear_1.weight"].shape[1]
    width, rest = divmod(
        heard - made["text_encoder_2"]["projection_dim"], kind.num_size_ids
    )
    if rest or width <= 0:
        raise ValueError(f"a U-Net that hears {heard} numbers beside the text and time")
    return dict(num_size_ids=kind.num_size_ids, size_id_width=width)


# ---- what the file does not say -----------------------------------------------------


def _scheduler(
    path: pathlib.Path,
    header: Mapping[str, Stored],
    kind: Family,
    given: Mapping[str, Any] | None,
    prediction_type: str | None,
    found: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    if prediction_type not in (None, *PREDICTIONS):
        raise ValueError(f"prediction_type {prediction_type!r}; one of {PREDICTIONS}")
    if given is not None:
        if prediction_type is not None:
            raise ValueError("give scheduler or prediction_type, not both")
        return dict(given)
    is_plain = found["unet"]["conv_in.weight"].shape[1] == 4
    usual = "epsilon"
    if kind.name == "Stable Diffusion 2" and is_plain:
        usual = "v_prediction"
    said = prediction_type or _said(path, header) or usual
    scheduler = kind.scheduler | dict(prediction_type=said)
    if families.ZERO_SNR_MARKER in header:
        scheduler |= dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    return scheduler


def _said(path: pathlib.Path, header: Mapping[str, Stored]) -> str | None:
    """What the file says that the network predicts."""
    metadata = tensors.read_metadata(path)
    said = metadata.get("modelspec.prediction_type")
    if said is not None:
        if said not in SAID:
            raise ValueError(f"{path}: modelspec.prediction_type {said!r} is unknown")
        return SAID[said]
    architecture = metadata.get("modelspec.architecture", "")
    if families.V_MARKER in header or "v2-768-v" in architecture:
        return "v_prediction"
    return "epsilon" if "v2-512" in architecture else None


# ---- errors -------------------------------------------------------------------------


def _check_keys(
    path: pathlib.Path,
    header: Mapping[str, Stored],
    kind: Family,
    parts: Mapping[str, Part],
) -> None:
    if not parts["vae"].tensors:
        raise ValueError(f"{path} has no autoencoder ({VAE}*)")
    known = families.ignored(kind).union(*(part.keys for part in parts.values()))
    unknown = sorted(set(header) - known)
    if unknown:
        raise ValueError(f"{path}: {kind.name} has no {tensors.shown(unknown)}")


def _check_channels(
    path: pathlib.Path,
    kind: Family,
    made: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Mapping[str, Any]],
) -> None:
    channels = found["unet"]["conv_in.weight"].shape[1]
    latent = made["vae"]["latent_channels"]
    if channels not in (latent, 2 * latent + 1):
        what = f"a U-Net of {channels} input channels for {latent} latent ones"
        if latent == 4 and channels in NOT_YET:
            what = NOT_YET[channels]
        raise ValueError(f"{path} is {what}, which is not supported")
    if "vector" in made["unet"] and not kind.num_size_ids:
        raise ValueError(
            f"{path}: {kind.name} with label_emb (Stable unCLIP) is not supported"
        )


def _what_else(header: Mapping[str, Stored]) -> str:
    """What a file is that is no single-file checkpoint."""
    keys = list(header)
    if any("lora_" in key for key in keys):
        return "is a low-rank adaptation (LoRA); it is given beside a model"
    if any(key.startswith(("down_blocks.", "encoder.", "text_model.")) for key in keys):
        return "is one part of a model in the diffusers layout; give its directory"
    if FIRST in header:
        prefixes = [
            t.prefix for kind in families.FAMILIES for t in kind.towers.values()
        ]
        return f"has no text encoder; its names begin with one of {sorted(prefixes)}"
    return (
        f"is not Stable Diffusion 1, 2 or XL in one file: it has no {FIRST}; "
        f"it begins with {tensors.shown(keys)}"
    )
