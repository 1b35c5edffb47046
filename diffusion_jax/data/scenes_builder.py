"""Captioned scenes as a TensorFlow Datasets builder that needs no TensorFlow.

    builder = CaptionedScenes(config="32")
    builder.download_and_prepare()  # nothing is downloaded
    train = builder.as_data_source("train", decoders={"image": SkipDecoding()})

The test split holds out colour and shape pairs (scenes.HELD_OUT): none of them is in
train or validation, and each of its scenes shows at least one.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import scene_captions, scenes

SEED = 20_240_901
CHUNK = 250  # scenes rendered at once
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass
class ScenesConfig(tfds.core.BuilderConfig):
    """The size of the images, and how many scenes each split has."""

    image_size: int = 32
    num_train: int = 20_000
    num_validation: int = 1_000
    num_test: int = 1_000


def _sample(rng: np.random.Generator, split: str) -> tuple[scenes.Scene, str]:
    scene = scenes.sample(rng, held_out=split == "test")
    return scene, scene_captions.write(rng, scene_captions.claims_of(scene))


def generate(
    split: str, num_scenes: int, *, image_size: int
) -> Iterator[tuple[bytes, str]]:
    """PNG bytes and caption of each scene of a split, always the same ones."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
    rng = np.random.default_rng((SEED, SPLITS.index(split)))
    for start in range(0, num_scenes, CHUNK):
        num = min(CHUNK, num_scenes - start)
        batch = [_sample(rng, split) for _ in range(num)]
        images = scenes.render([scene for scene, _ in batch], image_size=image_size)
        for (_, caption), image in zip(batch, images):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png", compress_level=1)
            yield file.getvalue(), caption


class CaptionedScenes(tfds.core.GeneratorBasedBuilder):
    """One or two coloured shapes on a quiet background, and a caption of them."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[ScenesConfig]] = [
        ScenesConfig(name="32", description="32 pixels wide", image_size=32),
        ScenesConfig(name="64", description="64 pixels wide", image_size=64),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.image_size
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(size, size, 3), encoding_format="png"
                    ),
                    "caption": tfds.features.Text(),
                }
            ),
            supervised_keys=("caption", "image"),
        )

    def _split_generators(self, dl_manager) -> dict:
        config = self.builder_config
        counts = (config.num_train, config.num_validation, config.num_test)
        return {
            split: self._generate_examples(split, count)
            for split, count in zip(SPLITS, counts)
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        size = self.builder_config.image_size
        for key, (png, caption) in enumerate(generate(split, count, image_size=size)):
            # A file and not an array, which TFDS would encode with TensorFlow.
            yield key, {"image": io.BytesIO(png), "caption": caption}
