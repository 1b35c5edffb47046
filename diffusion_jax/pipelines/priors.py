"""Priors: a caption -> the CLIP image embedding of a picture of it (arXiv:2204.06125, 2.2).

Both are called alike, and give the best of some draws: that of the largest dot product
with the text embedding. `params` is the pipeline's whole dict.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion import process
from diffusion_jax.diffusion.samplers import analytic_dpm
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models import embedding_codes, embedding_scale
from diffusion_jax.models.autoregressive_prior import AutoregressiveTransformer
from diffusion_jax.models.prior import PriorTransformer, condition
from diffusion_jax.models.unclip import Encoded
from diffusion_jax.pipelines import code_sampling
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.types import Conditioning, Params

Scale = float | Float[Array, "..."] | None
Draw = Callable[[Params, Keys, Encoded, Encoded, Scale], Float[Array, "B P"]]


@dataclasses.dataclass(frozen=True)
class DiffusionPrior:
    """Samples with its stage; needs params "prior" and "embedding", their scale.

    Where the sampler is `analytic_dpm`, params "eps_power" too, of `estimate_eps_power`.
    """

    stage: Stage
    candidates: int = 2

    def __call__(
        self,
        params: Params,
        keys: Keys,
        text: Encoded,
        null: Encoded,
        scale: Scale = None,
    ) -> Float[Array, "B P"]:
        """Embeddings in CLIP's own scale, one per key; `null`, encoded "", may be one row.

        `scale` is that of the guidance, by default the stage's.
        """
        return best_of(self.candidates, self.draw, params, keys, text, null, scale)

    def draw(
        self,
        params: Params,
        keys: Keys,
        text: Encoded,
        null: Encoded,
        scale: Scale = None,
        noise: Float[Array, "B P"] | None = None,
    ) -> Float[Array, "B P"]:
        """One draw per key, from `noise` if it is given."""
        cond, null = condition(text), condition(null)
        if scale is None and self.stage.guidance == 1:
            null = None
        if isinstance(self.stage.network, PriorTransformer):
            cond, null = (_remember(self.stage, params, c) for c in (cond, null))
        x, _ = stages.sample(
            _informed(self.stage, params),
            params["prior"],
            keys,
            text.embed.shape[1:],
            cond,
            null,
            scale=scale,
            noise=noise,
        )
        return embedding_scale.restore(params["embedding"], x)


@dataclasses.dataclass(frozen=True)
class AutoregressivePrior:
    """Samples codes one after the other; needs params "prior" and "codes".

    The token of the dot product of image and text is drawn from the `top` share of its
    distribution, which asks for an image that the caption describes well; a half is the
    paper's choice. `temperature` 0 takes the likeliest codes.
    """

    network: AutoregressiveTransformer
    candidates: int = 2
    guidance: float = 1.0
    temperature: float = 1.0
    top: float = 0.5

    def __call__(
        self,
        params: Params,
        keys: Keys,
        text: Encoded,
        null: Encoded,
        scale: Scale = None,
    ) -> Float[Array, "B P"]:
        """As `DiffusionPrior`; guidance extrapolates the logits of every code."""
        return best_of(self.candidates, self.draw, params, keys, text, null, scale)

    def draw(
        self,
        params: Params,
        keys: Keys,
        text: Encoded,
        null: Encoded,
        scale: Scale = None,
    ) -> Float[Array, "B P"]:
        """One draw per key."""
        cond, null = condition(text), condition(null)
        if scale is None and self.guidance == 1:
            null = None
        key_dot, key_codes = code_sampling.split(keys)
        dot = code_sampling.draw_top(key_dot, self.network.num_dot_buckets, self.top)
        codes, _ = code_sampling.sample(
            self.network,
            params["prior"],
            key_codes,
            dot,
            cond,
            null,
            scale=self.guidance if scale is None else scale,
            temperature=self.temperature,
        )
        return embedding_codes.decode(params["codes"], codes)


def best_of(
    candidates: int,
    draw: Draw,
    params: Params,
    keys: Keys,
    text: Encoded,
    null: Encoded,
    scale: Scale = None,
) -> Float[Array, "B P"]:
    """Of some draws for each key that with the largest dot product with `text.embed`.

    All are drawn in one batch; more candidates are those of fewer and others.
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates}; a prior draws at least 1")
    batch = len(keys)
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    keys = jnp.concatenate([fold(keys, i) for i in range(candidates)])

    def repeat(tree: Any) -> Any:
        def tile(a: Array) -> Array:
            return jnp.concatenate([a] * candidates) if len(a) == batch else a

        return jax.tree.map(tile, tree)

    if scale is not None and jnp.ndim(scale):
        scale = repeat(scale)
    many = Encoded(*repeat(tuple(text)))
    drawn = draw(params, keys, many, Encoded(*repeat(tuple(null))), scale)
    drawn = drawn.reshape(candidates, batch, -1)
    dots = jnp.einsum(
        "nbp,bp->nb", drawn, text.embed.astype(drawn.dtype), precision="highest"
    )
    return drawn[dots.argmax(axis=0), jnp.arange(batch)]


def estimate_eps_power(
    prior: DiffusionPrior,
    params: Params,
    key: Keys,
    image_embed: Float[Array, "B P"],
    text: Encoded,
) -> Float[Array, "steps"]:
    """What Analytic-DPM must know of the network, from a batch of pairs of the data.

    It belongs to the stage's grid, and is that of the network without guidance, whose
    optimal variance it gives. Average it over batches; it is params["eps_power"] of a
    prior whose sampler `needs_eps_power`.
    """
    stage = prior.stage
    cond = condition(text)
    denoise = stages.denoiser_of(stage, params["prior"], cond, shape=image_embed.shape)
    x0 = embedding_scale.standardize(params["embedding"], image_embed)
    ts = stages.times(stage)
    power = analytic_dpm.estimate_eps_power(key, denoise, stage.schedule, x0, ts)
    # Var(x0 | x) = (sigma / alpha)**2 (1 - power) cannot exceed Var(x0). Where nearly
    # all is noise, an estimate that is off by a little would say that it does by far.
    level = stage.schedule(ts[:-1])
    least = 1 - jnp.var(x0, axis=0).mean() * process.snr(level)
    return jnp.clip(power, least, 1.0)


def with_eps_power(
    prior: DiffusionPrior | AutoregressivePrior,
    params: Params,
    key: Keys,
    image_embed: Float[Array, "B P"],
    text: Encoded,
) -> Params:
    """The params with "eps_power" of this batch, if the prior asks for one."""
    if isinstance(prior, AutoregressivePrior) or not needs_eps_power(prior.stage):
        return params
    power = estimate_eps_power(prior, params, key, image_embed, text)
    return params | {"eps_power": power}


def needs_eps_power(stage: Stage) -> bool:
    """Whether the stage's sampler asks what `estimate_eps_power` finds."""
    options = inspect.signature(stage.sampler).parameters
    return (
        "eps_power" in options
        and options["eps_power"].default is inspect.Parameter.empty
    )


def _informed(stage: Stage, params: Params) -> Stage:
    """The stage whose sampler knows the eps_power of params, if it asks for it."""
    if not needs_eps_power(stage):
        return stage
    if "eps_power" not in params:
        raise ValueError("Analytic-DPM needs params 'eps_power': estimate_eps_power")
    eps_power = params["eps_power"]
    num_steps = len(stages.times(stage)) - 1
    if len(eps_power) != num_steps:
        raise ValueError(
            f"eps_power of {len(eps_power)} steps; the prior takes {num_steps}"
        )
    sampler = functools.partial(stage.sampler, eps_power=eps_power)
    return dataclasses.replace(stage, sampler=sampler)


def _remember(
    stage: Stage, params: Params, cond: Conditioning | None
) -> Conditioning | None:
    if cond is None:
        return None
    return stage.network.apply({"params": params["prior"]}, cond, method="remember")
