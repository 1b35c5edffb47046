"""Published models in the layout of diffusers: one directory for each module.

model_index.json  unet/  vae/  text_encoder[_2]/  tokenizer[_2]/  scheduler/
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diffusion_jax.weights import (
    autoencoder_config,
    config_fields,
    tensors,
    text_config,
    unet_config,
)
from diffusion_jax.weights.published import Published
from diffusion_jax.weights.tensors import Stored

INDEX = "model_index.json"
CONFIG, SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
PLAIN = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
)
XL = (
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)
TEXTS = ("text_encoder", "text_encoder_2")
CLASSES = {  # of diffusers and transformers, by directory
    "unet": (unet_config.CLASS,),
    "vae": (autoencoder_config.CLASS,),
    **dict.fromkeys(TEXTS, text_config.CLASSES),
    **dict.fromkeys(
        ("tokenizer", "tokenizer_2"), ("CLIPTokenizer", "CLIPTokenizerFast")
    ),
}
IGNORED = ("safety_checker", "feature_extractor", "image_encoder")
OPTIONS = (
    *("requires_safety_checker", "add_watermarker", "requires_aesthetics_score"),
    "force_zeros_for_empty_prompt",
)
# The pipelines of XL read the states before the last layer, without the last norm.
OF_XL = dict(skip_layers=1, norm_hidden=False)
NUM_SIZE_IDS = {False: 6, True: 5}  # by requires_aesthetics_score


def read(directory: str | pathlib.Path, *, variant: str | None = None) -> Published:
    """The model in a directory; tensors are not read yet.

    `variant` ("fp16") chooses among the weights of a module where it has several; a
    module that has none of that name is read without.
    """
    directory = pathlib.Path(directory)
    index = read_index(directory)
    parts = components(directory, index)
    is_xl = index["_class_name"] in XL
    configs = {
        name: config_of(
            directory, name, kind, text_config.wrong_class if name in TEXTS else None
        )
        for name, kind in parts.items()
        if name in ("unet", "vae", *TEXTS)
    }
    vae, unet, texts = _read_configs(directory, parts, configs)
    if is_xl:
        texts = {name: fields | OF_XL for name, fields in texts.items()}
    num_size_ids = _num_size_ids(directory, index, unet, texts)
    found = open_tensors(directory, configs, variant)
    published = Published(
        unet=unet.fields,
        vae=vae.fields,
        texts=texts,
        tokenizers={
            name: directory / name for name in parts if name.startswith("tokenizer")
        },
        scheduler=config_fields.read_json(directory / "scheduler" / SCHEDULER_CONFIG),
        tensors=found,
        latent_scale=vae.latent_scale,
        latent_shift=vae.latent_shift,
        sample_size=unet.sample_size,
        num_size_ids=num_size_ids,
        size_id_width=unet.size_id_width or 256,
        zero_empty=is_xl and bool(index.get("force_zeros_for_empty_prompt", True)),
        force_upcast=vae.force_upcast,
    )
    _check_widths(directory, unet, published)
    return published


# ---- model_index.json ---------------------------------------------------------------


def read_index(
    directory: pathlib.Path, kinds: Sequence[str] = PLAIN + XL
) -> dict[str, Any]:
    """What model_index.json says, if it is of one of these pipelines."""
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {directory}")
    if not (directory / INDEX).is_file():
        files = sorted(path.name for path in directory.glob("*.safetensors"))
        hint = f"; to read one file, name it: {tensors.shown(files)}" if files else ""
        raise FileNotFoundError(
            f"{directory} has no {INDEX}: it is no model in the diffusers layout{hint}"
        )
    index = config_fields.read_json(directory / INDEX)
    kind = index.get("_class_name")
    if kind not in kinds:
        raise ValueError(
            f"{directory / INDEX} is of a {kind}, which is not supported; "
            f"one of {', '.join(kinds)}"
        )
    return index


def components(directory: pathlib.Path, index: Mapping[str, Any]) -> dict[str, str]:
    """Module -> its class, of those that are read; each must be there."""
    parts, problems = listed(
        index, CLASSES, others=("scheduler",), ignored=(*IGNORED, *OPTIONS)
    )
    is_xl = index["_class_name"] in XL
    wanted = ["unet", "vae", "scheduler", "text_encoder_2" if is_xl else "text_encoder"]
    wanted += [
        name.replace("text_encoder", "tokenizer") for name in TEXTS if name in parts
    ]
    problems += [f"{name} is not given" for name in wanted if name not in parts]
    if not is_xl and "text_encoder_2" in parts:
        problems.append("text_encoder_2 is of XL")
    check_there(directory, parts, problems)
    return parts


def listed(
    index: Mapping[str, Any],
    classes: Mapping[str, Sequence[str]],
    *,
    others: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """Module -> its class, of those that are not null, and what is wrong with them.

    Modules of `others` may be of any class.
    """
    parts, problems = {}, []
    for name, value in index.items():
        if name.startswith("_") or name in ignored:
            continue
        if name not in (*classes, *others):
            problems.append(f"{name} is not known")
        elif isinstance(value, list) and len(value) == 2 and value[1] is not None:
            parts[name] = str(value[1])
    for name, kind in parts.items():
        if kind not in classes.get(name, (kind,)):
            problems.append(f"{name} is a {kind} (only {' or '.join(classes[name])})")
    return parts, problems


def check_there(
    directory: pathlib.Path, parts: Iterable[str], problems: Sequence[str]
) -> None:
    """Raises if there are problems or directories of parts are missing."""
    if problems:
        raise ValueError(f"{directory / INDEX}: {'; '.join(problems)}")
    missing = [name for name in parts if not (directory / name).is_dir()]
    if missing:
        shown = ", ".join(f"{name}/" for name in missing)
        raise FileNotFoundError(f"{directory} lacks {shown}, which its {INDEX} names")


# ---- configs ------------------------------------------------------------------------


def config_of(
    directory: pathlib.Path,
    name: str,
    kind: str,
    wrong_class: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> dict[str, Any]:
    """A module's config.json, if it is of that class.

    `wrong_class` says what else it is of, where that is more than comparing names.
    """
    path = directory / name / CONFIG
    config = config_fields.read_json(path)
    found = config.get("_class_name", kind)
    if wrong_class is not None:
        found = (wrong_class(config) or [kind])[0]
    elif "model_type" in config:
        found = config["model_type"]
    if found != kind:
        raise ValueError(f"{path} is not of a {kind}: {found}")
    return config


def _read_configs(
    directory: pathlib.Path, parts: Mapping[str, str], configs: Mapping[str, Any]
) -> tuple[autoencoder_config.Read, unet_config.Read, dict[str, dict[str, Any]]]:
    """What they say; all that is refused in any of them is one error."""
    problems: list[str] = []
    vae = attempt(directory, "vae", problems, autoencoder_config.read, configs["vae"])
    latent_channels = vae.fields["latent_channels"] if vae else 4
    unet = attempt(
        directory,
        "unet",
        problems,
        unet_config.read,
        configs["unet"],
        latent_channels=latent_channels,
    )
    texts = {
        name: attempt(
            directory,
            name,
            problems,
            text_config.read,
            configs[name],
            projected=parts[name] == text_config.PROJECTED,
        )
        for name in TEXTS
        if name in parts
    }
    if problems:
        raise ValueError("; ".join(problems))
    return vae, unet, texts


def attempt(
    directory: pathlib.Path, name: str, problems: list[str], read: Any, *args, **options
) -> Any:
    """What `read` makes of a config, or nothing and an entry in `problems`."""
    try:
        return read(*args, **options)
    except config_fields.Refused as error:
        problems.append(f"{directory / name / CONFIG}: {error}")
        return None


def _num_size_ids(
    directory: pathlib.Path,
    index: Mapping[str, Any],
    unet: unet_config.Read,
    texts: Mapping[str, Mapping[str, Any]],
) -> int:
    path = directory / "unet" / CONFIG
    is_xl = index["_class_name"] in XL
    if is_xl != (unet.vector_width is not None):
        said = "text_time" if unet.vector_width is not None else "null"
        raise ValueError(
            f"{path}: addition_embed_type = {said} in a {index['_class_name']}"
        )
    if not is_xl:
        return 0
    if "projection_dim" not in texts["text_encoder_2"]:
        raise ValueError(
            f"{directory / INDEX}: text_encoder_2 is a {text_config.PLAIN} (only "
            f"{text_config.PROJECTED})"
        )
    count = NUM_SIZE_IDS[bool(index.get("requires_aesthetics_score", False))]
    pooled = texts["text_encoder_2"]["projection_dim"]
    expected = pooled + count * unet.size_id_width
    if unet.vector_width != expected:
        raise ValueError(
            f"{path}: projection_class_embeddings_input_dim = {unet.vector_width}, but "
            f"text_encoder_2 gives {pooled} and {count} size ids {unet.size_id_width} each"
        )
    return count


def _check_widths(
    directory: pathlib.Path, unet: unet_config.Read, published: Published
) -> None:
    path = directory / "unet" / CONFIG
    width = sum(fields["width"] for fields in published.texts.values())
    if unet.context_width != width:
        raise ValueError(
            f"{path}: cross_attention_dim = {unet.context_width}, but the text encoders' "
            f"width is {width}"
        )
    if unet.in_channels != published.in_channels:
        raise ValueError(
            f"{path}: in_channels = {unet.in_channels}, but conv_in.weight has "
            f"{published.in_channels}"
        )


# ---- tensors ------------------------------------------------------------------------


def open_tensors(
    directory: pathlib.Path, names: Iterable[str], variant: str | None
) -> dict[str, dict[str, Stored]]:
    """Those of the named modules, not read yet."""
    there = {
        name: tensors.variants([path.name for path in (directory / name).iterdir()])
        for name in names
    }
    if variant is not None and not any(variant in found for found in there.values()):
        known = sorted({str(v) for found in there.values() for v in found if v})
        raise ValueError(f"{directory} has no variant {variant!r}; one of {known}")
    return {
        name: tensors.open_component(
            directory / name, variant=variant if variant in there[name] else None
        )
        for name in names
    }
