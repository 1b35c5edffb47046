"""Low-rank adaptation: W + scale * down @ up (Hu et al., 2021, arXiv:2106.09685).

A linear layer of I inputs and O outputs has down (I, r) and up (r, O); a convolution has
down (h, w, I, r), whose last axis the same up takes to the outputs. The factor alpha / r
of the paper (section 4.1) is part of up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from diffusion_jax.types import Key, Params
from diffusion_jax.weights import convert, lora_names
from diffusion_jax.weights.tensors import shown

Lora = dict[str, dict[str, dict[str, Any]]]
"""{"unet": {"mid_block/attentions.0/proj_in": {"down": ..., "up": ...}}}: components,
layers by their "/"-joined path, the two factors."""

Scale = float | Float[Array, ""] | Mapping[str, Any]

FACTOR = re.compile(
    r"(.+?)[._]lora(?:_linear_layer)?[._](down|up|A|B)(?:\.(?!weight$)[^.]+)?\.weight"
)
ALPHA = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha")
PARTS = {"A": "down", "B": "up"}
OTHER_METHODS = {
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "LoHa": r"\.hada_",
    "LoKr": r"\.lokr_",
    "OFT": r"\.oft_|\.boft_",
    "Tucker decomposition": r"\.lora_mid\.",
    "full difference (.diff)": r"\.diff(_b)?$",
    "adapted bias": r"[._]lora.*\.bias$",
    "adapted embedding": r"\.lora_embedding_",
}
ATTENTION = r"^unet/.*/attn[12]/to_(q|k|v|out\.0)$"  # what is usually adapted


def merge(params: Params, loras: Sequence[Lora], scales: Sequence[Scale]) -> Params:
    """Parameters of the adapted model; all that is not adapted is shared.

    A scale is a number for all of a Lora, or a mapping of components to numbers (those
    it leaves out are not adapted). Computes in float32, keeps the parameters' dtypes.
    """
    if len(loras) != len(scales):
        raise ValueError(f"{len(loras)} loras and {len(scales)} scales")
    _check_components(params, loras, scales)
    merged = dict(params)
    for component in sorted({name for lora in loras for name in lora}):
        flat = dict(traverse_util.flatten_dict(params[component]))
        paths = {path for lora in loras for path in lora.get(component, {})}
        for path in sorted(paths):
            place = (*path.split("/"), "kernel")
            if place not in flat:
                raise ValueError(f"a lora adapts {component}/{path}; no such layer")
            kernel = jnp.asarray(flat[place])
            total = kernel.astype(jnp.float32)
            for lora, scale in zip(loras, scales):
                if path in lora.get(component, {}):
                    change = _difference(kernel, lora[component][path], path)
                    total += _of(scale, component) * change
            flat[place] = total.astype(kernel.dtype)
        merged[component] = traverse_util.unflatten_dict(flat)
    return merged


def _check_components(
    params: Params, loras: Sequence[Lora], scales: Sequence[Scale]
) -> None:
    named = [*loras, *(scale for scale in scales if isinstance(scale, Mapping))]
    unknown = {name for one in named for name in one} - set(params)
    if unknown:
        raise ValueError(f"loras of {sorted(unknown)}; the model has {sorted(params)}")


def _of(scale: Scale, component: str) -> Any:
    return scale.get(component, 0.0) if isinstance(scale, Mapping) else scale


def _difference(kernel: Array, factors: dict[str, Any], path: str) -> Array:
    down, up = (jnp.asarray(factors[name], jnp.float32) for name in ("down", "up"))
    shape = (*down.shape[:-1], *up.shape[1:])
    if shape != kernel.shape or up.ndim != 2 or down.shape[-1] != up.shape[0]:
        raise ValueError(
            f"factors {down.shape} and {up.shape} for {path} of shape {kernel.shape}"
        )
    return jnp.tensordot(down, up, 1, precision="highest")


def init(key: Key, like: Params, *, rank: int, pattern: str = ATTENTION) -> Lora:
    """Factors to train: `down` random of variance 1 / inputs, `up` zero.

    So the adapted model starts as the one it adapts (section 4.1). Adapts every layer
    whose path, the component first, has a match of `pattern`.
    """
    if rank < 1:
        raise ValueError(f"rank {rank}; at least 1")
    places = lora_names.kernels(like)
    chosen = [place for place in sorted(places) if re.search(pattern, "/".join(place))]
    if not chosen:
        raise ValueError(f"no layer has a match of {pattern!r} in its path")
    lora: Lora = {}
    for i, (component, path) in enumerate(chosen):
        *fan_in, fan_out = places[component, path].shape
        std = math.prod(fan_in) ** -0.5
        down = std * jax.random.normal(jax.random.fold_in(key, i), (*fan_in, rank))
        factors = {"down": down, "up": jnp.zeros((rank, fan_out))}
        lora.setdefault(component, {})[path] = factors
    return lora


def read(
    tensors: Mapping[str, Any],
    like: Params,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Lora:
    """The Lora that a file's tensors hold, for a model of parameters `like`.

    Reads the names of peft, of diffusers (old and new) and of kohya. Alpha is that of
    the tensors, else that of peft's `metadata` ("unet.lora_alpha": 8, or without a
    component), else the rank. Tensors that would not be used are errors.
    """
    metadata = metadata or {}
    _refuse_other_methods(tensors, metadata)
    kernels, known = lora_names.kernels(like), lora_names.spellings(like)
    lora: Lora = {}
    for (component, path), keys in _group(tensors, known).items():
        parts = {part: np.asarray(tensors[key]) for part, key in keys.items()}
        down, up = _from_torch(parts, kernels[component, path].shape, keys["down"])
        scale = _alpha_over_rank(parts, metadata, component, path)
        factors = {"down": down, "up": up * np.float32(scale)}
        lora.setdefault(component, {})[path] = factors
    return lora


def _refuse_other_methods(
    tensors: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    for method, pattern in OTHER_METHODS.items():
        found = [key for key in tensors if re.search(pattern, key)]
        if found:
            raise ValueError(f"{method} is not supported: {shown(sorted(found))}")
    for field, value in metadata.items():
        if value and field.split(".")[-1] in ("use_dora", "lora_bias"):
            raise ValueError(f"a lora with {field}={value} is not supported")


def _group(
    tensors: Mapping[str, Any], known: dict[str, list[lora_names.Place]]
) -> dict[lora_names.Place, dict[str, str]]:
    """The keys of each layer's "down", "up" and, if there is one, "alpha"."""
    grouped: dict[lora_names.Place, dict[str, str]] = {}
    unknown = []
    for key in tensors:
        name = key.replace("base_model.model.", "", 1)
        match = FACTOR.fullmatch(name) or ALPHA.fullmatch(name)
        places = known.get(match[1], []) if match else []
        if len(places) > 1:
            raise ValueError(f"{key} may be of any of {['/'.join(p) for p in places]}")
        if not places:
            unknown.append(key)
            continue
        part = match[2] if match.re is FACTOR else "alpha"
        keys = grouped.setdefault(places[0], {})
        if keys.setdefault(PARTS.get(part, part), key) != key:
            raise ValueError(f"{key} and {keys[PARTS.get(part, part)]} are the same")
    if unknown:
        raise ValueError(f"tensors of no layer of the model: {shown(sorted(unknown))}")
    alone = [
        key
        for keys in grouped.values()
        if not {"down", "up"} <= keys.keys()
        for key in keys.values()
    ]
    if alone:
        raise ValueError(f"factors without their partner: {shown(sorted(alone))}")
    if not grouped:
        raise ValueError("no tensors of a lora")
    return grouped


def _from_torch(
    parts: dict[str, np.ndarray], shape: tuple[int, ...], key: str
) -> tuple[np.ndarray, np.ndarray]:
    down = convert.from_torch(("kernel",), parts["down"], len(shape))
    up = convert.from_torch(("kernel",), parts["up"], 2)
    fits = down is not None and up is not None
    if not fits or down.shape != (*shape[:-1], len(up)) or up.shape[1] != shape[-1]:
        stored = f"{parts['down'].shape} and {parts['up'].shape}"
        raise ValueError(f"factors {stored} of {key} for a kernel {shape}")
    return np.array(down, np.float32), np.array(up, np.float32)


def _alpha_over_rank(
    parts: dict[str, np.ndarray], metadata: Mapping[str, Any], component: str, path: str
) -> float:
    def said(field: str) -> Any:
        return metadata.get(f"{component}.{field}", metadata.get(field))

    rank = len(parts["down"])
    alpha = said("lora_alpha")
    names = {path.replace("/", "."), lora_names.published(component, path)}
    for pattern, value in reversed((said("alpha_pattern") or {}).items()):
        if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in names):
            alpha = value
    if "alpha" in parts:
        alpha = parts["alpha"].item()
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if said("use_rslora") else rank)


def save(lora: Lora, dialect: str = "diffusers") -> dict[str, np.ndarray]:
    """Tensors in torch's layout that `read` and, by their names, others read back."""
    if dialect not in DIALECTS:
        raise ValueError(f"unknown dialect {dialect!r}; one of {sorted(DIALECTS)}")
    tensors = {}
    for component, layers in lora.items():
        for path, factors in layers.items():
            name = lora_names.published(component, path)
            stem, down_key, up_key = DIALECTS[dialect](component, name, lora)
            down, up = (
                np.asarray(factors[part], np.float32) for part in ("down", "up")
            )
            rank = down.shape[-1]
            if down.ndim == 4:
                up = up[None, None]
            tensors[stem + down_key] = _to_torch(down)
            tensors[stem + up_key] = _to_torch(up)
            if dialect == "kohya":
                tensors[f"{stem}.alpha"] = np.array(rank, np.float32)
    return tensors


def _to_torch(factor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(convert.to_torch(("kernel",), factor))


def _peft(component: str, name: str, lora: Lora) -> tuple[str, str, str]:
    return f"{component}.{name}", ".lora_A.weight", ".lora_B.weight"


def _diffusers(component: str, name: str, lora: Lora) -> tuple[str, str, str]:
    is_tower = name.startswith("text_model.")
    kind = ".lora_linear_layer" if is_tower else ".lora"
    return f"{component}.{name}", f"{kind}.down.weight", f"{kind}.up.weight"


def _kohya(component: str, name: str, lora: Lora) -> tuple[str, str, str]:
    prefixes = lora_names.KOHYA_PREFIXES.get(component)
    if prefixes is None:
        raise ValueError(f"kohya's files do not name {component!r}")
    # A model with two text encoders numbers them.
    prefix = prefixes[-1 if "text_encoder_2" in lora else 0]
    stem = prefix + name.replace(".", "_")
    return stem, ".lora_down.weight", ".lora_up.weight"


DIALECTS = {"diffusers": _diffusers, "kohya": _kohya, "peft": _peft}
