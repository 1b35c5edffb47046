"""Networks of a config: their fields are those of the modules."""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from diffusion_jax.build.choices import ConfigError, construct
from diffusion_jax.build.mathematics import learns_variance
from diffusion_jax.data import captions
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision
from diffusion_jax.models.text import ProjectedText, TextEncoders, Tower
from diffusion_jax.models.unet import UNet
from diffusion_jax.tasks import latent_diffusion
from diffusion_jax.types import Key, Params
from diffusion_jax.weights import lora


def clip_model(config: ConfigDict, tokenizer: captions.Tokenizer) -> CLIP:
    vision = construct(
        "clip.vision",
        functools.partial(CLIPVision, image_size=config.data.image_size),
        config.clip.vision,
    )
    options = {k: v for k, v in config.clip.items() if k not in ("text", "vision")}
    make = functools.partial(CLIP, text_encoder(config, tokenizer), vision)
    return construct("clip", make, options)


def text_encoder(config: ConfigDict, tokenizer: captions.Tokenizer) -> CLIPText:
    text = functools.partial(
        CLIPText,
        vocab_size=tokenizer.vocab_size,
        context_length=tokenizer.context_length,
        eos_id=tokenizer.eos_id,
    )
    return construct("clip.text", text, config.clip.text)


def text_encoders(config: ConfigDict, tokenizer: captions.AnyTokenizer) -> TextEncoders:
    """The towers whose fields are in `text_encoders`, or the one in `clip.text`."""
    if "text_encoders" not in config:
        return TextEncoders((text_encoder(config, tokenizer),))
    towers = {name: tower(name, config) for name in sorted(config.text_encoders)}
    return TextEncoders(
        tuple(towers.values()), tuple(towers), config.get("zero_empty", False)
    )


def tower(name: str, config: ConfigDict) -> Tower:
    """A text tower by its fields; with a `projection_dim`, a projected one."""
    fields = dict(config.text_encoders[name])
    projection_dim = fields.pop("projection_dim", None)
    text = construct(f"text_encoders.{name}", CLIPText, fields)
    return text if projection_dim is None else ProjectedText(text, projection_dim)


def autoencoder(config: ConfigDict) -> AutoencoderKL:
    return construct("vae", AutoencoderKL, config.vae)


def towers(
    config: ConfigDict, tokenizer: captions.AnyTokenizer
) -> latent_diffusion.Towers:
    sizes = (float(config.data.image_size),) * 2
    return latent_diffusion.Towers(
        autoencoder(config),
        text_encoders(config, tokenizer),
        hears_pooled(config),
        (*sizes, 0.0, 0.0, *sizes) if config.get("num_size_ids", 0) else (),
        config.get("size_id_width", 256),
        config.get("latent_shift", 0.0),
    )


def hears_pooled(config: ConfigDict) -> bool:
    """Whether the U-Net is told the pooled caption beside its tokens."""
    return config.unet.get("vector", "none") != "none"


def unet(config: ConfigDict) -> UNet:
    """Of latents, or without an autoencoder of pixels.

    Its output has twice their channels if it learns a variance too.
    """
    channels = config.vae.latent_channels if "vae" in config else 3
    channels *= 2 if learns_variance(config) else 1
    out = functools.partial(UNet, out_channels=channels)
    return construct("unet", out, config.unet)


def trained(
    config: ConfigDict, initial: Params | None = None
) -> latent_diffusion.Network:
    """The U-Net; all of it is trained, or with a `lora` its adaptation alone.

    All of it starts from `initial`, if given, instead of at random.
    """
    network = unet(config)
    if "lora" not in config and initial is None:
        return latent_diffusion.Network(network)
    if "lora" not in config:
        return latent_diffusion.Network(network, lambda key, frozen: initial)
    options = dict(config.lora)

    def init(key: Key, frozen: Params) -> Params:
        try:
            return {"lora": lora.init(key, {"unet": frozen["unet"]}, **options)}
        except (TypeError, ValueError) as error:
            raise ConfigError(f"lora: {error}") from error

    return latent_diffusion.Network(network, init, merged)


def sampling_params(params: Params, frozen: Params) -> Params:
    """What a pipeline takes: a run's towers, and the U-Net that it trained."""
    return {**frozen, "unet": merged(params, frozen)}


def merged(params: Params, frozen: Params) -> Params:
    """The U-Net's parameters of a run: what it trained, on top of what it froze."""
    if "lora" not in params:
        return params["unet"]
    return lora.merge({"unet": frozen["unet"]}, [params["lora"]], [1.0])["unet"]


def latent_shape(config: ConfigDict) -> tuple[int, int, int]:
    side = config.data.image_size // autoencoder(config).factor
    return side, side, config.vae.latent_channels
