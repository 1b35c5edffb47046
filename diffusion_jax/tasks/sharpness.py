"""Sharpness-aware minimisation (Foret et al., 2021, arXiv:2010.01412).

    gradient = g(w + e),   e = rho g(w) / |g(w)|,   g the gradient of the loss (eq. 2, 3)

With e held constant this is the gradient of w -> loss(w + e): so the method lives in
the loss, and neither the optimizer nor the training step knows of it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from diffusion_jax.types import Params


def ascend(
    loss: Callable[[Params], Float[Array, ""]], params: Params, rho: float
) -> Params:
    """w + e: a step of length `rho` up the loss, whose gradient by w is the identity."""
    gradient = jax.grad(loss)(jax.lax.stop_gradient(params))
    step = rho / jnp.maximum(optax.tree.norm(gradient), 1e-12)
    return jax.tree.map(
        lambda w, g: w + jax.lax.stop_gradient(step * g), params, gradient
    )
