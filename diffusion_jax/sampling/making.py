"""The images of a plan, batch by batch, through programs that compile once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from diffusion_jax.pipelines import batched
from diffusion_jax.pipelines.batched import OnStep, Rows
from diffusion_jax.sampling.models import Model
from diffusion_jax.sampling.plans import Start
from diffusion_jax.sampling.wanted import Wanted
from diffusion_jax.types import Params, Prompt
from diffusion_jax.weights import lora

Batch = tuple[list[Wanted], Float[np.ndarray, "b H W 3"]]

# The refiner draws noise of its own, if it draws any.
OTHER_SEEDS = 2**30

adapt = jax.jit(lora.merge)  # scales are traced


def maker(
    model: Model,
    *,
    batch_size: int,
    refiner: Model | None = None,
    from_noise: bool = True,
    on_step: OnStep | None = None,
    on_batch: Callable[[int], None] = lambda size: None,
) -> Callable[..., Iterator[Batch]]:
    """A function of (params, images, start, to_prompt, params of the refiner).

    Prompts, seeds, guidance, and what is in a picture or a mask do not compile anew;
    one more chunk of tokens does. `on_batch` is told the size of every batch before.
    """
    options = dict(batch_size=batch_size, on_step=on_step)
    generate = batched.generator(
        model.pipeline, from_noise=from_noise, decodes=refiner is None, **options
    )
    refine = None
    if refiner is not None:
        refine = batched.generator(refiner.pipeline, **options)

    def make(
        params: Params,
        images: Sequence[Wanted],
        start: Start = Start(),  # noqa: B008  a constant
        to_prompt: str | None = None,
        refiner_params: Params | None = None,
    ) -> Iterator[Batch]:
        params, refiner_params = batched.replicate((params, refiner_params))
        for batch in batches(model, images, to_prompt, batch_size):
            on_batch(len(batch))
            chunks = num_chunks(model, batch[0], to_prompt)
            rows = rows_of(model, batch, start, to_prompt, chunks)
            said = dict(seed=batch[0].seed, scale=batch[0].guidance)
            (made,) = generate(params, rows, **said)
            if refiner is not None:
                rows = rows_of(refiner, batch, Start(), None, chunks)
                said["seed"] = (said["seed"] + OTHER_SEEDS) % 2**31
                rows = rows._replace(noisy=made)
                (made,) = refine(refiner_params, rows, **said)
            yield batch, made

    return make


def batches(
    model: Model, images: Sequence[Wanted], to_prompt: str | None, batch_size: int
) -> Iterator[list[Wanted]]:
    """Images that one call can make: of a seed, a guidance and a length of prompt.

    The length is in chunks, and each image has its own, whatever it is made with.
    """
    groups: dict[tuple, list[Wanted]] = {}
    for one in images:
        key = one.seed, one.guidance, num_chunks(model, one, to_prompt)
        groups.setdefault(key, []).append(one)
    for group in groups.values():
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]


def num_chunks(model: Model, one: Wanted, to_prompt: str | None = None) -> int:
    texts = [one.prompt, one.negative]
    texts += [] if to_prompt is None else [to_prompt]
    return model.read(texts).tokens.shape[2]


def rows_of(
    model: Model,
    batch: Sequence[Wanted],
    start: Start,
    to_prompt: str | None,
    chunks: int,
) -> Rows:
    """What each image of a batch is made from."""

    def read(texts: list[str]) -> Prompt:
        return model.read(texts, num_chunks=chunks)

    def repeated(array: np.ndarray | None) -> np.ndarray | None:
        return (
            None
            if array is None
            else np.broadcast_to(array, (len(batch), *array.shape))
        )

    rows = Rows(
        read([one.prompt for one in batch]),
        read([one.negative for one in batch]),
        np.array([one.index for one in batch]),
        image=repeated(start.image),
        mask=repeated(start.mask),
    )
    if start.noise is not None:
        rows = rows._replace(noise=start.noise[[one.position for one in batch]])
    if to_prompt is not None:
        share = np.array([one.share for one in batch], np.float32)
        rows = rows._replace(toward=read([to_prompt] * len(batch)), share=share)
    return rows
