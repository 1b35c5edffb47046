"""Sources: functions that return a random-access sequence of `records.Record`.

All are picklable, read lazily, and never load pickled data. A TFDS label becomes a
caption through a template.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow_datasets

from diffusion_jax.data import records, scenes_builder, tar_index


def _prepare(builder: tensorflow_datasets.core.DatasetBuilder) -> None:
    """Builds the data set in its directory, never asking Google Cloud Storage."""
    settings = tensorflow_datasets.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=settings, file_format="array_record")


def scenes(
    split: str, *, image_size: int = 32, data_dir: str | pathlib.Path | None = None
) -> records.Source:
    """Captioned scenes (see scenes_builder.py), built on first use in some seconds."""
    configs = scenes_builder.CaptionedScenes.builder_configs
    if str(image_size) not in configs:
        sizes = ", ".join(configs)
        raise ValueError(f"no scenes of {image_size} pixels; one of {sizes}")

    def make_builder():
        return scenes_builder.CaptionedScenes(
            config=str(image_size), data_dir=data_dir and str(data_dir)
        )

    builder = make_builder()
    if not builder.info.splits:
        try:
            _prepare(builder)
        except OSError:
            # Another process was faster: its directory is in the way of ours.
            builder = make_builder()
            if not builder.info.splits:
                raise
    return _from_builder(builder, split, "image", ("caption",), None)


def tfds(
    name: str,
    split: str,
    *,
    image_key: str = "image",
    caption_key: str | None = None,
    label_key: str = "label",
    template: str = "a photo of a {label}",
    data_dir: str | pathlib.Path | None = None,
    download: bool = False,
) -> records.Source:
    """Any TFDS data set with an image and a caption or a label.

    `caption_key` may be a path such as "captions/text"; of several captions the first
    is taken. Without it, the name of the class `label_key` fills the template.
    """
    if caption_key is None and "{label}" not in template:
        raise ValueError(f"no {{label}} in the template {template!r}")
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir and str(data_dir))
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        raise ValueError(f"no TFDS data set {name!r}: {error}") from error
    if not builder.info.splits:
        if not download:
            raise FileNotFoundError(
                f"{name} is not prepared in {builder.data_dir}; download=True does it"
            )
        _prepare(builder)
    if caption_key is not None:
        keys, template = tuple(caption_key.split("/")), None
    else:
        keys = (label_key,)
    return _from_builder(builder, split, image_key, keys, template)


def _feature(features: Any, keys: Sequence[str], name: str) -> Any:
    """The feature at a path of keys, through sequences of dicts."""
    for key in keys:
        features = getattr(features, "feature", features)
        if key not in features:
            raise ValueError(f"{name} has no {key!r}; one of {', '.join(features)}")
        features = features[key]
    return features


def _from_builder(
    builder: tensorflow_datasets.core.DatasetBuilder,
    split: str,
    image_key: str,
    caption_keys: tuple[str, ...],
    template: str | None,
) -> records.Source:
    name = builder.info.full_name
    splits = builder.info.splits
    if unknown := [s for s in re.split(r"\[.*?\]|\+", split) if s and s not in splits]:
        raise ValueError(f"{name} has no split {unknown[0]!r}; one of {list(splits)}")
    image = _feature(builder.info.features, (image_key,), name)
    is_image = isinstance(image, tensorflow_datasets.features.Image)
    if not is_image:
        raise ValueError(f"{image_key!r} of {name} is no image but {image}")
    caption = _feature(builder.info.features, caption_keys, name)
    label_names = None
    if template is not None:
        if not isinstance(caption, tensorflow_datasets.features.ClassLabel):
            raise ValueError(f"{caption_keys[0]!r} of {name} is no label: {caption}")
        label_names = tuple(caption.names)
    skip = tensorflow_datasets.decode.SkipDecoding()
    try:
        rows = builder.as_data_source(split, decoders={image_key: skip})
    except NotImplementedError as error:
        raise ValueError(
            f"{name} is stored without random access ({builder.info.file_format});"
            " prepare it with file_format='array_record'"
        ) from error
    read = functools.partial(
        _read_example,
        name=f"{name}/{split}",
        image_key=image_key,
        caption_keys=caption_keys,
        template=template,
        label_names=label_names,
    )
    return records.Source(rows, read)


def _read_example(
    index: int,
    example: dict,
    *,
    name: str,
    image_key: str,
    caption_keys: tuple[str, ...],
    template: str | None,
    label_names: tuple[str, ...] | None,
) -> records.Record:
    value = example
    for key in caption_keys:
        value = value[key]
    if label_names is not None:
        label = label_names[int(value)].replace("_", " ")
        caption = template.replace("{label}", label)
    else:
        caption = _text(value, f"{name}[{index}]")
    return records.Record(example[image_key], caption, f"{name}[{index}]")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, (bytes, str)):
        value = value[0] if len(value) else ""
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise records.BadRecord(f"caption of {name}: {error}") from error


def tar_shards(
    paths: str | pathlib.Path | Sequence[str | pathlib.Path],
) -> records.Source:
    """Tar shards as img2dataset writes them: 000.jpg beside 000.txt.

    `paths` is a file, a pattern such as "shards/*.tar", or a list of either.
    """
    shards = tar_index.find_shards(paths)
    pairs = [pair for shard in shards for pair in tar_index.index(shard)]
    if not pairs:
        raise ValueError(f"no image in the {len(shards)} tar shards of {paths}")
    return records.Source(pairs, _read_pair)


def _read_pair(index: int, pair: tar_index.Pair) -> records.Record:
    caption = b"" if pair.text is None else tar_index.read(pair.shard, pair.text)
    image = tar_index.read(pair.shard, pair.image)
    name = f"{pair.shard}:{pair.image.name}"
    return records.Record(image, _text(caption, name), name)


SOURCES: dict[str, Callable[..., records.Source]] = {
    "scenes": scenes,
    "tfds": tfds,
    "tar_shards": tar_shards,
}
