"""Of several images for each that is wanted, the one that CLIP finds nearest to its prompt.

They are drawn up to the first size that CLIP sees whole, and only the best are enlarged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from diffusion_jax.pipelines import best_of
from diffusion_jax.sampling.making import Batch
from diffusion_jax.sampling.unclip_plans import Plan
from diffusion_jax.sampling.wanted import Wanted
from diffusion_jax.types import Params

Stages = list[tuple[str, Callable]]
Chosen = tuple[Wanted, Float[np.ndarray, "H W 3"]]


def candidates(plan: Plan) -> list[Wanted]:
    """Image i of n candidates each is chosen from images n * i, n * i + 1, ..."""
    num = plan.best_of
    return [
        one._replace(index=one.index * num + i)
        for one in plan.images
        for i in range(num)
    ]


def split(plan: Plan, steps: Stages) -> tuple[Stages, Stages]:
    """The stages before the choice, and after it; without a choice none are after."""
    if plan.best_of == 1:
        return steps, []
    num = plan.num_upsamplers
    num_after = num - best_of.num_before_choice(plan.model.pipeline, num)
    return steps[: len(steps) - num_after], steps[len(steps) - num_after :]


def num_drawn(plan: Plan) -> int:
    """Images that are made, those counted again that are enlarged after the choice."""
    num = plan.num_upsamplers
    is_last = plan.best_of == 1 or (
        best_of.num_before_choice(plan.model.pipeline, num) == num
    )
    return (plan.best_of + (not is_last)) * len(plan.images)


def best(plan: Plan, params: Params, made: Iterator[Batch]) -> Iterator[Chosen]:
    """Of the candidates of every image that which CLIP finds nearest to its prompt."""
    pipeline, num = plan.model.pipeline, plan.best_of

    @jax.jit
    def rank(params: Params, images: Any, tokens: Any) -> best_of.Ranked:
        text = pipeline.clip.encode_text(params, tokens)
        embed = pipeline.encode_image(params, images)
        return best_of.ranked(images, embed, text.embed)

    kept: list[Chosen] = []
    for batch, images in made:
        kept += zip(batch, images)
        while len(kept) >= num:
            several, kept = kept[:num], kept[num:]
            first, images = several[0][0], np.stack([image for _, image in several])
            ranked = rank(params, images, plan.model.read([first.prompt]))
            one, image = several[int(ranked.order[0, 0])]
            print(
                f"{plan.images[one.position].stem}: image {one.index} of the seed, "
                f"cosine {float(ranked.scores[0, 0]):.3f} to the prompt",
                file=sys.stderr,
            )
            yield one, image


def rebatched(chosen: Iterator[Chosen], batch_size: int) -> Iterator[Batch]:
    """Images that one call can enlarge: of a seed."""
    kept: list[Chosen] = []
    for one in chosen:
        if kept and (len(kept) == batch_size or kept[0][0].seed != one[0].seed):
            yield _stacked(kept)
            kept = []
        kept.append(one)
    if kept:
        yield _stacked(kept)


def _stacked(kept: list[Chosen]) -> Batch:
    return [one for one, _ in kept], np.stack([image for _, image in kept])
