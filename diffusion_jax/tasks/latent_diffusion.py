"""Text-conditional latent diffusion (Rombach et al., 2022, arXiv:2112.10752, eq. 3).

The autoencoder and the text tower are frozen and arrive as an argument:

    frozen = {"vae": ..., "text_encoder": ..., "latent_scale": 1 / std of the latents}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models import layers
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.text import TextEncoders
from diffusion_jax.tasks import dropping
from diffusion_jax.tasks.objective import Objective
from diffusion_jax.types import Batch, Conditioning, Key, Metrics, Params, Prompt, Task


class Towers(NamedTuple):
    """The frozen networks; their parameters are in `frozen`.

    `pooled`: the U-Net also hears the caption's pooled embedding, and with `size_ids`
    their sinusoids behind it, as in Stable Diffusion XL (Podell et al., 2023, sections
    2.1 and 2.2; arXiv:2307.01952).
    """

    vae: AutoencoderKL
    text: TextEncoders
    pooled: bool = False
    size_ids: tuple[float, ...] = ()  # of all images, which are cut to one size
    size_id_width: int = 256
    latent_shift: float = 0.0  # z -> latent_scale * (z - latent_shift)


class Network(NamedTuple):
    """What is trained, and the U-Net's parameters that it makes of the frozen ones.

    All of the U-Net by default; a low-rank adaptation replaces the other two fields.
    """

    unet: nn.Module
    init: Callable[[Key, Params], Params] | None = None  # (key, frozen) -> trainable
    merge: Callable[[Params, Params], Params] = lambda params, frozen: params["unet"]


def encode_images(
    towers: Towers, frozen: Params, image: Float[Array, "B H W 3"]
) -> dict[str, Float[Array, "B h w c"]]:
    """The latent's posterior, in the form in which batches may bring it cached."""
    variables = {"params": frozen["vae"]}
    mean, logvar = towers.vae.apply(variables, image, method="encode")
    return {"latent_mean": mean, "latent_std": jnp.exp(logvar / 2)}


def encode_text(
    towers: Towers,
    frozen: Params,
    tokens: Int[Array, "B *T L"],
    *,
    is_empty: bool = False,
) -> Batch:
    """What the U-Net is told of captions, in the form in which batches may bring it.

    `tokens` have an axis of text encoders where there are several.
    """
    batch, length = len(tokens), tokens.shape[-1]
    tokens = tokens.reshape(batch, -1, 1, length)
    prompt = Prompt(tokens, jnp.ones(tokens.shape), jnp.full(batch, is_empty))
    hidden, pooled = towers.text(frozen, prompt)
    if not towers.pooled:
        return {"text": hidden}
    if towers.size_ids:
        sizes = layers.sinusoid(jnp.asarray(towers.size_ids), towers.size_id_width)
        sizes = jnp.broadcast_to(sizes.reshape(-1), (batch, sizes.size))
        pooled = jnp.concatenate([pooled, sizes], axis=-1)
    return {"text": hidden, "pooled": pooled}


def condition(text: Batch) -> Conditioning:
    """The routes by which the encoded captions enter the U-Net."""
    return Conditioning(tokens=text["text"], vector=text.get("pooled"))


def draw_latent(
    key: Key, towers: Towers, frozen: Params, batch: Batch
) -> Float[Array, "B h w c"]:
    """A scaled draw of the posterior, which `batch` brings as images or cached."""
    posterior = batch
    if "latent_mean" not in batch:
        posterior = encode_images(towers, frozen, batch["image"])
    mean, std = posterior["latent_mean"], posterior["latent_std"]
    mean, std = mean.astype(jnp.float32), std.astype(jnp.float32)
    noise = jax.random.normal(key, mean.shape)
    return frozen["latent_scale"] * (mean + std * noise - towers.latent_shift)


def latent_diffusion(
    trained: Network,
    towers: Towers,
    objective: Objective,
    frozen: Params,
    null_tokens: Int[Array, "1 *T L"],
    *,
    latent_shape: tuple[int, int, int],
    caption_dropout: float = 0.1,
) -> Task:
    """Trains the network's parameters on batches of `image` and `tokens`.

    A batch may bring `latent_mean`, `latent_std` instead of the image and `text`
    instead of the tokens: the frozen towers' outputs, computed once.
    """
    dropping.check_rate("caption_dropout", caption_dropout)
    unet = trained.unet

    def init(key: Key) -> tuple[Params, Params]:
        if trained.init is not None:
            return trained.init(key, frozen), frozen
        cond = condition(encode_text(towers, frozen, null_tokens))
        x = jnp.zeros((1, *latent_shape))
        return {"unet": unet.init(key, x, jnp.zeros(1), cond)["params"]}, frozen

    def loss(
        params: Params, frozen: Params, key: Key, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        key_latent, key_drop, key_dropout, key_noise = jax.random.split(key, 4)
        x0 = draw_latent(key_latent, towers, frozen, batch)
        text = batch
        if "text" not in batch:
            text = encode_text(towers, frozen, batch["tokens"])
        null = condition(encode_text(towers, frozen, null_tokens, is_empty=True))
        is_dropped = jax.random.bernoulli(key_drop, caption_dropout, (len(x0),))
        cond = dropping.drop(is_dropped, condition(text), null)

        unet_params = trained.merge(params, frozen)

        def network(x, time, cond):
            rngs = {"dropout": key_dropout}
            variables = {"params": unet_params}
            return unet.apply(variables, x, time, cond, train=True, rngs=rngs)

        return objective.of_batch(key_noise, network, x0, cond)

    return Task(init, loss)
