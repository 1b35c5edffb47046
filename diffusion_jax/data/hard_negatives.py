"""False captions of almost the same words, for CLIP to tell from the true one.

Among random captions, the words alone tell which one belongs to an image, and so CLIP
does not learn which word goes with which: "a bag of words" (Yuksekgonul et al., 2023,
arXiv:2210.01936, whose section 4 trains with such negatives; arXiv:2204.06125, section
7, finds the same of unCLIP).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffusion_jax.data import scene_captions

Confuse = Callable[[np.random.Generator, str], str]


def swapped_words(rng: np.random.Generator, caption: str) -> str:
    """Two different words in each other's places; a caption of one word is as it was."""
    words = caption.split()
    if len(set(words)) < 2:
        return caption
    first = int(rng.integers(len(words)))
    others = [i for i, word in enumerate(words) if word != words[first]]
    second = others[int(rng.integers(len(others)))]
    words[first], words[second] = words[second], words[first]
    return " ".join(words)


NEGATIVES: dict[str, Confuse] = {
    "scenes": scene_captions.confuse,
    "swapped_words": swapped_words,
}
