"""A DALL·E 2 of milliseconds whose networks know their data: Gaussians around a mean.

The decoder's mean depends on what it hears of the embedding and of the caption, so that
guidance and edits move it; an upsampler's is the small image.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import denoiser, grids, parameterization, schedules
from diffusion_jax.diffusion.samplers import SAMPLERS, integrate
from diffusion_jax.models.clip import CLIPText, CLIPVision, ProjectedVision
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unclip import TextImageProjection, TextTransformer
from diffusion_jax.pipelines.dalle2 import Dalle2, Upsampler
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.types import Conditioning

SIZE, WIDTH, VOCAB, LENGTH, EOS = 4, 8, 20, 5, 19
TOKENS = jnp.asarray([[1, 2, 3, 4, 19], [5, 6, 19, 19, 19], [7, 19, 19, 19, 19]])
NULL = jnp.asarray([[19, 19, 19, 19, 19]])
SCHEDULE = schedules.Discrete()
STD = 0.2  # of the data
TRACED = []

TEXT = CLIPText(
    vocab_size=VOCAB,
    context_length=LENGTH,
    eos_id=EOS,
    width=8,
    num_layers=1,
    num_heads=2,
    mlp_width=8,
)
VISION = CLIPVision(
    image_size=4, patch_size=2, width=8, num_layers=1, num_heads=2, mlp_width=8
)
TOWERS = ClipTowers(ProjectedText(TEXT, WIDTH), ProjectedVision(VISION, WIDTH))


def eps_around(mean, x, time):
    """The best prediction of eps where data are N(mean, STD**2)."""
    alpha, sigma = (a[:, None, None, None] for a in SCHEDULE(time + 1)[:2])
    return (x - alpha * mean) * sigma / (sigma**2 + STD**2 * alpha**2)


class Painter(nn.Module):
    """The decoder: pictures around what it hears, with a learned variance."""

    @nn.compact
    def __call__(self, x, time, cond):
        TRACED.append(x.shape)
        pixels = (1, SIZE, SIZE, 3)
        heard = nn.Dense(np.prod(pixels), name="vector")(cond.vector)
        read = nn.Dense(np.prod(pixels), name="tokens")(cond.tokens.mean(1))
        mean = jnp.tanh(heard + read).reshape(-1, *pixels[1:])
        eps = eps_around(mean, x, time)
        return jnp.concatenate([eps, mean + 0 * eps], axis=-1)


class Sharpener(nn.Module):
    """An upsampler: pictures around the small one, brighter by `shift`."""

    shift: float = 0.0

    def __call__(self, x, time, cond):
        return eps_around(cond.image + self.shift, x, time)


@dataclasses.dataclass(frozen=True)
class Guess:
    """A prior that adds noise to the caption's embedding."""

    def __call__(self, params, keys, text, null, scale=None):
        scale = 1.0 if scale is None else scale
        moved = null.embed + scale * (text.embed - null.embed)
        return moved + 0.1 * integrate.normal_like(keys, text.embed)


def stage(network, sampler, steps, **fields):
    return Stage(
        network,
        SCHEDULE,
        parameterization.eps(),
        sampler,
        grids.trailing,
        steps,
        **fields,
    )


DECODER = stage(
    Painter(),
    functools.partial(SAMPLERS["ddpm"], variance="learned_range"),
    10,
    guidance=2.0,
    clip=denoiser.clipped,
    learned_variance=True,
)
UPSAMPLERS = (
    Upsampler(stage(Sharpener(), SAMPLERS["ddim"], 4), 8, "super_res_first"),
    Upsampler(stage(Sharpener(), SAMPLERS["ddim"], 3), 16, "super_res_second"),
)
PIPELINE = Dalle2(
    clip=TOWERS,
    prior=Guess(),
    projection=TextImageProjection(context_width=8, time_width=8),
    decoder=DECODER,
    size=SIZE,
    upsamplers=UPSAMPLERS,
)
OWN_TEXT = TextTransformer(
    VOCAB, EOS, context_length=LENGTH, width=6, num_layers=1, num_heads=2
)


def keys_for(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


@functools.cache
def drawn(pipeline=PIPELINE, seed=0):
    """Random parameters, of which the null embedding is not zero either."""
    keys = iter(jax.random.split(jax.random.key(seed), 20))

    def init(module, *args):
        return module.init(next(keys), *args)["params"]

    pixels = jnp.zeros((1, VISION.image_size, VISION.image_size, 3))
    params = {
        "text_encoder": init(TOWERS.text, NULL),
        "image_encoder": init(TOWERS.image, pixels),
        "super_res_first": {},
        "super_res_second": {},
        "super_res_last": {},
    }
    for name in ("prior_text", "decoder_text"):
        if getattr(pipeline, name) is not None:
            params[name] = init(getattr(pipeline, name), NULL)
    text = pipeline.encode_text(params, NULL).decoder
    is_dropped = jnp.zeros(1, bool)
    params["text_proj"] = init(
        pipeline.projection, jnp.zeros((1, WIDTH)), text, is_dropped
    )
    name = "learned_classifier_free_guidance_embeddings"
    params["text_proj"][name] = jax.random.normal(next(keys), (WIDTH,))
    cond = Conditioning(vector=jnp.zeros((1, 8)), tokens=jnp.zeros((1, 9, 8)))
    params["decoder"] = init(
        Painter(), jnp.zeros((1, SIZE, SIZE, 3)), jnp.zeros(1), cond
    )
    return params


def pictures(num, size=SIZE, seed=1):
    """Images in [-1, 1]."""
    noise = jax.random.normal(jax.random.key(seed), (num, size, size, 3))
    return 0.9 * jnp.tanh(noise)
