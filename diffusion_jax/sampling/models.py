"""The model to sample, found and checked, its weights not read yet."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax import build, published
from diffusion_jax.data import prompts
from diffusion_jax.data.captions import Tokenizer
from diffusion_jax.pipelines.stable_diffusion import StableDiffusion
from diffusion_jax.types import Params, Prompt
from diffusion_jax.weights import published as weights
from diffusion_jax.weights import scheduler_choice


class Model(NamedTuple):
    """`load` reads the weights of `pipeline`; the rest says what they are."""

    name: str
    pipeline: StableDiffusion
    tokenizers: tuple[Tokenizer, ...]
    load: Callable[[], Params]
    shapes: Callable[[], Params]  # of the parameters, none of which is computed
    num_bytes: Callable[[], int]  # of them, in memory
    weighted: bool = True  # whether (word:1.3) is emphasis
    max_chunks: int | None = None  # that texts may have; None: any number
    sampler: str | None = None  # its name, where its function does not tell
    facts: Callable[[int, str], dict[str, str]] | None = None  # of (seed, negative)

    def read(self, texts: list[str], num_chunks: int | None = None) -> Prompt:
        return prompts.make_prompts(
            texts,
            self.tokenizers,
            weighted=self.weighted,
            num_chunks=num_chunks,
            max_chunks=self.max_chunks,
        )

    def num_cut(self, texts: list[str]) -> list[int]:
        """How many tokens of each text are not read."""
        if self.max_chunks is None:
            return [0] * len(texts)
        return self._count(texts, self.max_chunks)

    def num_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text has, read or not."""
        return self._count(texts, 0)

    def _count(self, texts: list[str], chunks: int) -> list[int]:
        options = dict(weighted=self.weighted, max_chunks=chunks)
        return prompts.num_cut(texts, self.tokenizers, **options).tolist()


def of_weights(
    name: str,
    choices: published.Choices,
    *,
    weighted: bool = True,
    max_chunks: int | None = None,
    **where: Any,
) -> Model:
    """A published model; `where` is as of `published.find`."""
    found = published.find(name, **where)
    pipeline = published.plan(found, choices)
    itemsize = jnp.dtype(choices.dtype).itemsize
    sizes = (np.prod(t.shape) for one in found.tensors.values() for t in one.values())
    return Model(
        pathlib.PurePath(name).name or str(name),
        pipeline,
        published.load_tokenizers(found),
        lambda: published.load_params(found, choices.dtype),
        lambda: weights.shapes(found, dtype=choices.dtype),
        lambda: int(sum(sizes)) * itemsize,
        weighted,
        max_chunks,
        choices.sampler or published_sampler(found.scheduler),
    )


def published_sampler(scheduler: Mapping[str, Any]) -> str | None:
    """Our name of the sampler that a scheduler_config.json asks for, if it has one."""
    for name, (kind, fields) in scheduler_choice.COUNTERPARTS.items():
        own = {field: scheduler.get(field, value) for field, value in fields.items()}
        if kind == scheduler["_class_name"] and own == fields:
            return name
    return None


def factor_of_weights(name: str, **where: Any) -> int:
    """How many pixels a latent of a published model is wide."""
    return published.find(name, **where).factor


def check_name(kind: str, name: str | None, choices: Any) -> None:
    if name is not None and name not in choices:
        raise build.ConfigError(
            f"unknown {kind} {name!r}: {build.nearest(name, choices)}"
        )
