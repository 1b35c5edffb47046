"""Captioned scenes: one or two coloured shapes on a quiet background.

This file holds what a scene is, how one is drawn at random from a numpy Generator,
and how scenes become pixels; scene_captions.py says them in words. Lengths are
fractions of the image width (x to the right, y down), so that one scene can be
rendered at any size; the constants below are thirty-seconds of the width, which are
pixels at 32 px.

A pixel's coverage is clip(1/2 - d, 0, 1), with d the signed distance in pixels from
its centre to the outline: the exact area for a straight edge along the pixel grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

PALETTE = {
    "black": (0.06, 0.06, 0.06),
    "white": (0.95, 0.95, 0.95),
    "red": (0.88, 0.10, 0.10),
    "green": (0.10, 0.66, 0.18),
    "blue": (0.12, 0.20, 0.88),
    "yellow": (0.94, 0.86, 0.12),
    "cyan": (0.12, 0.84, 0.90),
    "purple": (0.74, 0.12, 0.78),
}
COLOURS = tuple(PALETTE)
SIZES = {"small": 4.5, "large": 6.0}  # radius, in thirty-seconds
POSITIONS = {  # (column, row): -1 left or top, 0 middle, 1 right or bottom
    "in the top left": (-1, -1),
    "at the top": (0, -1),
    "in the top right": (1, -1),
    "on the left": (-1, 0),
    "in the centre": (0, 0),
    "on the right": (1, 0),
    "in the bottom left": (-1, 1),
    "at the bottom": (0, 1),
    "in the bottom right": (1, 1),
}
RELATIONS = ("left of", "above")  # of the first object to the second

# No object of the train and validation splits is one of these; every scene of the
# test split has at least one. Each colour is missing once, each shape once or twice.
HELD_OUT = frozenset(
    {
        ("black", "ring"),
        ("white", "crescent"),
        ("red", "triangle"),
        ("green", "square"),
        ("blue", "circle"),
        ("yellow", "cross"),
        ("cyan", "triangle"),
        ("purple", "circle"),
    }
)

MARGIN = 1.5  # least distance to the border
GAP = 2.0  # least distance between two objects
CELL = 7.5  # from the middle of the image to that of a cell of POSITIONS
JITTER = 1.0  # greatest offset from there, in x and in y
RADIUS_JITTER = 0.04  # relative
COLOUR_JITTER = 0.035  # per channel, absolute
MAX_ANGLE = 0.12  # radians


class Object(NamedTuple):
    """One shape; `x`, `y` are its centre of area."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]


class Background(NamedTuple):
    """`rgb` in the middle, a linear ramp of `slope` over the width, and one wave."""

    rgb: tuple[float, float, float]
    slope: tuple[float, float]
    wave: float  # amplitude
    frequency: tuple[float, float]  # periods per width
    phase: float


class Scene(NamedTuple):
    """`position` is a key of POSITIONS or None, `relation` one of RELATIONS or None."""

    objects: tuple[Object, ...]
    background: Background
    position: str | None
    relation: str | None


def _circle(u, v):
    return np.hypot(u, v) - 0.99


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.9


def _triangle(u, v):
    # Apex (0, -1.24), base from (-1.06, 0.62) to (1.06, 0.62), so centred on 0.
    side = (1.86 * np.abs(u) - 1.06 * (v + 1.24)) / np.hypot(1.86, 1.06)
    return np.maximum(side, v - 0.62)


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    bar = np.maximum(u - 1.03, v - 0.36)
    return np.minimum(bar, np.maximum(u - 0.36, v - 1.03))


def _ring(u, v):
    return np.abs(np.hypot(u, v) - 0.79) - 0.26


def _crescent(u, v):
    u = u - CRESCENT_SHIFT
    return np.maximum(np.hypot(u, v) - 1.07, 0.74 - np.hypot(u - 0.56, v))


CRESCENT_SHIFT = 0.3234  # puts its centre of area at 0

SHAPES: dict[str, Callable] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
}
"""Signed distance to the outline of each shape of radius one, negative inside."""


def _outline(distance: Callable) -> Float[np.ndarray, "P 2"]:
    """The boundary points of a shape on a fine grid; enough for its extent."""
    axis = np.linspace(-1.6, 1.6, 321)
    u, v = np.meshgrid(axis, axis)
    edge = np.abs(distance(u, v)) < 0.008
    return np.stack([u[edge], v[edge]], axis=-1)


_OUTLINES = {shape: _outline(distance) for shape, distance in SHAPES.items()}


def extent(
    shape: str, radius: float, angle: float
) -> tuple[float, float, float, float]:
    """How far a shape reaches from its centre: (left, top, right, bottom)."""
    cos, sin = radius * np.cos(angle), radius * np.sin(angle)
    u, v = _OUTLINES[shape].T
    x, y = cos * u - sin * v, sin * u + cos * v
    return (-float(x.min()), -float(y.min()), float(x.max()), float(y.max()))


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _choose(rng: np.random.Generator, choices: Sequence):
    return choices[int(rng.random() * len(choices))]


_SHAPE_NAMES, _SIZE_NAMES = tuple(SHAPES), tuple(SIZES)
_SEEN_PAIRS = tuple(
    (colour, shape)
    for colour in COLOURS
    for shape in SHAPES
    if (colour, shape) not in HELD_OUT
)
_HELD_OUT_PAIRS = tuple(sorted(HELD_OUT))


def _sample_object(rng: np.random.Generator, pair: tuple[str, str]) -> Object:
    """An object of this colour and shape at (0, 0)."""
    colour, shape = pair
    size = _choose(rng, _SIZE_NAMES)
    jitter = rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)
    rgb = np.clip(np.asarray(PALETTE[colour]) + jitter, 0, 1)
    scale = _uniform(rng, 1 - RADIUS_JITTER, 1 + RADIUS_JITTER) / 32
    return Object(
        size,
        colour,
        shape,
        x=0.0,
        y=0.0,
        radius=SIZES[size] * scale,
        angle=_uniform(rng, -MAX_ANGLE, MAX_ANGLE),
        rgb=tuple(rgb.tolist()),
    )


def _sample_background(rng: np.random.Generator) -> Background:
    """Muted and of middle brightness, so that black and white both stand out."""
    grey = _uniform(rng, 0.42, 0.58)
    rgb = tuple((grey + rng.uniform(-0.05, 0.05, 3)).tolist())
    ramp = _uniform(rng, 0.0, 0.16) * (rng.random() < 0.5)
    wave = _uniform(rng, 0.01, 0.03) * (rng.random() < 0.2)
    toward, along = (2 * np.pi * rng.random(2)).tolist()
    frequency = _uniform(rng, 2.0, 6.0)
    return Background(
        rgb,
        slope=(ramp * math.cos(toward), ramp * math.sin(toward)),
        wave=wave,
        frequency=(frequency * math.cos(along), frequency * math.sin(along)),
        phase=_uniform(rng, 0.0, 2 * np.pi),
    )


def _free_ranges(thing: Object) -> tuple[tuple[float, float], tuple[float, float]]:
    """The x and the y at which the whole object keeps its margin to the border."""
    left, top, right, bottom = extent(thing.shape, thing.radius, thing.angle)
    margin = MARGIN / 32
    return (margin + left, 1 - margin - right), (margin + top, 1 - margin - bottom)


def _place_one(rng: np.random.Generator, thing: Object, position: str) -> Object:
    """Near the middle of the cell that `position` names."""
    place = []
    for free, cell in zip(_free_ranges(thing), POSITIONS[position]):
        middle = 0.5 + (cell * CELL + _uniform(rng, -JITTER, JITTER)) / 32
        place.append(float(np.clip(middle, *free)))
    return thing._replace(x=place[0], y=place[1])


def _place_two(
    rng: np.random.Generator, things: tuple[Object, Object], relation: str
) -> tuple[Object, Object]:
    """The first object `relation` the second, their bounding boxes a gap apart."""
    axis = RELATIONS.index(relation)
    first, second = things
    reach = extent(first.shape, first.radius, first.angle)[2 + axis]
    distance = reach + extent(second.shape, second.radius, second.angle)[axis]
    distance += GAP / 32
    ranges = [_free_ranges(thing) for thing in things]
    (low1, high1), (low2, high2) = ranges[0][axis], ranges[1][axis]
    offsets = rng.uniform(-JITTER, JITTER, 4)
    along1, along2, across1, across2 = (0.5 + offsets / 32).tolist()
    along1 = float(np.clip(along1 - CELL / 32, low1, min(high1, high2 - distance)))
    along2 = float(np.clip(along2 + CELL / 32, max(low2, along1 + distance), high2))
    if axis == 0:
        return first._replace(x=along1, y=across1), second._replace(x=along2, y=across2)
    return first._replace(x=across1, y=along1), second._replace(x=across2, y=along2)


def sample(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A random scene: without held-out pairs, or with at least one of them.

    Half of the scenes have one object, and half of those a position worth naming.
    Two objects always differ in size, colour or shape.
    """
    first_pairs = _HELD_OUT_PAIRS if held_out else _SEEN_PAIRS
    pairs = _SEEN_PAIRS + _HELD_OUT_PAIRS if held_out else _SEEN_PAIRS
    first = _sample_object(rng, _choose(rng, first_pairs))
    background = _sample_background(rng)
    if rng.random() < 0.5:
        position = _choose(rng, tuple(POSITIONS))
        things = (_place_one(rng, first, position),)
        named = position if rng.random() < 0.5 else None
        return Scene(things, background, named, None)
    second = first
    while second[:3] == first[:3]:
        second = _sample_object(rng, _choose(rng, pairs))
    things = (first, second) if rng.random() < 0.5 else (second, first)
    relation = _choose(rng, RELATIONS)
    return Scene(_place_two(rng, things, relation), background, None, relation)


def pixel_centres(
    image_size: int,
) -> tuple[Float[np.ndarray, "1 W"], Float[np.ndarray, "H 1"]]:
    """The x and the y of the pixels of an image."""
    axis = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    return axis[None, :], axis[:, None]


def coverage(
    shape: str,
    placement: Float[np.ndarray, "N 5"],
    pixels: tuple[Float[np.ndarray, "*p"], Float[np.ndarray, "*q"]],
) -> Float[np.ndarray, "N *pixels"]:
    """How much of each pixel N shapes cover, given their x, y, radius, angle, blur.

    Blur is the width of the edge: that of a pixel where the image is sharp.
    """
    columns, rows = pixels
    placement = placement.astype(np.float32).T
    x, y, radius, angle, blur = placement.reshape(*placement.shape, *[1] * rows.ndim)
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    dx, dy = columns - x, rows - y
    distance = SHAPES[shape](cos * dx + sin * dy, cos * dy - sin * dx)
    return np.clip(0.5 - distance * (radius / blur), 0, 1)


def _render_backgrounds(
    backgrounds: Sequence[Background], image_size: int
) -> Float[np.ndarray, "N H W 3"]:
    x, y = pixel_centres(image_size)
    columns = [(*b.slope, b.wave, *b.frequency, b.phase) for b in backgrounds]
    columns = np.asarray(columns, np.float32).T[..., None, None]
    slope_x, slope_y, wave, frequency_x, frequency_y, phase = columns
    turns = frequency_x * x + frequency_y * y
    shade = slope_x * (x - 0.5) + slope_y * (y - 0.5)
    shade = shade + wave * np.sin(np.float32(2 * np.pi) * turns + phase)
    rgb = np.asarray([b.rgb for b in backgrounds], np.float32)
    return rgb[:, None, None, :] + shade[..., None]


def render(scenes: Sequence[Scene], *, image_size: int) -> UInt8[np.ndarray, "N H W 3"]:
    """All scenes at once; give a few hundred at a time to bound the memory."""
    if not scenes:
        raise ValueError("no scenes to render")
    image = _render_backgrounds([scene.background for scene in scenes], image_size)
    by_shape: dict[tuple[int, str], list[int]] = {}
    for index, scene in enumerate(scenes):
        for slot, thing in enumerate(scene.objects):
            by_shape.setdefault((slot, thing.shape), []).append(index)
    for (slot, shape), indices in by_shape.items():
        things = [scenes[index].objects[slot] for index in indices]
        placement = np.asarray([(*thing[3:7], 1 / image_size) for thing in things])
        alpha = coverage(shape, placement, pixel_centres(image_size))
        rgb = np.asarray([thing.rgb for thing in things], np.float32)[:, None, None]
        image[indices] += alpha[..., None] * (rgb - image[indices])
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
