"""Grids of pictures with what belongs to each, and PNG files that say how they were made.

Images are float NHWC in [-1, 1]; the grids are 8-bit RGB PIL images on white. Small
images are enlarged by a whole factor with nearest neighbours, so that a pixel stays a
pixel, and text is sized to stay readable when the grid is shown WIDTH pixels wide.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

Pixels = UInt8[np.ndarray, "H W 3"]
Point = tuple[int, int]
Verdicts = Sequence[bool] | Bool[np.ndarray, "B"]

WIDTH = 900  # of a column of text on a code-hosting site
LARGEST_CELL = 192  # small images are not enlarged beyond this
FONT_SIZE = 14
MAX_LINES = 12  # a longer caption ends in "..."
INK, PALE, PAPER = (36, 41, 47), (208, 215, 222), (255, 255, 255)
# Green and red that colour-blind readers can tell apart (Okabe and Ito, 2008).
RIGHT, WRONG = (0, 158, 115), (213, 94, 0)
MAX_TEXT_BYTES = 64 * 1024


def to_uint8(
    images: Float[Array | np.ndarray, "*B H W 3"],
) -> UInt8[np.ndarray, "*B H W 3"]:
    """[-1, 1] -> 0..255, clipped and rounded; a pixel that is not finite is magenta."""
    values = np.asarray(images, np.float32)
    broken = ~np.isfinite(values).all(axis=-1, keepdims=True)
    values = np.where(broken, np.float32([1, -1, 1]), values)
    return np.rint(np.clip(values * 127.5 + 127.5, 0, 255)).astype(np.uint8)


def image_grid(
    images: Float[Array | np.ndarray, "B H W 3"],
    *,
    columns: int,
    scale: int | None = None,
    correct: Verdicts | None = None,
) -> Image.Image:
    """Images in reading order; `scale=None` chooses the whole factor that fits WIDTH.

    `correct` frames each image in green or red.
    """
    gap = 4 if correct is None else 12
    captions = [""] * len(images)
    return _draw_sheet(images, captions, columns, scale, gap, correct=correct)


def captioned_grid(
    images: Float[Array | np.ndarray, "B H W 3"],
    captions: Sequence[str],
    *,
    columns: int,
    scale: int | None = None,
    correct: Verdicts | None = None,
) -> Image.Image:
    """Images in reading order, each with its caption wrapped beneath it.

    `correct` frames each image in green or red, and ticks or crosses its caption.
    """
    return _draw_sheet(images, captions, columns, scale, 12, correct=correct)


def trajectory_strip(
    frames: Float[Array | np.ndarray, "T H W 3"],
    labels: Sequence[str],
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """One image on its way from noise to data, a label under each frame."""
    columns = len(frames) if columns is None else columns
    return _draw_sheet(frames, labels, columns, scale, 18, chevrons=True)


def labelled_rows(
    rows: Mapping[str, Float[Array | np.ndarray, "B H W 3"]],
    *,
    scale: int | None = None,
) -> Image.Image:
    """One row of images per entry, its name at the left: originals above reconstructions."""
    shapes = {name: np.shape(images) for name, images in rows.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"the rows must be of one shape, but have {shapes}")
    count, height, width, _ = next(iter(shapes.values()))
    gap, label_width = 4, 120
    scale = _fitting_scale(width, count, gap, WIDTH - label_width, scale)
    font = _font(label_width + count * (width * scale + gap), rows)
    label_width = int(label_width * font.size / FONT_SIZE)
    labels = [_wrap(name, font, label_width - 3 * gap) for name in rows]
    label_width = 3 * gap + max(_text_width(lines, font) for lines in labels)
    cell = width * scale, height * scale
    row_height = max(cell[1], *(len(lines) * _leading(font) for lines in labels))
    canvas = Image.new(
        "RGB",
        (label_width + count * (cell[0] + gap), len(rows) * (row_height + gap) + gap),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    for row, (lines, images) in enumerate(zip(labels, rows.values(), strict=True)):
        middle = gap + row * (row_height + gap) + row_height // 2
        top = middle - len(lines) * _leading(font) // 2
        for number, line in enumerate(lines):
            at = label_width - 2 * gap, top + number * _leading(font)
            draw.text(at, line, INK, font, anchor="ra")
        for column, pixels in enumerate(to_uint8(images)):
            corner = label_width + column * (cell[0] + gap), middle - cell[1] // 2
            canvas.paste(_enlarged(pixels, scale), corner)
    return canvas


def save_png(
    image: Image.Image, path: str | os.PathLike[str], *, metadata: Mapping[str, str]
) -> None:
    """Write a PNG whole or not at all, with `metadata` in its text chunks.

    Unicode goes into iTXt chunks. Values end after MAX_TEXT_BYTES of UTF-8, and of
    absolute paths in them only the last part is kept: pictures are passed around, and
    a path tells who made them where.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        if not 1 <= len(key) <= 79 or not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"PNG keyword {key!r} is not 1 to 79 printable ASCII letters"
            )
        info.add_text(key, _publishable(value))
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        image.save(partial, format="PNG", pnginfo=info)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text chunks of a PNG file."""
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        return {key: str(value) for key, value in image.text.items()}


_PART = r"""[^\s/\\"'<>|,;:]+"""
_ABSOLUTE_PATH = re.compile(  # of two parts or more; not http://a/b, and/or, ./a/b, ~/a/b
    rf"(?:file://|(?<![\w.~/\\]))(?:[A-Za-z]:[/\\]+|/)(?:{_PART}[/\\]+)+(?:{_PART})?"
)


def _publishable(text: str) -> str:
    def last_part(path: re.Match[str]) -> str:
        return re.split(r"[/\\]+", path[0].rstrip("/\\"))[-1]

    text = _ABSOLUTE_PATH.sub(last_part, text)
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # NUL ends a PNG keyword
    encoded = text.encode("utf-8", "replace")
    return encoded[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


class _Layout(NamedTuple):
    """Where things lie on a grid of equal pictures with text beneath."""

    columns: int
    picture: tuple[int, int]  # width, height after enlarging
    gap: int
    text_heights: tuple[int, ...]  # of each row

    @property
    def size(self) -> tuple[int, int]:
        width = self.gap + self.columns * (self.picture[0] + self.gap)
        return width, self.top(len(self.text_heights))

    def top(self, row: int) -> int:
        pictures = row * (self.picture[1] + self.gap)
        return self.gap + pictures + sum(self.text_heights[:row])

    def corner(self, index: int) -> Point:
        row, column = divmod(index, self.columns)
        return self.gap + column * (self.picture[0] + self.gap), self.top(row)


def _draw_sheet(
    images: Float[Array | np.ndarray, "B H W 3"],
    captions: Sequence[str],
    columns: int,
    scale: int | None,
    gap: int,
    *,
    correct: Verdicts | None = None,
    chevrons: bool = False,
) -> Image.Image:
    count, height, width, _ = np.shape(images)
    if count == 0 or columns < 1:
        raise ValueError(f"a grid of {count} images in {columns} columns has no cells")
    if len(captions) != count or (correct is not None and len(correct) != count):
        raise ValueError(
            f"{count} images, but {len(captions)} captions"
            + ("" if correct is None else f" and {len(correct)} verdicts")
        )
    columns = min(columns, count)
    scale = _fitting_scale(width, columns, gap, WIDTH, scale)
    picture = width * scale, height * scale
    unit = max(1, round(columns * picture[0] / WIDTH))
    gap *= unit
    font = _font(gap + columns * (picture[0] + gap), captions)
    badge = int(font.size) if correct is not None and any(captions) else 0
    lines = [_wrap(text, font, picture[0], indent=badge) for text in captions]
    depth = [(len(each) * _leading(font) + gap // 2) if each else 0 for each in lines]
    rows = tuple(max(depth[i : i + columns]) for i in range(0, count, columns))
    layout = _Layout(columns, picture, gap, rows)

    canvas = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, pixels in enumerate(to_uint8(images)):
        corner = layout.corner(index)
        verdict = None if correct is None else bool(correct[index])
        _draw_frame(draw, corner, picture, unit, verdict)
        canvas.paste(_enlarged(pixels, scale), corner)
        below = corner[0] + picture[0] // 2, corner[1] + picture[1] + gap // 2
        _draw_caption(draw, below, lines[index], font, verdict if badge else None)
        if chevrons and (index + 1) % columns and index + 1 < count:
            _draw_chevron(draw, corner, picture, gap, unit)
    return canvas


def _draw_frame(
    draw: ImageDraw.ImageDraw,
    corner: Point,
    size: Point,
    unit: int,
    verdict: bool | None,
) -> None:
    """Outside the picture, whose own pixels stay as they are."""
    colour = PALE if verdict is None else (RIGHT if verdict else WRONG)
    thickness = unit if verdict is None else 3 * unit
    left, top = corner[0] - thickness, corner[1] - thickness
    right, bottom = corner[0] + size[0], corner[1] + size[1]
    box = left, top, right + thickness - 1, bottom + thickness - 1
    draw.rectangle(box, outline=colour, width=thickness)


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    below: Point,
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    verdict: bool | None,
) -> None:
    for number, line in enumerate(lines):
        indent = font.size if number == 0 and verdict is not None else 0
        left = below[0] - (font.getlength(line) + indent) / 2
        top = below[1] + number * _leading(font)
        draw.text((left + indent, top), line, INK, font)
        if indent:
            _draw_verdict(draw, (left, top + 0.2 * font.size), 0.7 * font.size, verdict)


def _draw_verdict(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], size: float, verdict: bool
) -> None:
    tick = [[(0.0, 0.55), (0.35, 0.95), (1.0, 0.1)]]
    cross = [[(0.1, 0.1), (0.9, 0.9)], [(0.1, 0.9), (0.9, 0.1)]]
    for stroke in tick if verdict else cross:
        points = [(at[0] + x * size, at[1] + y * size) for x, y in stroke]
        colour = RIGHT if verdict else WRONG
        draw.line(points, colour, width=max(2, round(size / 5)), joint="curve")


def _draw_chevron(
    draw: ImageDraw.ImageDraw, corner: Point, size: Point, gap: int, unit: int
) -> None:
    x, y = corner[0] + size[0] + gap / 2, corner[1] + size[1] / 2
    points = [(x + dx * unit, y + dy * unit) for dx, dy in [(-2, -5), (2, 0), (-2, 5)]]
    draw.line(points, INK, width=2 * unit, joint="curve")


def _enlarged(pixels: Pixels, scale: int) -> Image.Image:
    return Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def _fitting_scale(
    width: int, columns: int, gap: int, available: int, scale: int | None
) -> int:
    if scale is None:
        return max(1, min((available - gap) // columns - gap, LARGEST_CELL) // width)
    if scale < 1:
        raise ValueError(f"scale {scale} is not a whole factor of at least 1")
    return scale


@functools.cache
def _font_file(size: int, is_ascii: bool) -> ImageFont.FreeTypeFont:
    if is_ascii:
        return ImageFont.load_default(size)
    fonts = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", size)


def _font(width: int, texts: Iterable[str]) -> ImageFont.FreeTypeFont:
    """Large enough to read when a picture `width` wide is shown WIDTH wide.

    Pillow's own font has few letters beyond ASCII; matplotlib brings one that has.
    """
    size = max(FONT_SIZE, round(FONT_SIZE * width / WIDTH))
    return _font_file(size, all(text.isascii() for text in texts))


def _leading(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _text_width(lines: Sequence[str], font: ImageFont.FreeTypeFont) -> int:
    return max((math.ceil(font.getlength(line)) for line in lines), default=0)


def _wrap(
    text: str, font: ImageFont.FreeTypeFont, width: int, *, indent: int = 0
) -> list[str]:
    """Lines no wider than `width`, broken at spaces, and inside a word only where the
    word is wider than a line; the first line leaves room for `indent`."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    lines: list[str] = []
    room = width - indent
    for word in printable.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= room:
            lines[-1] = joined
            continue
        if lines:
            room = width
        pieces = _broken(word, font, room, width)
        room = width if len(pieces) > 1 else room
        lines += pieces
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1][:-3]}..."]
    return lines


def _broken(
    word: str, font: ImageFont.FreeTypeFont, room: int, width: int
) -> list[str]:
    """The word in pieces: the first no wider than `room`, the others than `width`."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > room:
            pieces.append("")
            room = width
        pieces[-1] += letter
    return pieces
