"""preprocessor_config.json of transformers' CLIPImageProcessor: how CLIP sees an image.

Here an image is square before CLIP sees it. It is resized to the tower's size whatever
the file says of cropping, which leaves a square as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.models import clip_towers
from diffusion_jax.weights import config_fields
from diffusion_jax.weights.config_fields import Field, honoured, only, without_effect

CLASSES = ("CLIPImageProcessor", "CLIPFeatureExtractor")
CLASSES += tuple(f"CLIPImageProcessor{name}" for name in ("Fast", "Pil"))
FILE = "preprocessor_config.json"
BICUBIC = 3
_KIND = "checked with the directory"
TABLE: dict[str, Field] = {
    "image_mean": honoured(clip_towers.PUBLISHED_MEAN, "image_mean, of [0, 1]"),
    "image_std": honoured(clip_towers.PUBLISHED_STD, "image_std, of [0, 1]"),
    "size": honoured(None, "must be the tower's"),
    "crop_size": honoured(None, "must be the tower's"),
    "resample": only(BICUBIC),
    "do_resize": only(True, None),
    "do_rescale": only(True, None),
    "do_normalize": only(True, None),
    "do_center_crop": without_effect("of squares", True),
    "do_convert_rgb": without_effect("images have three channels", True),
    "rescale_factor": honoured(1 / 255, "must be 1 / 255"),
    "do_pad": only(None, False),
    "pad_size": without_effect("there is no padding"),
    "default_to_square": without_effect("of squares"),
    "feature_extractor_type": without_effect(_KIND),
    "image_processor_type": without_effect(_KIND),
    "processor_class": without_effect("who wrote it"),
    "_valid_processor_keys": without_effect("who wrote it"),
    "data_format": without_effect("how arrays are laid out"),
    "input_data_format": without_effect("how arrays are laid out"),
    "return_tensors": without_effect("of what kind arrays are"),
    "device": without_effect("where it is computed"),
    "disable_grouping": without_effect("how it is computed"),
    "image_seq_length": without_effect("of models of text and images"),
}


class Read(NamedTuple):
    """What a config says of values in [0, 1], and of sizes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int  # pixels a side


def read(config: Mapping[str, Any], *, size: int) -> Read:
    """How images become what a tower of this `size` reads.

    Raises a `Refused` that lists every field that we would not honour.
    """
    given, problems = config_fields.read(config, TABLE)
    for name in ("image_mean", "image_std"):
        if len(given[name]) != 3:
            problems.append(f"{name} has {len(given[name])} entries (only 3)")
    if min(given["image_std"]) <= 0:
        problems.append(f"image_std = {list(given['image_std'])} (only above 0)")
    if abs(given["rescale_factor"] * 255 - 1) > 1e-6:
        problems.append(f"rescale_factor = {given['rescale_factor']} (only 1 / 255)")
    crops = config.get("do_center_crop", True)
    for name in ("size", "crop_size") if crops else ("size",):
        sides = _sides(given[name])
        if sides and sides != {size}:
            problems.append(f"{name} = {given[name]} (only {size}, image_encoder's)")
    if problems:
        raise config_fields.Refused(CLASSES[0], problems)
    mean, std = (tuple(map(float, given[name])) for name in ("image_mean", "image_std"))
    return Read(mean, std, size)


def _sides(size: Any) -> set:
    """Every side that is named; none where the file is silent."""
    if size is None:
        return set()
    return set(size.values()) if isinstance(size, Mapping) else {size}
