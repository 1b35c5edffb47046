"""A word written on an image, which CLIP reads (arXiv:2204.06125, figure 6).

Goh et al. (2021, distill.pub/2021/multimodal-neurons) call it a typographic attack: an
apple with a paper that says "iPod" is an iPod to CLIP, but not to the decoder of its
embedding.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (0, 0, 0), (255, 255, 255)
MARGIN = 0.15  # of the height of the letters, around them
FONT_SIZE = 100  # before it is fitted


def write_on(
    image: Float[np.ndarray, "H W 3"],
    text: str,
    *,
    width: float = 0.8,
    center: tuple[float, float] = (0.5, 0.5),
) -> Float[np.ndarray, "H W 3"]:
    """The image in [-1, 1] with a paper on it that says `text`.

    The paper is `width` of the image wide, or narrower where it would be higher than
    half of it, around `center`: shares of width and height, from the top left.
    """
    if not text.strip():
        raise ValueError(f"nothing to write: {text!r}")
    if not 0 < width <= 1:
        raise ValueError(f"a paper of width {width:g} of the image; in (0, 1]")
    paper = label(text, round(width * image.shape[1]), image.shape[0] // 2)
    top, left = (
        min(max(round(at * size - length / 2), 0), max(size - length, 0))
        for at, size, length in zip(center[::-1], image.shape, paper.shape)
    )
    rows, columns = slice(top, top + len(paper)), slice(left, left + paper.shape[1])
    attacked = image.astype(np.float32)
    attacked[rows, columns] = paper.astype(np.float32) / 127.5 - 1
    return attacked


def label(text: str, width: int, height: int) -> np.ndarray:
    """A paper with letters as large as fit, no larger than `width` x `height`.

    Drawn large and made smaller, since fonts have a smallest size and images may not.
    """
    font = ImageFont.load_default(size=FONT_SIZE)
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text, font=font)
    margin = round(MARGIN * (box[3] - box[1]))
    size = (box[2] - box[0] + 2 * margin, box[3] - box[1] + 2 * margin)
    paper = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((margin - box[0], margin - box[1]), text, fill=INK, font=font)
    factor = min(width / size[0], height / size[1])
    smaller = tuple(max(round(side * factor), 1) for side in size)
    return np.asarray(paper.resize(smaller, Image.Resampling.BICUBIC))
