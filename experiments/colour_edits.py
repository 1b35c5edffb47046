"""Text diffs that change an object's colour word alone, and whether they succeed.

An edit succeeds if the image shows the caption with the new colour (the colour is new,
size and shape are kept) and the object is where it was. How far to go, theta, and the
guidance are chosen on some images and reported on others.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.data import scene_captions, scene_verifier, scenes
from diffusion_jax.pipelines import manipulations
from diffusion_jax.pipelines.manipulations import Code
from experiments import scenes_stack
from experiments.scenes_stack import Scenes, Subject

THETAS = (0.1, 0.2, 0.3, 0.4, 0.5)
MAX_SHIFT = scene_verifier.NEAR / 32  # of the width; half a cell of the positions


class Edits(NamedTuple):
    """Images of single objects, and their captions with another colour."""

    scenes: Scenes
    after: list[str]


def colour_of(caption: str) -> str:
    """Of the only object."""
    (thing,) = scene_captions.parse(caption).things
    return thing.colour


def recoloured(caption: str, colour: str) -> str:
    """The caption of one object with another colour word."""
    words = caption.split()
    words[words.index(colour_of(caption))] = colour
    return " ".join(words)


def edits(
    examples: Scenes, most: int | None = None, *, may_be_held_out: bool = False
) -> Edits:
    """The single objects of some scenes, at `most` so many, with other colours in turn.

    Colours that training never shows with the shape are left out, unless asked for.
    """
    chosen = scenes_stack.single_objects(examples).take(slice(0, most))
    after = []
    for i, caption in enumerate(chosen.captions):
        (thing,) = scene_captions.parse(caption).things
        others = [
            colour
            for colour in scenes.COLOURS
            if colour != thing.colour
            and (may_be_held_out or (colour, thing.shape) not in scenes.HELD_OUT)
        ]
        after.append(recoloured(caption, others[i % len(others)]))
    return Edits(chosen, after)


def succeeds(edited: np.ndarray, original: np.ndarray, after: str) -> bool:
    """Whether the image shows the new caption, and its object where it was."""
    found, before = map(scene_verifier.detect, (edited, original))
    claims = scene_captions.parse(after)
    if not before or not scene_verifier.compare(found, claims).is_shown:
        return False
    shift = max(abs(found[0].x - before[0].x), abs(found[0].y - before[0].y))
    return shift <= MAX_SHIFT


def share_of_successes(
    edited: np.ndarray, originals: np.ndarray, after: Sequence[str]
) -> float:
    cases = zip(edited, originals, after, strict=True)
    return float(np.mean([succeeds(*case) for case in cases]))


@functools.cache
def _turning(subject: Subject) -> Callable:
    def turn(params, rows, thetas):
        embed, *tokens = rows
        before, after = (subject.pipeline.encode_text(params, t) for t in tokens)
        goal = manipulations.direction(before, after, len(embed))
        return manipulations.toward(embed, goal, thetas)

    return subject.program(turn)


def codes(
    subject: Subject, code: Code, made: Edits, thetas: Sequence[float]
) -> list[Code]:
    """For each theta, the codes of all images moved as their captions changed."""
    manipulations.check_thetas(tuple(thetas))
    tokens = map(subject.tokens, (made.scenes.captions, made.after))
    turned = _turning(subject)((code.embed, *tokens), np.float32(thetas))
    return [Code(turned[:, i], code.x) for i in range(len(thetas))]


def sweep(
    subject: Subject,
    made: Edits,
    thetas: Sequence[float] = THETAS,
    scales: Sequence[float] = (1.0,),
) -> dict[tuple[float, float], float]:
    """(theta, guidance scale) -> share of edits that succeed, at the size of CLIP."""
    code = subject.encode(made.scenes.images)
    shares = {}
    for theta, moved in zip(thetas, codes(subject, code, made, thetas), strict=True):
        for scale in scales:
            edited = subject.redraw(moved, scale=scale)
            edited = subject.enlarge(edited, last=subject.num_before_clip)
            share = share_of_successes(edited, made.scenes.images, made.after)
            shares[theta, scale] = share
    return shares


def best(shares: Mapping[tuple[float, float], float]) -> tuple[float, float]:
    """The setting of most successes; of equal ones that which changes least."""
    return min(shares, key=lambda setting: (-shares[setting], *setting))


def apply(
    subject: Subject, made: Edits, theta: float, scale: float = 1.0
) -> np.ndarray:
    """The edited images at full size."""
    code = subject.encode(made.scenes.images)
    (moved,) = codes(subject, code, made, [theta])
    return subject.enlarge(subject.redraw(moved, scale=scale))
