"""Ranks captions for an image, or images for a caption, by CLIP.

    python -m diffusion_jax.rank --weights DIR --image x.png --caption "a cat" --caption "a dog"
    python -m diffusion_jax.rank --workdir runs/clip --image a.png --image b.png --caption "a cat"

Prints the likeliest first, each with its probability among those given: captions for
every image, but images where one caption is given. DIR is a published CLIP in the
layout of transformers or OpenCLIP, or a safetensors file of OpenAI's original names,
which needs --tokenizer, a directory with vocab.json and merges.txt.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float

from diffusion_jax import build, command, runs
from diffusion_jax.data import captions, images, records
from diffusion_jax.evaluation import zero_shot
from diffusion_jax.models.clip import CLIP, MAX_LOG_SCALE, ProjectedVision
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.pipelines import batched_unclip
from diffusion_jax.types import Params
from diffusion_jax.weights import clip_checkpoint

BATCH_SIZE = 32
ONLY_WEIGHTS = ("tokenizer", "activation", "variant")


class Ranker(NamedTuple):
    """A CLIP with its weights, and what it reads texts with."""

    towers: ClipTowers
    params: Params  # of both towers
    tokenizer: captions.Tokenizer
    scale: float  # of the cosines

    def captions(
        self, pictures: Sequence[Float[np.ndarray, "_ _ 3"]], texts: Sequence[str]
    ) -> list[zero_shot.Ranked]:
        """For every square image in [-1, 1], which text describes it best."""
        found = self.embed_texts(texts)
        images = self.embed_images(pictures)
        return [zero_shot.rank(image, found, self.scale) for image in images]

    def images(
        self, text: str, pictures: Sequence[Float[np.ndarray, "_ _ 3"]]
    ) -> zero_shot.Ranked:
        """Which square image in [-1, 1] a text describes best."""
        found = self.embed_images(pictures)
        return zero_shot.rank(self.embed_texts([text])[0], found, self.scale)

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Of unit norm."""

        def encode(params, tokens):
            return self.towers.encode_text(params, tokens).embed

        return self._of_rows(encode, self.tokenizer(texts))

    def embed_images(
        self, pictures: Sequence[Float[np.ndarray, "_ _ 3"]]
    ) -> Float[np.ndarray, "N E"]:
        """Of unit norm; all of one size."""
        return self._of_rows(self.towers.encode_image, np.stack(pictures))

    def _of_rows(self, encode: Callable, rows: np.ndarray) -> np.ndarray:
        size = min(BATCH_SIZE, len(rows))
        run = batched_unclip.mapped(encode, batch_size=size)
        return np.concatenate(list(run(self.params, rows)))


def split(model: CLIP, params: Params, **normalisation) -> tuple[ClipTowers, Params]:
    """The two towers of a CLIP, and their parameters."""
    towers = ClipTowers(
        ProjectedText(model.text_model, model.projection_dim),
        ProjectedVision(model.vision_model, model.projection_dim),
        **normalisation,
    )
    return towers, build.unclip.clip_params(params)


def of_run(workdir: str, *, step: int | None = None) -> Ranker:
    """The CLIP that a run trained."""
    name = runs.read_config(workdir).task.name
    if name != "clip":
        raise build.ConfigError(f"{workdir} trained a {name}, not a clip")
    run = runs.load(workdir, step=step)
    model = build.clip_model(run.config, run.tokenizer)
    return Ranker(*split(model, run.params), run.tokenizer, scale_of(run.params))


def of_weights(
    path: str,
    *,
    tokenizer: str | None = None,
    activation: str | None = None,
    variant: str | None = None,
) -> Ranker:
    """A published CLIP; `tokenizer` and `activation` where its files do not say."""
    found = clip_checkpoint.read(
        pathlib.Path(path).expanduser(), activation=activation, variant=variant
    )
    place = found.tokenizer if tokenizer is None else pathlib.Path(tokenizer)
    if place is None:
        raise build.ConfigError(
            f"{path} has no tokenizer; give the directory of one (vocab.json, "
            "merges.txt) with --tokenizer"
        )
    length = found.text["context_length"]
    reader = captions.load_tokenizer(place.expanduser(), context_length=length)
    if reader.vocab_size > found.text["vocab_size"]:
        raise build.ConfigError(
            f"the tokenizer in {place} has {reader.vocab_size} tokens, the text "
            f"tower {found.text['vocab_size']}"
        )
    params = clip_checkpoint.load_params(found)
    pixels = dict(image_mean=found.image_mean, image_std=found.image_std)
    towers, parts = split(clip_checkpoint.module(found), params, **pixels)
    return Ranker(towers, parts, reader, scale_of(params))


def scale_of(params: Params) -> float:
    """What multiplies the cosines, at most 100."""
    return math.exp(min(float(params["logit_scale"]), MAX_LOG_SCALE))


def read_picture(path: str, size: int) -> Float[np.ndarray, "S S 3"]:
    """The middle square of a picture, at `size` pixels a side."""
    if not pathlib.Path(path).is_file():
        raise build.ConfigError(f"no image {path}")
    try:
        image = images.decode(pathlib.Path(path).read_bytes())
    except records.BadRecord as error:
        raise build.ConfigError(f"{path} is {error}") from error
    return images.to_float(images.square(image, size, crop="center"))


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    named = dict(flag_values=values)
    flags.DEFINE_string("weights", None, "A published CLIP.", **named)
    flags.DEFINE_string("workdir", None, "A run that trained a CLIP.", **named)
    flags.DEFINE_integer("step", None, "Its checkpoint; else the newest.", **named)
    flags.DEFINE_string("tokenizer", None, "Where the weights have none.", **named)
    flags.DEFINE_enum(
        "activation",
        None,
        list(clip_checkpoint.ACTIVATIONS),
        "Where a file does not say: quick_gelu for OpenAI's weights.",
        **named,
    )
    flags.DEFINE_string("variant", None, "Of a directory's files: fp16.", **named)
    flags.DEFINE_multi_string("image", [], "A picture; may be given often.", **named)
    flags.DEFINE_multi_string("caption", [], "A text; may be given often.", **named)
    flags.DEFINE_bool("json", False, "Print one JSON line for each list.", **named)


def check(values: flags.FlagValues) -> None:
    """Raises for a call that ranks nothing, before any weights are read."""
    if (values.weights is None) == (values.workdir is None):
        raise build.ConfigError("give --weights or --workdir, and not both")
    for name in ONLY_WEIGHTS:
        if values.workdir is not None and values[name].value is not None:
            raise build.ConfigError(f"--{name} is for --weights")
    if values.weights is not None and values.step is not None:
        raise build.ConfigError("--step is for --workdir")
    if not values.image or not values.caption:
        raise build.ConfigError("give at least one --image and one --caption")
    if len(values.image) == len(values.caption) == 1:
        raise build.ConfigError("nothing to rank: give several of --caption or --image")
    for path in values.image:
        read_picture(path, 1)


def load(values: flags.FlagValues) -> Ranker:
    """The model that the flags name."""
    if values.workdir is not None:
        return of_run(values.workdir, step=values.step)
    try:
        options = {name: values[name].value for name in ONLY_WEIGHTS}
        return of_weights(values.weights, **options)
    except ValueError as error:
        raise build.ConfigError(str(error)) from error


def run(values: flags.FlagValues) -> None:
    """Prints the lists that the flags ask for."""
    check(values)
    ranker = load(values)
    size = ranker.towers.image.vision_model.image_size
    pictures = [read_picture(path, size) for path in values.image]
    if len(values.caption) == 1:
        (text,) = values.caption
        show(text, values.image, ranker.images(text, pictures), as_json=values.json)
        return
    for path, ranked in zip(values.image, ranker.captions(pictures, values.caption)):
        show(path, values.caption, ranked, as_json=values.json)


def show(
    query: str, candidates: Sequence[str], ranked: zero_shot.Ranked, *, as_json: bool
) -> None:
    """The candidates in their order, below what they were ranked for."""
    named = [candidates[i] for i in ranked.order]
    if as_json:
        shares = ranked.probabilities
        found = {"query": query, "ranked": named, "probabilities": shares}
        print(json.dumps(found, ensure_ascii=False))
        return
    print(query)
    for name, share in zip(named, ranked.probabilities):
        print(f"  {share:.4f}  {name}")


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    run(flags.FLAGS)


if __name__ == "__main__":
    define_flags()
    command.run(main)
