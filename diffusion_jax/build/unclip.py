"""DALL·E 2 of configs: CLIP's towers, both priors, the decoder, and the pipeline of runs.

config.clip, config.clip_image_size      the CLIP that all were trained with
config.prior, config.embedding_scale     the diffusion prior
config.prior, config.codes               the autoregressive prior
config.unet, config.projection           the decoder, of config.decoder_size pixels
config.text                              an own text encoder of either, if any
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax.build import networks, pipelines, upsampler
from diffusion_jax.build.choices import (
    ConfigError,
    check_options,
    choose,
    construct,
    nearest,
)
from diffusion_jax.build.mathematics import objective
from diffusion_jax.data import captions
from diffusion_jax.models import embedding_codes
from diffusion_jax.models.autoregressive_prior import AutoregressiveTransformer
from diffusion_jax.models.clip import CLIPVision, ProjectedVision
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.embedding_scale import EMBEDDING_SCALES
from diffusion_jax.models.prior import PriorTransformer
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unclip import TextImageProjection, TextTransformer
from diffusion_jax.pipelines.dalle2 import Dalle2
from diffusion_jax.pipelines.priors import AutoregressivePrior, DiffusionPrior
from diffusion_jax.tasks import autoregressive_prior as autoregressive_prior_tasks
from diffusion_jax.tasks import decoder as decoder_tasks
from diffusion_jax.tasks import prior as prior_tasks
from diffusion_jax.types import Params, Task

DIFFUSION, AUTOREGRESSIVE = "diffusion_prior", "autoregressive_prior"
DECODER = "decoder"
RATES = {  # at which captions and images are dropped, by task
    DIFFUSION: ("caption_dropout",),
    AUTOREGRESSIVE: ("caption_dropout",),
    DECODER: ("image_dropout", "text_dropout"),
}
TASKS = tuple(RATES)
DERIVED = ("embedding", "codes")  # of embeddings, by what froze a prior's towers
OF_PRIOR = ("candidates", "temperature", "top", "guidance")  # options of sampling


def clip_towers(config: ConfigDict, tokenizer: captions.Tokenizer) -> ClipTowers:
    """The towers of a CLIP run, whose embeddings have unit norm."""
    width = config.clip.projection_dim
    vision = construct(
        "clip.vision",
        functools.partial(CLIPVision, image_size=config.clip_image_size),
        config.clip.vision,
    )
    text = ProjectedText(networks.text_encoder(config, tokenizer), width)
    return ClipTowers(text, ProjectedVision(vision, width))


def clip_params(params: Params) -> Params:
    """A CLIP run's parameters, as `ClipTowers` looks for them."""
    parts = {
        "text_encoder": ("text_model", "text_projection"),
        "image_encoder": ("vision_model", "visual_projection"),
    }
    return {
        name: {module: params[module] for module in modules}
        for name, modules in parts.items()
    }


def own_text(
    config: ConfigDict, tokenizer: captions.Tokenizer
) -> TextTransformer | None:
    """The text encoder that is trained with the network; None: CLIP's serves."""
    if "text" not in config:
        return None
    make = functools.partial(
        TextTransformer,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        context_length=tokenizer.context_length,
    )
    return construct("text", make, config.text)


def dropout(config: ConfigDict) -> dict[str, float]:
    """How often captions and images are dropped: all the options that the tasks have."""
    options = {name: value for name, value in config.task.items() if name != "name"}
    allowed = RATES[config.task.name]
    for name, rate in options.items():
        if name not in allowed:
            raise ConfigError(f"task has no option {name!r}: {nearest(name, allowed)}")
        if not 0 <= rate <= 1:
            raise ConfigError(f"task.{name} is {rate}; it must lie in [0, 1]")
    return options


# ---- priors --------------------------------------------------------------------------


def prior_network(
    config: ConfigDict, tokenizer: captions.Tokenizer
) -> PriorTransformer:
    make = functools.partial(
        PriorTransformer,
        embed_dim=config.clip.projection_dim,
        num_tokens=tokenizer.context_length,
    )
    return construct("prior", make, config.prior)


def codes_network(
    config: ConfigDict, tokenizer: captions.Tokenizer, codes: Params
) -> AutoregressiveTransformer:
    """As many components and buckets as the codes have that it is trained on."""
    make = functools.partial(
        AutoregressiveTransformer,
        embed_dim=config.clip.projection_dim,
        num_dims=embedding_codes.num_dims(codes),
        num_buckets=len(codes["centres"]),
        num_dot_buckets=len(codes["dot_edges"]) + 1,
        num_tokens=tokenizer.context_length,
    )
    return construct("prior", make, config.prior)


def prior_of(
    config: ConfigDict, tokenizer: captions.Tokenizer, frozen: Params
) -> DiffusionPrior | AutoregressivePrior:
    """What a run's prior is sampled by; `frozen` is that of the run."""
    options = {k: config.sampling[k] for k in OF_PRIOR if k in config.sampling}
    if config.task.name == DIFFUSION:
        stage = pipelines.stage(config, prior_network(config, tokenizer))
        options = {k: v for k, v in options.items() if k == "candidates"}
        return DiffusionPrior(stage, **options)
    return AutoregressivePrior(
        codes_network(config, tokenizer, frozen["codes"]), **options
    )


def diffusion_prior_task(config, tokenizer, frozen, initial) -> Task:
    parts = prior_tasks.Networks(
        prior_network(config, tokenizer), own_text(config, tokenizer)
    )
    return prior_tasks.prior(
        parts,
        clip_towers(config, tokenizer),
        objective(config),
        frozen,
        jnp.asarray(tokenizer([""])),
        **dropout(config),
    )


def autoregressive_prior_task(config, tokenizer, frozen, initial) -> Task:
    parts = autoregressive_prior_tasks.Networks(
        codes_network(config, tokenizer, frozen["codes"]), own_text(config, tokenizer)
    )
    return autoregressive_prior_tasks.autoregressive_prior(
        parts,
        clip_towers(config, tokenizer),
        frozen,
        jnp.asarray(tokenizer([""])),
        **dropout(config),
    )


# ---- decoder -------------------------------------------------------------------------


def projection(config: ConfigDict) -> TextImageProjection:
    make = functools.partial(
        TextImageProjection, time_width=4 * config.unet.channels[0]
    )
    return construct("projection", make, config.projection)


def decoder_task(config, tokenizer, frozen, initial) -> Task:
    parts = decoder_tasks.Networks(
        networks.unet(config), projection(config), own_text(config, tokenizer)
    )
    return decoder_tasks.decoder(
        parts,
        clip_towers(config, tokenizer),
        objective(config),
        frozen,
        jnp.asarray(tokenizer([""])),
        size=config.decoder_size,
        **dropout(config),
    )


def check_lengths(config: ConfigDict, length: int) -> None:
    """Raises a ConfigError for sizes that do not go with texts of `length` tokens.

    Before the towers have read all the data, which takes long.
    """
    most = config.prior.get("num_tokens", length) if "prior" in config else length
    if config.task.name == DIFFUSION and most < length:
        raise ConfigError(f"prior.num_tokens {most}: captions have {length} tokens")
    if config.task.name == AUTOREGRESSIVE and most > length:
        raise ConfigError(f"prior.num_tokens {most}: captions have {length} tokens")
    own = config.text.get("context_length", length) if "text" in config else length
    if own < length:
        raise ConfigError(f"text.context_length {own}: captions have {length} tokens")
    width = config.clip.projection_dim
    if "codes" in config and (config.codes.get("num_dims") or 0) > width:
        raise ConfigError(
            f"codes.num_dims {config.codes.num_dims}: CLIP's embeddings have {width}"
        )


def check(config: ConfigDict) -> None:
    """Raises a ConfigError for what can be known to be wrong before any work."""
    if config.task.name == DIFFUSION:
        check_options("prior", PriorTransformer, config.prior)
        pipelines.stage(config, PriorTransformer())
        choose("embedding_scale", EMBEDDING_SCALES, config.embedding_scale)
        loss = config.get("loss", {"name": "diffusion"})["name"]
        if loss != "diffusion":
            raise ConfigError(
                f"loss {loss!r} of a prior, which learns no variance: only 'diffusion'"
            )
    elif config.task.name == AUTOREGRESSIVE:
        check_options("prior", AutoregressiveTransformer, config.prior)
        check_options("codes", embedding_codes.fit, config.codes)
    elif config.task.name == DECODER:
        projection(config)
        if config.unet.get("vector", "none") == "none":
            raise ConfigError(
                "unet.vector is 'none'; a decoder hears the image: one of"
                " ['identity', 'add_embedding', 'class_embedding']"
            )
    if config.task.name != DECODER:
        check_draws(config)
    dropout(config)
    if "text" in config:
        check_options("text", TextTransformer, config.text)


def check_draws(config: ConfigDict) -> None:
    """Raises for what a prior would refuse when it is first sampled, in the training."""
    said = {name: config.sampling.get(name, 1) for name in OF_PRIOR}
    for name, is_right, wanted in (
        ("candidates", said["candidates"] >= 1, "at least 1"),
        ("temperature", said["temperature"] >= 0, "0 or more"),
        ("top", 0 < said["top"] <= 1, "a share in (0, 1]"),
    ):
        if not is_right:
            raise ConfigError(f"sampling.{name} is {said[name]}; {wanted}")


# ---- the pipeline of several runs ----------------------------------------------------


def clip_part(frozen: Params) -> Params:
    return {name: frozen[name] for name in ("text_encoder", "image_encoder")}


def decoder_params(trained: Params, frozen: Params) -> Params:
    """What a pipeline takes of a decoder's run."""
    params = clip_part(frozen)
    params |= {name: trained[name] for name in ("decoder", "text_proj")}
    return params | ({"decoder_text": trained["text"]} if "text" in trained else {})


def prior_params(trained: Params, frozen: Params) -> Params:
    """What a pipeline takes of a prior's run, besides CLIP."""
    params = {name: frozen[name] for name in DERIVED if name in frozen}
    params["prior"] = trained["prior"]
    return params | ({"prior_text": trained["text"]} if "text" in trained else {})


def dalle2(
    config: ConfigDict,
    tokenizer: captions.Tokenizer,
    prior: tuple[ConfigDict, Params] | None = None,
    upsamplers: Mapping[str, ConfigDict] | None = None,
) -> Dalle2:
    """The pipeline around the decoder of a config, and of runs with the same CLIP.

    `prior` is the config of its run and what that froze; `upsamplers` are in order, by
    the names of their weights in params.
    """
    upsamplers = upsamplers or {}
    return Dalle2(
        clip_towers(config, tokenizer),
        None if prior is None else prior_of(prior[0], tokenizer, prior[1]),
        projection(config),
        pipelines.stage(config),
        config.decoder_size,
        tuple(upsampler.upsampler(one, name) for name, one in upsamplers.items()),
        prior_text=None if prior is None else own_text(prior[0], tokenizer),
        decoder_text=own_text(config, tokenizer),
    )
