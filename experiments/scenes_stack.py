"""The small DALL·E 2 of `experiments.scenes_dalle2` as programs on arrays, and its scenes.

Images that go in are of the size that CLIP saw in training. Each program compiles once,
whatever the number of images.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from diffusion_jax import build, previews, published_unclip, rank, unclip_runs
from diffusion_jax.data import scene_captions, scene_verifier
from diffusion_jax.evaluation import accuracy, retrieval
from diffusion_jax.pipelines import batched_unclip, best_of, manipulations
from diffusion_jax.pipelines.batched_unclip import Rows, Scales
from diffusion_jax.pipelines.dalle2 import Dalle2
from diffusion_jax.pipelines.manipulations import Code
from diffusion_jax.pipelines.stage import image_keys
from diffusion_jax.types import Params

BATCH = 32
NUM_VARIATIONS = 4  # of an image by a published model, whose images are large
CORRECTIONS = 1  # of each step of the inversion


class Scenes(NamedTuple):
    """Images of a split, in [-1, 1], and what their captions say."""

    images: np.ndarray
    captions: list[str]

    def take(self, chosen: slice | Sequence[int]) -> "Scenes":
        indices = np.arange(len(self.captions))[chosen]
        return Scenes(self.images[indices], [self.captions[i] for i in indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A trained stack: what the experiments do with it."""

    stack: unclip_runs.Stack
    batch_size: int = BATCH  # of every program

    @property
    def pipeline(self) -> Dalle2:
        return self.stack.pipeline

    @property
    def params(self) -> Params:
        return self.stack.params

    @functools.cached_property
    def null(self) -> np.ndarray:
        return self.tokens([""])

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        return np.asarray(self.stack.tokenizer(list(captions)))

    def scenes(self, split: str, count: int, stage: str = "decoder") -> Scenes:
        """The first of a split, of the size of the data of this stage's training."""
        config = self.stack.configs[stage]
        return Scenes(*_first(config, self.stack.tokenizer, split, count))

    def program(self, function: Callable, batch_size: int | None = None) -> Callable:
        """(rows, *others) -> arrays, of a function of (params, rows, *others)."""
        size = batch_size or self.batch_size
        run = batched_unclip.mapped(function, batch_size=size)
        return lambda rows, *others: joined(run(self.params, rows, *others))

    # ---- captions to images ----------------------------------------------------------

    @functools.cached_property
    def _generate(self) -> Callable:
        return batched_unclip.generator(
            self.pipeline, batch_size=self.batch_size, num_upsamplers=0
        )

    def draw(
        self,
        captions: Sequence[str],
        *,
        embed: np.ndarray | None = None,
        scales: Scales = batched_unclip.OF_THE_STAGES,
        seed: int = 0,
    ) -> np.ndarray:
        """The decoder's images, of the prior's embeddings unless there are others."""
        rows = Rows(self.tokens(captions), np.arange(len(captions)), embed)
        made = self._generate(self.params, rows, self.null, seed=seed, scales=scales)
        return joined(made)

    @functools.cached_property
    def _upsample(self) -> list[Callable]:
        def upsampler(i: int) -> Callable:
            def upsample(params, rows, seed):
                images, index = rows
                keys = image_keys(jax.random.key(seed), index)
                return self.pipeline.upsample_once(params, keys, images, i)

            return self.program(upsample)

        return [upsampler(i) for i in range(len(self.pipeline.upsamplers))]

    def enlarge(
        self, images: np.ndarray, *, first: int = 0, last: int | None = None, seed=0
    ) -> np.ndarray:
        """Through the upsamplers [first, last), default all; rows of images as rows."""
        rows, images = images.shape[:-3], images.reshape(-1, *images.shape[-3:])
        for upsample in self._upsample[first:last]:
            images = upsample((images, np.arange(len(images))), seed)
        return images.reshape(*rows, *images.shape[1:])

    @property
    def num_before_clip(self) -> int:
        """So many upsamplers make images of the size that CLIP sees, or larger."""
        return best_of.num_before_choice(self.pipeline)

    # ---- embeddings ------------------------------------------------------------------

    @functools.cached_property
    def embed_images(self) -> Callable[[np.ndarray], np.ndarray]:
        return self.program(self.pipeline.encode_image)

    @functools.cached_property
    def _embed_texts(self) -> Callable:
        def embed(params, tokens):
            return self.pipeline.clip.encode_text(params, tokens).embed

        return self.program(embed)

    def embed_texts(self, captions: Sequence[str]) -> np.ndarray:
        return self._embed_texts(self.tokens(captions))

    @functools.cached_property
    def _draw_embedding(self) -> Callable:
        def draw(params, rows, null, seed):
            tokens, index = rows
            keys = image_keys(jax.random.key(seed), index)
            texts = [self.pipeline.encode_text(params, t) for t in (tokens, null)]
            return self.pipeline.draw_embedding(params, keys, *texts)

        return self.program(draw)

    def draw_embedding(self, captions: Sequence[str], *, seed: int = 0) -> np.ndarray:
        rows = self.tokens(captions), np.arange(len(captions))
        return self._draw_embedding(rows, self.null, seed)

    # ---- images as z_i and x_T -------------------------------------------------------

    @functools.cached_property
    def _encode(self) -> Callable:
        def encode(params, images, null):
            text = self.pipeline.encode_text(params, null)
            return manipulations.encode(
                self.pipeline, params, images, text, corrections=CORRECTIONS
            )

        return self.program(encode)

    def encode(self, images: np.ndarray) -> Code:
        """Without guidance, under which DDIM inverts best."""
        return self._encode(images, self.null)

    @functools.cached_property
    def _redraw(self) -> Callable:
        def redraw(params, rows, null, scale, eta, seed):
            code, index = rows
            text = self.pipeline.encode_text(params, null)
            return manipulations.redraw(
                self.pipeline,
                params,
                code,
                text,
                scale,
                keys=image_keys(jax.random.key(seed), index),
                eta=eta,
            )

        return self.program(redraw)

    def redraw(
        self, code: Code, *, scale: float = 1.0, eta: float = 0.0, seed: int = 0
    ) -> np.ndarray:
        """The decoder's images of codes alone, without a caption."""
        rows = code, np.arange(len(code.embed))
        given = None if scale == 1 else np.float32(scale)  # None is half the work
        return self._redraw(rows, self.null, given, np.float32(eta), seed)

    @functools.cached_property
    def _vary(self) -> Callable:
        def vary(params, rows, null, seed):
            embed, index = rows
            text = self.pipeline.encode_text(params, null)
            keys = image_keys(jax.random.key(seed), index)
            return manipulations.fresh_variations(
                self.pipeline, params, keys, embed, text
            )

        return self.program(vary)

    def vary(self, embed: np.ndarray, *, seed: int = 0) -> np.ndarray:
        """The decoder's images of embeddings alone, from fresh noise by its sampler."""
        return self._vary((embed, np.arange(len(embed))), self.null, seed)

    # ---- of several stacks and priors ------------------------------------------------

    def with_prior_stage(self, **choices: object) -> "Subject":
        """The same weights, but the stage of the diffusion prior has these fields."""
        prior = self.pipeline.prior
        stage = dataclasses.replace(prior.stage, **choices)
        prior = dataclasses.replace(prior, stage=stage)
        pipeline = dataclasses.replace(self.pipeline, prior=prior)
        return dataclasses.replace(self, stack=self.stack._replace(pipeline=pipeline))

    def with_params(self, **others: jax.Array) -> "Subject":
        """With these among its parameters."""
        stack = self.stack._replace(params={**self.params, **others})
        return dataclasses.replace(self, stack=stack)


def load(directory: str | pathlib.Path, *, prior: str | None = None) -> Subject:
    """A stack that has all stages."""
    stack = unclip_runs.load(directory, prior=prior)
    if stack.pipeline.prior is None or not stack.pipeline.upsamplers:
        raise build.ConfigError(
            f"{directory} has the stages {sorted(stack.configs)}; the experiments need "
            "a prior and upsamplers: python -m experiments.scenes_dalle2"
        )
    return Subject(stack)


def load_published(name: str, image_name: str | None = None) -> Subject:
    """A published unCLIP, for variations of an image; weights are read at the end."""
    try:
        found = published_unclip.find(name, image_name=image_name)
        pipeline = published_unclip.plan(found, published_unclip.Choices())
        if pipeline.clip.image is None:
            raise build.ConfigError(
                f"{name} has no image tower of CLIP: name the image variations of the "
                "same model with --published_images"
            )
        model = published_unclip.load(name, image_name=image_name)
    except ValueError as error:
        raise build.ConfigError(str(error)) from error
    return Subject(unclip_runs.Stack(*model, configs={}), NUM_VARIATIONS)


def clip_temperature(directory: str | pathlib.Path) -> float:
    """One over the scale that the CLIP of a stack learned."""
    configs = unclip_runs.find(directory).configs
    paths = [path for path, config in configs.items() if config.task.name == "clip"]
    if len(paths) != 1:
        names = [path.name for path in paths]
        raise build.ConfigError(
            f"{directory} needs one run of a clip; it holds {names or 'none'}"
        )
    return 1 / rank.of_run(str(paths[0])).scale


def joined(batches: Iterable) -> np.ndarray:
    """Batches of arrays, or of trees of them, as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def accuracy_of(images: np.ndarray, captions: Sequence[str]) -> accuracy.Accuracy:
    """How many images, of 32 pixels or a multiple, show their captions."""
    return accuracy.fraction_true(scene_verifier.shows, images, captions)


def clip_score(subject: Subject, images: np.ndarray, captions: Sequence[str]) -> float:
    """The mean cosine of images and captions."""
    return mean_cosine(subject.embed_images(images), subject.embed_texts(captions))


def mean_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of embeddings, row by row."""
    one, other = map(retrieval.unit_vectors, (one, other))
    return float(np.sum(one * other, axis=1).mean())


def single_objects(scenes: Scenes) -> Scenes:
    """Those of one object."""
    claims = map(scene_captions.parse, scenes.captions)
    return scenes.take([i for i, c in enumerate(claims) if len(c.things) == 1])


def define_flags() -> None:
    """Those that all figures of the stack take."""
    flags.DEFINE_string("stack", "runs/scenes", "The directory of the trained stages.")
    flags.DEFINE_string("out", "results", "The directory of the table and the picture.")


def _first(config, tokenizer, split, count) -> tuple[np.ndarray, list[str]]:
    batch, captions = previews.first_examples(config, tokenizer, split, count)
    return np.asarray(batch["image"]), captions
