"""DALL·E 2: caption -> CLIP image embedding -> image -> larger images (arXiv:2204.06125).

All of it is pure functions of (params, keys, ...), to be jitted by the caller:

    pipeline(params, keys, tokens, null_tokens)        text to image
    pipeline.encode_text(params, tokens)               the caption, as each stage reads it
    pipeline.draw_embedding(params, keys, text, null)  the prior alone
    pipeline.hear(params, embed, text, null)           what the decoder is told
    pipeline.decode(params, keys, heard, scale)        the decoder alone
    pipeline.upsample(params, keys, images)            the upsamplers alone

`keys` holds one key per image, of which every stage makes its own: image i of a seed is
the same in whatever batch, and with or without the stages after it. manipulations.py
has what starts from an image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.guidance import Guide
from diffusion_jax.diffusion.samplers.integrate import Keys
from diffusion_jax.models import clip, layers
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.unclip import Encoded, TextImageProjection, TextTransformer
from diffusion_jax.pipelines import stage as stages
from diffusion_jax.pipelines.stage import Stage, Wrap
from diffusion_jax.types import Conditioning, Params

PRIOR, DECODER, UPSAMPLER = 0, 1, 2  # which key of an image; of the first upsampler

Scale = float | Float[Array, "..."]
Prior = Callable[..., Float[Array, "B P"]]  # see pipelines/priors.py


class Caption(NamedTuple):
    """One text as every stage reads it; equal where they share an encoder."""

    clip: Encoded
    prior: Encoded  # its `embed` is CLIP's
    decoder: Encoded


class Heard(NamedTuple):
    """What the decoder is told, and what guidance compares that with."""

    cond: Conditioning  # image embedding and caption
    null: Conditioning | None = None  # neither; without it there is no guidance
    image: Conditioning | None = None  # the image embedding alone


@dataclasses.dataclass(frozen=True)
class Upsampler:
    """A diffusion model of larger images, told the small one and nothing else.

    With `last`, another network takes the last step, as in Karlo; both stages have
    the whole grid.
    """

    stage: Stage
    size: int  # pixels a side, of the result
    name: str  # of its weights in params
    last: Stage | None = None
    last_name: str | None = None

    def __post_init__(self) -> None:
        if self.last is None:
            return
        whole, others = (stages.grid_of(stage) for stage in (self.stage, self.last))
        if whole.shape != others.shape or not np.array_equal(whole, others):
            raise ValueError(
                f"the last step of {self.name} is of another grid: of {len(others) - 1} "
                f"steps, not these {len(whole) - 1}"
            )

    def __call__(
        self, params: Params, keys: Keys, images: Float[Array, "B h w 3"]
    ) -> Float[Array, "B H W 3"]:
        """Images in [-1, 1]."""
        cond = Conditioning(image=layers.bicubic(images, self.size))
        shape = cond.image.shape[1:]
        if self.last is None:
            x, _ = stages.sample(self.stage, params[self.name], keys, shape, cond)
            return jnp.clip(x, -1.0, 1.0)
        most = dataclasses.replace(self.stage, last=_num_steps(self.stage) - 1)
        final = dataclasses.replace(self.last, first=_num_steps(self.last) - 1)
        x, _ = stages.sample(most, params[self.name], keys, shape, cond)
        keys = keys_of(keys, 1)
        x, _ = stages.sample(final, params[self.last_name], keys, shape, cond, x=x)
        return jnp.clip(x, -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Dalle2:
    """Holds no weights; what is None or empty is missing.

    `params` has "text_encoder", "text_proj", "decoder", and of what there is
    "image_encoder", "prior" with "embedding", "prior_text", "decoder_text" and the
    upsamplers' names.
    """

    clip: ClipTowers
    prior: Prior | None
    projection: TextImageProjection
    decoder: Stage
    size: int  # pixels a side, of the decoder
    upsamplers: tuple[Upsampler, ...] = ()
    prior_text: TextTransformer | None = None  # None: CLIP's hidden states
    decoder_text: TextTransformer | None = None

    def __call__(
        self,
        params: Params,
        keys: Keys,
        tokens: Int[Array, "N L"],
        null_tokens: Int[Array, "1 L"],
        *,
        prior_scale: Scale | None = None,
        decoder_scale: Scale | None = None,
        image_scale: Scale | None = None,
    ) -> Float[Array, "B H W 3"]:
        """Images in [-1, 1] of captions, one for each key or one for all.

        `null_tokens` are those of the empty text; scales as of `decode`.
        """
        text = self.encode_text(params, tokens)
        null = self.encode_text(params, null_tokens)
        embed = self.draw_embedding(params, keys, text, null, prior_scale)
        heard = self.hear(params, embed, text, null)
        images = self.decode(
            params, keys, heard, decoder_scale, image_scale=image_scale
        )
        return self.upsample(params, keys, images)

    def encode_text(self, params: Params, tokens: Int[Array, "N L"]) -> Caption:
        """What every stage reads of texts."""
        clip = self.clip.encode_text(params, tokens)
        prior, decoder = clip, clip
        if self.prior_text is not None:
            prior = self.prior_text.apply({"params": params["prior_text"]}, tokens)
            prior = prior._replace(embed=clip.embed)
        if self.decoder_text is not None:
            variables = {"params": params["decoder_text"]}
            decoder = self.decoder_text.apply(variables, tokens)
        return Caption(clip, prior, decoder)

    def encode_image(
        self, params: Params, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B P"]:
        """CLIP's embeddings of images in [-1, 1]."""
        if self.clip.image is None:
            raise ValueError(
                "this pipeline has no image tower of CLIP, which images start from"
            )
        return self.clip.encode_image(params, images)

    def draw_embedding(
        self,
        params: Params,
        keys: Keys,
        text: Caption,
        null: Caption,
        scale: Scale | None = None,
    ) -> Float[Array, "B P"]:
        """The prior's image embeddings of texts, in CLIP's own scale.

        Of unit norm where CLIP's are: the decoder has heard no others.
        """
        self.check_has_prior()
        prior_text = one_per_image(text.prior, len(keys))
        embed = self.prior(
            params, keys_of(keys, PRIOR), prior_text, null.prior, scale=scale
        )
        return clip.to_unit_norm(embed) if self.clip.unit_norm else embed

    def hear(
        self,
        params: Params,
        embed: Float[Array, "B P"],
        text: Caption,
        null: Caption,
        is_dropped: Bool[Array, "B"] | None = None,
    ) -> Heard:
        """What the decoder is told of image embeddings and captions.

        One caption may be for all. Where `is_dropped`, it hears the caption alone.
        """
        num_images = len(embed)
        dropped = jnp.ones(num_images, bool)
        nothing = jnp.zeros_like(embed)
        return Heard(
            self.condition(params, embed, text.decoder, is_dropped),
            self.condition(params, nothing, null.decoder, dropped),
            self.condition(params, embed, null.decoder, is_dropped),
        )

    def condition(
        self,
        params: Params,
        embed: Float[Array, "B P"],
        text: Encoded,
        is_dropped: Bool[Array, "B"] | None = None,
    ) -> Conditioning:
        """What the decoder's U-Net is told."""
        self.check_width(embed)
        text = one_per_image(text, len(embed))
        variables = {"params": params["text_proj"]}
        return self.projection.apply(variables, embed, text, is_dropped)

    def decode(
        self,
        params: Params,
        keys: Keys,
        heard: Heard,
        scale: Scale | None = None,
        *,
        image_scale: Scale | None = None,
        noise: Float[Array, "B h w 3"] | None = None,
        x: Float[Array, "B h w 3"] | None = None,
        wrap: Wrap | None = None,
    ) -> Float[Array, "B h w 3"]:
        """The decoder's images in [-1, 1]; start and `wrap` as of `stage.sample`.

        Guidance drops image embedding and caption together, by `scale` (default: the
        stage's own). With `image_scale`, or `guidance.two_scale` as the stage's guide,
        there are two: `image_scale` of the embedding without a caption, `scale` of the
        caption beside it.
        """
        decoder = self.decoder
        is_plain = decoder.guide is guidance.classifier_free and decoder.guidance == 1
        if is_plain and scale is None and image_scale is None:
            heard = Heard(heard.cond)
        if heard.null is not None and heard.image is not None:
            image = stages.remember(decoder, params["decoder"], heard.image)
            decoder = two_way(decoder, image, image_scale)
        sample, _ = stages.sample(
            decoder,
            params["decoder"],
            keys_of(keys, DECODER),
            (self.size, self.size, 3),
            heard.cond,
            heard.null,
            scale=scale,
            noise=noise,
            x=x,
            wrap=wrap,
        )
        return jnp.clip(sample, -1.0, 1.0)

    def upsample(
        self,
        params: Params,
        keys: Keys,
        images: Float[Array, "B h w 3"],
        num: int | None = None,
    ) -> Float[Array, "B H W 3"]:
        """Images through the first `num` upsamplers; default: all there are."""
        for i in range(self.num_upsamplers(num)):
            images = self.upsample_once(params, keys, images, i)
        return images

    def upsample_once(
        self, params: Params, keys: Keys, images: Float[Array, "B h w 3"], i: int
    ) -> Float[Array, "B H W 3"]:
        """Images through upsampler i."""
        return self.upsamplers[i](params, keys_of(keys, UPSAMPLER + i), images)

    def num_upsamplers(self, wanted: int | None = None) -> int:
        """As many as wanted; default: all there are."""
        num = len(self.upsamplers)
        if wanted is not None and not 0 <= wanted <= num:
            raise ValueError(f"{wanted} upsamplers wanted; this pipeline has {num}")
        return num if wanted is None else wanted

    def check_has_prior(self) -> None:
        """Raise where captions cannot become embeddings."""
        if self.prior is None:
            raise ValueError(
                "this pipeline has no prior; without one, decode the embedding of an "
                "image, or of the caption itself"
            )

    def check_width(self, embed: Float[Array | np.ndarray, "B P"]) -> None:
        """Raise on embeddings of another CLIP."""
        width = self.clip.text.projection_dim
        if embed.shape[-1] != width:
            raise ValueError(
                f"image embeddings of width {embed.shape[-1]}; CLIP's have {width}"
            )


def keys_of(keys: Keys, index: int) -> Keys:
    """The keys of one stage (PRIOR, DECODER, UPSAMPLER + i), of one key per image."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def one_per_image(text: Encoded, num_images: int) -> Encoded:
    """As many captions as images; one may be for all."""
    num_texts = len(text.embed)
    if num_texts not in (1, num_images):
        raise ValueError(
            f"{num_texts} captions for {num_images} images; one for each or one for all"
        )
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (num_images, *a.shape[1:])), text)


def two_way(stage: Stage, image: Conditioning, image_scale: Scale | None) -> Stage:
    """The stage with `image`, the image embedding alone, between condition and null.

    A stage of plain classifier-free guidance stays so unless there is an `image_scale`.
    """
    guide, rule = stage.guide, guidance.rule_of(stage.guide)
    options = {"image": image}
    if image_scale is not None:
        options["image_scale"] = image_scale
    elif rule is not guidance.two_scale:
        return stage
    if rule is not guidance.two_scale:
        guide = _with_two_scales(guide)
    return dataclasses.replace(stage, guide=functools.partial(guide, **options))


def _with_two_scales(guide: Guide) -> Guide:
    """`two_scale` with the options of a `classifier_free` guide."""
    if guide is guidance.classifier_free:
        return guidance.two_scale
    if getattr(guide, "func", None) is guidance.classifier_free:
        return functools.partial(guidance.two_scale, **guide.keywords)
    name = guidance.rule_of(guide).__name__
    raise ValueError(
        f"an image scale with the guide {name!r}, or with one of an interval or a "
        "curve; one of classifier_free, two_scale"
    )


def _num_steps(stage: Stage) -> int:
    return len(stages.grid_of(stage)) - 1
