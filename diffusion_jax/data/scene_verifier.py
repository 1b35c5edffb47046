"""Does an image show what a scene caption says? Analysis by synthesis, no learning.

The background is fitted by a plane, what stands out from it falls into connected
parts, and each part is explained by the shape, radius and angle whose rendering fits
it best. The caption comes in only when all of that is done. Works at 32 pixels:
larger images are averaged down.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from diffusion_jax.data import scene_captions, scenes

WORK_SIZE = 32
CONTRAST = 0.22  # least RGB distance (of 0..1) from the background of an object
MIN_AREA = 6  # pixels; less is a speckle
NUM_LIKELY = 6  # shapes whose fit is refined
NUM_REFINEMENTS = 3
# Of x, y, radius, angle (radians) and blur: finite differences, and how far a fit may
# move from its first guess.
STEPS = np.array([0.05 / 32, 0.05 / 32, 0.05 / 32, 0.02, 0.1 / 32])
LIMITS = np.array([1.5 / 32, 1.5 / 32, 1.0 / 32, 0.2, 0.6 / 32])
MAX_RESIDUAL = 0.4  # share of an object's contrast that its best match leaves over
MAX_COLOUR_DISTANCE = 0.35
SIZE_SLACK = 1.25  # how far a radius may be from that of its size word, as a factor
REACH = 2.5  # pixels around an object that its rendering has to explain as well
UNKNOWN = "?"
NEAR = scenes.CELL / 2  # offsets from the middle that count as in it


class Found(NamedTuple):
    """An object in an image; words are "?" where nothing fits."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float  # thirty-seconds of the width, as in scenes.SIZES
    residual: float
    colour_distance: float


class Verdict(NamedTuple):
    """Whether an image shows what a caption says, and if not, why not."""

    is_shown: bool
    reason: str


def _at_work_size(image: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w 3"]:
    """[-1, 1] at any multiple of the working size -> [0, 1] at the working size."""
    size = image.shape[0]
    if image.shape[0] != image.shape[1] or size % WORK_SIZE:
        raise ValueError(
            f"image of {image.shape[0]} x {image.shape[1]} pixels; it must be square,"
            f" a multiple of {WORK_SIZE} wide"
        )
    times = size // WORK_SIZE
    blocks = image.reshape(WORK_SIZE, times, WORK_SIZE, times, 3)
    return (np.clip(blocks.mean((1, 3)), -1, 1).astype(np.float32) + 1) / 2


_X, _Y = np.broadcast_arrays(*scenes.pixel_centres(WORK_SIZE))
_PLANE = np.stack([np.ones(WORK_SIZE**2), _X.ravel() - 0.5, _Y.ravel() - 0.5], -1)
_IS_BORDER = (np.maximum(abs(_X - 0.5), abs(_Y - 0.5)) > 0.5 - 1 / WORK_SIZE).ravel()


def _background(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """A plane per channel through the border, then through all that is close to it."""
    pixels = image.reshape(-1, 3)
    is_used = _IS_BORDER
    for _ in range(3):
        plane = _PLANE[is_used]
        fit = np.linalg.solve(plane.T @ plane, plane.T @ pixels[is_used])
        estimate = _PLANE @ fit
        distance = np.linalg.norm(pixels - estimate, axis=-1)
        is_close = distance < CONTRAST / 2
        is_used = is_close if is_close.sum() > WORK_SIZE else _IS_BORDER
    return estimate.reshape(image.shape).astype(np.float32)


def _parts(
    contrast: Float[np.ndarray, "h w"],
) -> list[Bool[np.ndarray, "h w"]]:
    """Where each object is: connected foreground, and the pixels close to it alone."""
    labels, num = ndimage.label(contrast > CONTRAST, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=num + 1)
    kept = [label for label in range(1, num + 1) if areas[label] >= MIN_AREA]
    labels[~np.isin(labels, kept)] = 0
    if not kept:
        return []
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    labels = np.where(distance <= REACH, labels[tuple(nearest)], 0)
    return [labels == label for label in kept]


def _moments(
    diff: Float[np.ndarray, "h w 3"], part: Bool[np.ndarray, "h w"]
) -> tuple[float, float, float]:
    """Area, and the x and y of its centre, of a part; in widths of the image."""
    contrast = np.linalg.norm(diff, axis=-1) * part
    core = contrast > 0.75 * np.percentile(contrast[part], 90)
    colour = diff[core].mean(0)
    alpha = np.where(part, diff @ colour / (colour @ colour), 0)
    alpha = np.clip(alpha, 0, 1) * (alpha > 0.1)
    area = alpha.sum()
    x, y = (alpha * _X).sum() / area, (alpha * _Y).sum() / area
    return float(area) / WORK_SIZE**2, float(x), float(y)


def _area(shape: str) -> float:
    """The area of a shape of radius one."""
    placement = np.array([[0.5, 0.5, 0.3, 0.0, 1 / 256]])
    alpha = scenes.coverage(shape, placement, scenes.pixel_centres(256))
    return float(alpha.mean() / 0.3**2)


_AREAS = {shape: _area(shape) for shape in scenes.SHAPES}
_PALETTE = np.asarray([scenes.PALETTE[colour] for colour in scenes.COLOURS])


class Part(NamedTuple):
    """The pixels of one object: where, what is seen there, what is behind it."""

    where: tuple[Float[np.ndarray, "P"], Float[np.ndarray, "P"]]
    seen: Float[np.ndarray, "P 3"]
    behind: Float[np.ndarray, "P 3"]


def _misfit(
    shape: str, guesses: Float[np.ndarray, "N 5"], part: Part
) -> tuple[Float[np.ndarray, "N P 3"], Float[np.ndarray, "N 3"]]:
    """What N renderings leave over of a part, each in the colour that suits it best.

    image = background + alpha (colour - background) is linear in the colour.
    """
    alpha = scenes.coverage(shape, guesses, part.where)[..., None]
    wanted = part.seen - (1 - alpha) * part.behind
    colour = (alpha * wanted).sum(1) / ((alpha**2).sum(1) + 1e-9)
    return wanted - alpha * colour[:, None], colour


def _refine(
    shape: str, guess: Float[np.ndarray, "5"], part: Part
) -> tuple[float, Float[np.ndarray, "5"], Float[np.ndarray, "3"]]:
    """Gauss-Newton on x, y, radius, angle and blur, within LIMITS of the guess."""
    low, high = guess - LIMITS, guess + LIMITS
    fitted = []
    for _ in range(NUM_REFINEMENTS + 1):
        guesses = np.concatenate([guess[None], guess + np.diag(STEPS)])
        left, colours = _misfit(shape, guesses, part)
        left = left.reshape(len(left), -1)
        fitted.append((float(left[0] @ left[0]), guess, colours[0]))
        slopes = left[1:] - left[0]  # per step
        normal = slopes @ slopes.T
        # The last term is for a shape that has left the part, where all slopes are 0.
        normal += (1e-6 * np.trace(normal) + 1e-12) * np.eye(len(STEPS))
        change = STEPS * np.linalg.solve(normal, slopes @ left[0])
        guess = np.clip(guess - change, low, high)
    return min(fitted, key=lambda fit: fit[0])


def _explain(
    image: Float[np.ndarray, "h w 3"],
    background: Float[np.ndarray, "h w 3"],
    is_part: Bool[np.ndarray, "h w"],
    noise: float,
) -> Found:
    """The object whose rendering fits a part best; `noise` is the variance to expect."""
    area, x, y = _moments(image - background, is_part)
    part = Part((_X[is_part], _Y[is_part]), image[is_part], background[is_part])
    starts = {
        shape: np.array([x, y, np.sqrt(area / _AREAS[shape]), 0.0, 1.6 / WORK_SIZE])
        for shape in scenes.SHAPES
    }
    first = {
        shape: np.linalg.norm(_misfit(shape, start[None], part)[0])
        for shape, start in starts.items()
    }
    likely = sorted(first, key=first.get)[:NUM_LIKELY]
    fits = {shape: _refine(shape, starts[shape], part) for shape in likely}
    shape = min(fits, key=lambda shape: fits[shape][0])
    left, (x, y, radius, _, _), rgb = fits[shape]
    signal = np.linalg.norm(part.seen - part.behind)
    residual = float(np.sqrt(max(left - noise * part.seen.size, 0)) / signal)
    distances = np.linalg.norm(_PALETTE - rgb, axis=-1)
    nearest = int(distances.argmin())
    radius = float(radius * 32)
    size = min(scenes.SIZES, key=lambda word: abs(np.log(radius / scenes.SIZES[word])))
    factor = max(radius / scenes.SIZES[size], scenes.SIZES[size] / radius)
    colour = scenes.COLOURS[nearest]
    return Found(
        size if factor < SIZE_SLACK else UNKNOWN,
        colour if distances[nearest] < MAX_COLOUR_DISTANCE else UNKNOWN,
        shape if residual < MAX_RESIDUAL else UNKNOWN,
        float(x),
        float(y),
        radius,
        residual,
        float(distances[nearest]),
    )


def detect(image: Float[np.ndarray, "H W 3"]) -> list[Found]:
    """All objects of an image in [-1, 1], whatever its caption."""
    image = _at_work_size(image)
    background = _background(image)
    diff = image - background
    parts = _parts(np.linalg.norm(diff, axis=-1))
    if not parts:
        return []
    is_empty = ~np.any(parts, axis=0)
    noise = float((diff[is_empty] ** 2).sum() / (diff[is_empty].size + 1))
    return [_explain(image, background, part, noise) for part in parts]


def _cell(x: float) -> int:
    offset = (x - 0.5) * 32
    return 0 if abs(offset) < NEAR else int(np.sign(offset))


def _holds(relation: str, first: Found, second: Found) -> bool:
    along, across = second.x - first.x, second.y - first.y
    if relation == "above":
        along, across = across, along
    return along > abs(across)


def compare(found: list[Found], claims: scene_captions.Claims) -> Verdict:
    """Whether these objects are what the claims say; else what there is instead."""
    words = [scene_captions.Thing(*thing[:3]) for thing in found]
    listing = ", ".join("a " + " ".join(thing) for thing in words) or "nothing"
    if sorted(words) != sorted(claims.things):
        return Verdict(False, f"shows {listing}")
    if claims.position:
        cell = (_cell(found[0].x), _cell(found[0].y))
        if cell != scenes.POSITIONS[claims.position]:
            places = {cell: name for name, cell in scenes.POSITIONS.items()}
            return Verdict(False, f"shows {listing} {places[cell]}")
    if claims.relation:
        first, second = found if tuple(words) == claims.things else found[::-1]
        if not _holds(claims.relation, first, second):
            return Verdict(False, f"shows {listing}, placed otherwise")
    return Verdict(True, f"shows {listing}")


def judge(image: Float[np.ndarray, "H W 3"], caption: str) -> Verdict:
    """Whether the image shows exactly what the caption says, and if not, why not."""
    return compare(detect(image), scene_captions.parse(caption))


def shows(image: Float[np.ndarray, "H W 3"], caption: str) -> bool:
    """Whether the image, in [-1, 1], shows exactly what the caption says."""
    return judge(image, caption).is_shown
