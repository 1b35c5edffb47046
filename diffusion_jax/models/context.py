"""Keys and values of a fixed context, computed once a prompt instead of once a step.

A text does not change while an image of it is sampled, nor do the keys W_k c and values
W_v c that every attention layer makes of it (arXiv:2112.10752, section 3.3).
"""

from __future__ import annotations

import flax.linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from diffusion_jax.types import Conditioning, Params

# The end of the path of a layer that reads tokens, and its two projections of them.
READERS = (
    ("attn2", "to_k", "to_v"),  # `attention.TransformerBlock`
    ("", "add_k_proj", "add_v_proj"),  # `attention.AddedKVAttention`
)


def with_keys_values(
    network: nn.Module, params: Params, cond: Conditioning
) -> Conditioning:
    """`cond` with the keys and values of its tokens instead of them.

    In the network's dtype. A condition without tokens is returned as it is, and so is
    any where no layer of `params` attends to tokens.
    """
    if cond.tokens is None:
        return cond
    keys_values = {}
    for path, key, value in readers(params):
        layer = params
        for name in path:
            layer = layer[name]
        keys_values["/".join(path)] = (
            project(layer[key], cond.tokens, network.dtype),
            project(layer[value], cond.tokens, network.dtype),
        )
    if not keys_values:
        return cond
    return cond._replace(tokens=None, keys_values=keys_values)


def readers(params: Params) -> list[tuple[tuple[str, ...], str, str]]:
    """Path of every layer that attends to tokens, and its two projections of them."""
    found = []
    for *path, name, leaf in traverse_util.flatten_dict(params):
        for parent, key, value in READERS:
            is_reader = name == key and (not parent or path[-1] == parent)
            if is_reader and leaf == "kernel":
                found.append((tuple(path), key, value))
    return found


def project(
    layer: Params, tokens: Float[Array, "B L E"], dtype: str
) -> Float[Array, "B L F"]:
    """What the layer itself would compute."""
    width = layer["kernel"].shape[-1]
    dense = nn.Dense(width, use_bias="bias" in layer, dtype=dtype)
    return dense.apply({"params": layer}, tokens)
