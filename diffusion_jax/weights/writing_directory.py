"""A model as a directory that diffusers loads: the inverse of `directory.read`.

model_index.json   unet/ vae/ text_encoder[_2]/   config.json and weights
scheduler/         scheduler_config.json          tokenizer[_2]/   copied
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Params
from diffusion_jax.weights import published as published_models
from diffusion_jax.weights import writing, writing_configs
from diffusion_jax.weights.published import Published

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
TEXT_STEM = "model"


def write(
    directory: str | pathlib.Path,
    published: Published,
    load: Callable[[str], Params],
    *,
    dtypes: Mapping[str, Any] = MappingProxyType({}),
    variant: str | None = None,
    max_shard_size: int = writing.MAX_SHARD_SIZE,
) -> None:
    """Writes the directory, or nothing; `load` gives the parameters of one part.

    Of `published` everything but its tensors is used. One part is asked for at a time;
    `dtypes` says what a part is written in, where not in its own.
    """
    options = dict(variant=variant, max_shard_size=max_shard_size)
    configs = {}
    with writing.appearing_directory(directory) as root:
        for name in ("unet", "vae", *published.texts):
            state = writing.state_dict(
                load(name),
                prefix="text_model." if is_plain_text(published, name) else "",
                dtype=dtypes.get(name),
            )
            config = _config(name, published, state)
            (root / name).mkdir()
            stem = STEMS.get(name, TEXT_STEM)
            writing.write_tensors(root / name, stem, state, **options)
            writing.write_json(root / name / "config.json", config)
            configs[name] = config
        (root / "scheduler").mkdir()
        scheduler = root / "scheduler" / "scheduler_config.json"
        writing.write_json(scheduler, published.scheduler)
        for name, place in published.tokenizers.items():
            if name.replace("tokenizer", "text_encoder") in published.texts:
                copy_tokenizer(place, root / name)
        index = writing_configs.model_index(
            published.texts,
            published.scheduler,
            is_inpainting=configs["unet"]["in_channels"]
            == 2 * configs["vae"]["latent_channels"] + 1,
            zero_empty=published.zero_empty,
        )
        writing.write_json(root / "model_index.json", index)


def is_plain_text(published: Published, name: str) -> bool:
    """Whether it is a text encoder without a projection, whose own names are short."""
    return name in published.texts and "projection_dim" not in published.texts[name]


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
    """The files of a tokenizer, without whatever else lies beside them."""
    target.mkdir()
    for file in published_models.TOKENIZER_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)


def _config(name: str, published: Published, state: Mapping[str, Any]) -> dict:
    if name == "unet":
        return writing_configs.unet(UNet(**published.unet), _outside(published, state))
    if name == "vae":
        module = AutoencoderKL(**published.vae)
        return writing_configs.autoencoder(
            module,
            latent_scale=published.latent_scale,
            latent_shift=published.latent_shift,
            force_upcast=published.force_upcast,
            sample_size=published.sample_size * module.factor,
        )
    fields = dict(published.texts[name])
    projection_dim = fields.pop("projection_dim", None)
    return writing_configs.text(CLIPText(**fields), projection_dim=projection_dim)


def _outside(published: Published, state: Mapping[str, Any]) -> writing_configs.Outside:
    """What the U-Net's inputs are, which its weights tell."""
    contexts = {
        tensor.shape[1]
        for key, tensor in state.items()
        if key.endswith("attn2.to_k.weight")
    }
    vectors = [
        tensor.shape[1]
        for key, tensor in state.items()
        if key in ("add_embedding.linear_1.weight", "class_embedding.linear_1.weight")
    ]
    return writing_configs.Outside(
        in_channels=state["conv_in.weight"].shape[1],
        context_width=contexts.pop(),
        sample_size=published.sample_size,
        vector_width=vectors[0] if vectors else None,
        size_id_width=published.size_id_width if published.num_size_ids else None,
    )
