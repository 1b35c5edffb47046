"""Karlo, the published unCLIP (kakaobrain/karlo-v1-alpha), in the layout of diffusers.

text to image     model_index.json  prior/  prior_scheduler/  and those of both
image variation   model_index.json  image_encoder/  feature_extractor/  and those of both
of both           text_encoder/  tokenizer/  text_proj/  decoder/  decoder_scheduler/
                  super_res_first/  super_res_last/  super_res_scheduler/
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from diffusion_jax.weights import (
    config_fields,
    directory,
    image_config,
    prior_config,
    scheduler_config,
    tensors,
    text_config,
    text_proj_config,
    unclip_unet_config,
    vision_config,
)
from diffusion_jax.weights.published_unclip import PublishedUnclip, Row

TEXT_TO_IMAGE, VARIATION = "UnCLIPPipeline", "UnCLIPImageVariationPipeline"
OWN = {  # the parts of each, beside those of both
    TEXT_TO_IMAGE: ("prior", "prior_scheduler"),
    VARIATION: ("image_encoder", "feature_extractor"),
}
PIPELINES = tuple(OWN)
LENT = tuple(name for parts in OWN.values() for name in parts)  # to the other kind
CLASSES = {  # of diffusers and transformers, by directory
    "prior": (prior_config.CLASS,),
    "image_encoder": (vision_config.CLASS,),
    "text_encoder": (text_config.PROJECTED,),
    "text_proj": (text_proj_config.CLASS,),
    "decoder": (unclip_unet_config.DECODER,),
    "super_res_first": (unclip_unet_config.UPSAMPLER,),
    "super_res_last": (unclip_unet_config.UPSAMPLER,),
    "feature_extractor": image_config.CLASSES,
    "tokenizer": directory.CLASSES["tokenizer"],
    "prior_scheduler": ("UnCLIPScheduler",),
    "decoder_scheduler": ("UnCLIPScheduler",),
    "super_res_scheduler": ("UnCLIPScheduler",),
}
SCHEDULERS = tuple(name for name in CLASSES if name.endswith("_scheduler"))
SHARED = ("text_encoder", "tokenizer", "text_proj", "decoder", "decoder_scheduler")
SHARED += ("super_res_first", "super_res_last", "super_res_scheduler")
READERS: dict[str, Callable[..., Any]] = {
    "prior": prior_config.read,
    "image_encoder": vision_config.read,
    "text_encoder": text_config.read,
    "text_proj": text_proj_config.read,
    "decoder": unclip_unet_config.read_decoder,
    "super_res_first": unclip_unet_config.read_upsampler,
    "super_res_last": unclip_unet_config.read_upsampler,
}
MODULES = tuple(READERS)  # those that have tensors
EMBEDDING_SCALE = ("clip_mean", "clip_std")


def read(
    path: str | pathlib.Path,
    *,
    image_directory: str | pathlib.Path | None = None,
    variant: str | None = None,
) -> PublishedUnclip:
    """The model in a directory; tensors are not read yet.

    The directory is of text to image or of image variation; with an `image_directory`
    of the other kind the model does both; what both have is the first one's, and of the
    other nothing but `LENT` and the text encoder's config need be there. `variant` as of
    `directory.read`; the other may have none of that name.
    """
    places = _places(pathlib.Path(path), image_directory)
    made, problems = {}, []
    for name in MODULES:
        if name in places:
            made[name] = _read_module(places[name], name, problems)
    if problems:
        raise ValueError("; ".join(problems))
    if image_directory is not None:
        _check_same_clip(pathlib.Path(image_directory), made["text_encoder"])
    has_images = "image_encoder" in made
    image = _read_preprocessing(places, made) if has_images else None
    schedulers = {
        name: config_fields.read_json(places[name] / name / directory.SCHEDULER_CONFIG)
        for name in SCHEDULERS
        if name in places
    }
    _check_schedulers(places, schedulers)
    _check_widths(places, made)
    published = PublishedUnclip(
        text=made["text_encoder"],
        text_proj=made["text_proj"].fields,
        decoder=made["decoder"].fields,
        super_res={
            name: made[name].fields for name in ("super_res_first", "super_res_last")
        },
        size=made["decoder"].size,
        super_res_size=made["super_res_first"].size,
        tokenizer=places["tokenizer"] / "tokenizer",
        schedulers=schedulers,
        tensors=_open_tensors(places, made, variant),
        prior=made.get("prior"),
        image=made.get("image_encoder"),
    )
    if image is None:
        return published
    return published._replace(image_mean=image.mean, image_std=image.std)


# ---- model_index.json ---------------------------------------------------------------


def components(
    root: pathlib.Path,
    index: Mapping[str, Any],
    only: Collection[str] | None = None,
) -> dict[str, str]:
    """Part -> its class, of those that are read (of `only`); each must be there."""
    kind = index["_class_name"]
    wanted = (*OWN[kind], *SHARED)
    parts, problems = directory.listed(index, CLASSES)
    problems += [f"{name} is not given" for name in wanted if name not in parts]
    problems += [f"{name} is not of a {kind}" for name in parts if name not in wanted]
    if only is not None:
        parts = {name: kind for name, kind in parts.items() if name in only}
    directory.check_there(root, parts, problems)
    return parts


def _places(
    path: pathlib.Path, other: str | pathlib.Path | None
) -> dict[str, pathlib.Path]:
    """Part -> the directory from which it is taken."""
    paths = [path] if other is None else [path, pathlib.Path(other)]
    indices = [directory.read_index(each, PIPELINES) for each in paths]
    kinds = [index["_class_name"] for index in indices]
    if len(kinds) > len(set(kinds)):
        raise ValueError(f"{paths[0]} and {paths[1]} are both of a {kinds[0]}")
    places = dict.fromkeys(components(paths[0], indices[0]), paths[0])
    if other is not None:
        places |= dict.fromkeys(components(paths[1], indices[1], LENT), paths[1])
    return places


# ---- configs ------------------------------------------------------------------------


def _read_module(root: pathlib.Path, name: str, problems: list[str]) -> Any:
    """What a module's config says, or nothing and an entry in `problems`."""
    if name in ("text_encoder", "image_encoder"):  # whose readers look at the class
        config = config_fields.read_json(root / name / directory.CONFIG)
    else:
        config = directory.config_of(root, name, CLASSES[name][0])
    options = {"projected": True} if name == "text_encoder" else {}
    return directory.attempt(root, name, problems, READERS[name], config, **options)


def _read_preprocessing(
    places: Mapping[str, pathlib.Path], made: Mapping[str, Any]
) -> image_config.Read:
    path = places["feature_extractor"] / "feature_extractor" / image_config.FILE
    size = made["image_encoder"]["image_size"]
    try:
        return image_config.read(config_fields.read_json(path), size=size)
    except config_fields.Refused as error:
        raise ValueError(f"{path}: {error}") from None


def _check_same_clip(root: pathlib.Path, text: Mapping[str, Any]) -> None:
    """As far as configs tell: of the directory whose text encoder is not taken.

    Its tensors need not be there, so another CLIP of the same size is not noticed.
    """
    problems: list[str] = []
    other = _read_module(root, "text_encoder", problems)
    if problems or other != text:
        raise ValueError(
            f"{root} is of another CLIP: its text_encoder/{directory.CONFIG} differs"
        )


def _check_schedulers(
    places: Mapping[str, pathlib.Path], schedulers: Mapping[str, Mapping[str, Any]]
) -> None:
    """The decoder's network has a variance for what it draws, the others have none."""
    for name, config in schedulers.items():
        path = places[name] / name / directory.SCHEDULER_CONFIG
        try:
            recipe = scheduler_config.read(config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        has_variance = name == "decoder_scheduler"
        if recipe.learned_variance != has_variance:
            kind = "learned_range" if has_variance else "fixed_small_log"
            said = config.get("variance_type", "fixed_small_log")
            raise ValueError(f"{path}: variance_type = {said!r} (only {kind!r})")


def _check_widths(places: Mapping[str, pathlib.Path], made: Mapping[str, Any]) -> None:
    """What one part makes has the width that another reads."""
    text, projection, decoder = (
        made[name] for name in ("text_encoder", "text_proj", "decoder")
    )
    embed = (projection.embed_width, "text_proj's clip_embeddings_dim")
    heard = (projection.fields["time_width"], "text_proj's time_embed_dim")
    context = (projection.fields["context_width"], "text_proj's cross_attention_dim")
    length = (text["context_length"], "text_encoder's max_position_embeddings")
    size = (made["super_res_first"].size, "super_res_first's sample_size")
    checks = [
        ("text_encoder", "projection_dim", text["projection_dim"], embed),
        ("text_encoder", "hidden_size", text["width"], embed),
        ("decoder", "cross_attention_dim", decoder.context_width, context),
        ("decoder", "4 * block_out_channels[0]", decoder.time_width, heard),
        ("super_res_last", "sample_size", made["super_res_last"].size, size),
    ]
    if "prior" in made:
        prior = made["prior"]
        checks += [
            ("prior", "embedding_dim", prior["embed_dim"], embed),
            ("prior", "num_embeddings", prior["num_tokens"], length),
        ]
    if "image_encoder" in made:
        image = made["image_encoder"]
        checks += [("image_encoder", "projection_dim", image["projection_dim"], embed)]
    for name, field, found, (wanted, whose) in checks:
        if found != wanted:
            path = places[name] / name / directory.CONFIG
            raise ValueError(f"{path}: {field} = {found}, but {whose} is {wanted}")


# ---- tensors ------------------------------------------------------------------------


def _open_tensors(
    places: Mapping[str, pathlib.Path], names: Iterable[str], variant: str | None
) -> dict[str, Mapping[str, Any]]:
    """Those of every module, not read yet; the prior's scale of embeddings apart."""
    roots: dict[pathlib.Path, list[str]] = {}
    for name in names:
        roots.setdefault(places[name], []).append(name)
    found: dict[str, Mapping[str, Any]] = {}
    for root, inside in roots.items():
        own = variant if "decoder" in inside else variant_there(root, inside, variant)
        found |= directory.open_tensors(root, inside, own)
    if "prior" in found:
        scale, found["prior"] = _split(found["prior"], EMBEDDING_SCALE)
        if missing := [name for name in EMBEDDING_SCALE if name not in scale]:
            raise ValueError(f"{places['prior'] / 'prior'} has no {missing[0]}")
        found["embedding"] = {name: Row(stored) for name, stored in scale.items()}
    return found


def variant_there(
    root: pathlib.Path, names: Iterable[str], variant: str | None
) -> str | None:
    """The variant, if any of these modules has one."""
    there = [path.name for n in names for path in (root / n).iterdir()]
    return variant if variant in tensors.variants(there) else None


def _split(
    stored: Mapping[str, Any], names: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of these names, and the others."""
    inside = {name: stored[name] for name in stored if name in names}
    return inside, {name: stored[name] for name in stored if name not in names}
