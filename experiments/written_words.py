"""Images to write a word on, the word, and the captions that CLIP chooses from."""

import numpy as np

from diffusion_jax import build, rank
from diffusion_jax.data import scene_verifier
from experiments import colour_edits
from experiments.scenes_stack import Subject

NUM_SCENES = 4

Cases = tuple[np.ndarray, list[str], list[list[str]]]


def scenes_of(subject: Subject) -> Cases:
    """Images of single objects, a colour to write on each, and labels to choose from."""
    made = colour_edits.edits(subject.scenes("validation", 32))
    chosen = slice(0, NUM_SCENES)
    captions, after = made.scenes.captions[chosen], made.after[chosen]
    words = list(map(colour_edits.colour_of, after))
    others = [
        colour_edits.recoloured(a, "white" if "black" in (a + b) else "black")
        for a, b in zip(captions, after, strict=True)
    ]
    labels = list(map(list, zip(captions, after, others, strict=True)))
    return made.scenes.images[chosen], words, labels


def check(
    file: str | None, word: str | None, labels: list[str], *, is_needed: bool
) -> None:
    """Raises for an image of the user's that nothing can be asked of."""
    has = {"--image": file, "--word": (word or "").strip(), "--labels": labels}
    missing = [flag for flag, value in has.items() if not value]
    if missing and (is_needed or len(missing) < len(has)):
        raise build.ConfigError(
            f"a word is written on an image of yours with {', '.join(has)}; "
            f"{', '.join(missing)} missing"
        )
    if labels and len(labels) < 2:
        raise build.ConfigError(f"--labels {labels[0]!r}: CLIP chooses from at least 2")
    if file:
        rank.read_picture(file, 1)


def given(file: str, word: str, labels: list[str], size: int) -> Cases:
    """One image of the user's, as `scenes_of`."""
    return rank.read_picture(file, size)[None], [word], [labels]


def free_height(image: np.ndarray) -> float:
    """Where a scene's only object leaves room for a word; else the middle."""
    size = len(image)
    is_scene = size % scene_verifier.WORK_SIZE == 0
    found = scene_verifier.detect(image) if is_scene else []
    if len(found) != 1:
        return 0.5
    return 0.12 if found[0].y > 0.5 else 0.88
