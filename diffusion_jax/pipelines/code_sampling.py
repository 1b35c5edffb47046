"""Sampling from the autoregressive prior: one code after the other, in one scan.

Keys and values of what was read are kept, so a code costs one token and not a sequence.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.samplers import integrate
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models.autoregressive_prior import AutoregressiveTransformer
from diffusion_jax.types import Conditioning, Params


def split(keys: Keys) -> tuple[Keys, Keys]:
    """The keys of the dot product and those of the codes, one each per example."""
    key_dot, key_codes = integrate.split(keys, 2)
    return key_dot, key_codes


def draw_top(keys: Keys, num_buckets: int, top: float) -> Int[Array, "B"]:
    """A bucket per key of the `top` share of buckets, which have equal mass."""
    if not 0 < top <= 1:
        raise ValueError(f"top={top}; a share of the distribution in (0, 1]")
    first = min(math.floor((1 - top) * num_buckets + 1e-9), num_buckets - 1)

    def draw(key: Keys) -> Array:
        return jax.random.randint(key, (), first, num_buckets)

    return jax.vmap(draw)(keys)


def pick(
    keys: Keys, logits: Float[Array, "B N"], temperature: float
) -> Int[Array, "B"]:
    """A draw of softmax(logits / temperature) per key; 0 takes the likeliest."""
    if temperature < 0:
        raise ValueError(f"temperature={temperature}; 0 or more")
    if temperature == 0:
        return logits.argmax(axis=-1).astype(jnp.int32)
    draw = jax.vmap(jax.random.categorical)
    return draw(keys, logits / temperature).astype(jnp.int32)


def sample(
    network: AutoregressiveTransformer,
    params: Params,
    keys: Keys,
    dot: Int[Array, "B"],
    cond: Conditioning,
    null: Conditioning | None = None,
    *,
    scale: float | Float[Array, "..."] = 1.0,
    temperature: float = 1.0,
) -> tuple[Int[Array, "B D"], Float[Array, "D B N"]]:
    """Codes, and the guided logits from which each of them was drawn.

    With `null`, logits are null + scale * (cond - null), where the one without caption
    is not told the dot product either. `null` may have one row.
    """
    batch, variables = len(dot), {"params": params}
    if null is not None:
        unknown = jnp.full_like(dot, network.num_dot_buckets)
        cond = guidance.stacked((cond, null), batch)
        dot = jnp.concatenate([dot, unknown])

    def guided(logits: Array) -> Array:
        if null is None:
            return logits
        given, without = jnp.split(logits, 2)
        weight = jnp.reshape(jnp.asarray(scale), (-1, 1))
        return without + weight * (given - without)

    def step(carry: tuple, xs: tuple) -> tuple[tuple, tuple]:
        logits, kept = carry
        index, key = xs
        code = pick(key, logits, temperature)
        fed = code if null is None else jnp.concatenate([code, code])
        following, kept = network.apply(
            variables, fed, index, cond, kept, method="extend"
        )
        return (guided(following), kept), (code, logits)

    logits, kept = network.apply(variables, dot, cond, method="begin")
    keys = integrate.split(keys, network.num_dims)
    indices = jnp.arange(network.num_dims - 1)
    (last, _), (codes, traced) = jax.lax.scan(
        step, (guided(logits), kept), (indices, keys[:-1])
    )
    final = pick(keys[-1], last, temperature)
    codes = jnp.concatenate([codes, final[None]]).T
    return codes, jnp.concatenate([traced, last[None]])
