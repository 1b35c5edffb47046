r"""Prompts -> token ids and emphasis, in chunks as long as the text encoder's context.

The grammar that users of Stable Diffusion share: (text:1.3) emphasises by 1.3, (text) by
1.1, [text] by 1 / 1.1; nested factors multiply; \( \) \[ \] \\ are the characters
themselves; the word BREAK starts a new chunk. What does not fit the grammar (a bracket
without its partner, a number that is none) is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from diffusion_jax.data.captions import AnyTokenizer, Tokenizer
from diffusion_jax.types import Prompt

MORE = 1.1  # the factor of round brackets; square ones divide by it
MAX_WEIGHT = 1000.0
BREAK = "BREAK"

SYMBOL = re.compile(r"\\[\\()\[\]]|[()\[\]]|[^\\()\[\]]+|\\")
NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)\s*")
PARTNERS = {")": "(", "]": "["}

Pieces = list[tuple[str, float]]
Chunk = list[tuple[int, float]]  # ids, each with its weight


def parse(text: str) -> Pieces:
    """The pieces of a prompt, each with its weight; a piece BREAK starts a new chunk.

    Neighbours differ in weight, so a prompt without syntax is one piece.
    """
    symbols = SYMBOL.findall(text)
    factors = _match_brackets(symbols)
    weights, pieces = [1.0], []
    for i, symbol in enumerate(symbols):
        if i not in factors:
            _append(pieces, symbol.removeprefix("\\") or symbol, weights[-1])
        elif symbol in PARTNERS:
            weights.pop()
        else:
            weights.append(weights[-1] * factors[i])
    return [part for piece in pieces for part in _split_breaks(*piece)]


def _match_brackets(symbols: list[str]) -> dict[int, float]:
    """The place of every bracket that has a partner -> its factor.

    The number at the end of round brackets is taken out of its symbol.
    """
    factors: dict[int, float] = {}
    still_open: list[int] = []
    num_open = dict.fromkeys(PARTNERS.values(), 0)
    for i, symbol in enumerate(symbols):
        if symbol in num_open:
            still_open.append(i)
            num_open[symbol] += 1
        elif num_open.get(PARTNERS.get(symbol, ""), 0):
            start = still_open.pop()
            while symbols[start] != PARTNERS[symbol]:  # has no partner of its own
                num_open[symbols[start]] -= 1
                start = still_open.pop()
            num_open[symbols[start]] -= 1
            factors[start] = factors[i] = 1 / MORE if symbol == "]" else MORE
            head, colon, number = symbols[i - 1].rpartition(":")
            if symbol == ")" and colon and _is_number(number):
                symbols[i - 1] = head
                factors[start] = float(number)
    return factors


def _is_number(text: str) -> bool:
    return bool(NUMBER.fullmatch(text)) and math.isfinite(float(text))


def _append(pieces: Pieces, text: str, weight: float) -> None:
    if pieces and pieces[-1][1] == weight:
        text = pieces.pop()[0] + text
    if text:
        pieces.append((text, weight))


def _split_breaks(text: str, weight: float) -> Pieces:
    parts = re.split(rf"\b({BREAK})\b", text)
    return [(part, 1.0 if part == BREAK else weight) for part in parts if part]


def make_prompts(
    texts: Sequence[str],
    tokenizers: Sequence[Tokenizer],
    *,
    weighted: bool = True,
    num_chunks: int | None = None,
    max_chunks: int | None = None,
) -> Prompt:
    """Numpy arrays of the texts for every tokenizer, all with as many chunks.

    A chunk is start, tokens, end, padding; without syntax the first is what the
    tokenizer itself makes. `max_chunks` cuts longer texts (`num_cut` says by how much),
    `num_chunks` pads shorter ones, which keeps the shape whatever the texts. Not
    `weighted`, brackets and BREAK are text.
    """
    length = _context_length(tokenizers)
    chunks = [
        [_chunks(text, tokenizer, weighted)[:max_chunks] for tokenizer in tokenizers]
        for text in texts
    ]
    needed = max((len(one) for row in chunks for one in row), default=1)
    num_chunks = needed if num_chunks is None else num_chunks
    if needed > num_chunks or num_chunks < 1:
        raise ValueError(
            f"num_chunks={num_chunks}, the texts need {needed}; max_chunks cuts them"
        )
    shape = (len(texts), len(tokenizers), num_chunks, length)
    tokens, weights = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    for b, t, n in np.ndindex(shape[:3]):
        own = chunks[b][t]
        chunk = own[n] if n < len(own) else []
        _fill(tokens[b, t, n], weights[b, t, n], chunk, tokenizers[t])
    return Prompt(tokens, weights, np.array([text == "" for text in texts], bool))


def plain(texts: Sequence[str], tokenizer: AnyTokenizer) -> Prompt:
    """Texts without syntax, cut to what one chunk holds: what networks train on."""
    return make_prompts(texts, tokenizer.each, weighted=False, max_chunks=1)


def num_cut(
    texts: Sequence[str],
    tokenizers: Sequence[Tokenizer],
    *,
    weighted: bool = True,
    max_chunks: int = 1,
) -> Int[np.ndarray, "B"]:
    """How many tokens of each text `max_chunks` cuts, most where tokenizers differ."""
    _context_length(tokenizers)
    cut = np.zeros(len(texts), np.int32)
    for i, text in enumerate(texts):
        for tokenizer in tokenizers:
            rest = _chunks(text, tokenizer, weighted)[max_chunks:]
            cut[i] = max(cut[i], sum(map(len, rest)))
    return cut


def _context_length(tokenizers: Sequence[Tokenizer]) -> int:
    lengths = [tokenizer.context_length for tokenizer in tokenizers]
    if len(set(lengths)) != 1 or lengths[0] < 3:
        raise ValueError(
            f"tokenizers of context lengths {lengths}; one above 2 for all"
        )
    return lengths[0]


def _chunks(text: str, tokenizer: Tokenizer, weighted: bool) -> list[Chunk]:
    """At least one chunk; of the content only."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
    pieces = parse(text) if weighted else [(text, 1.0)]
    worst = max((abs(weight) for _, weight in pieces), default=1.0)
    if worst > MAX_WEIGHT:
        raise ValueError(
            f"an emphasis of {worst:g} in {text[:60]!r}; at most {MAX_WEIGHT:g}"
        )
    sections: list[Chunk] = [[]]
    ids = tokenizer.content([piece for piece, _ in pieces])
    for (piece, weight), piece_ids in zip(pieces, ids):
        if weighted and piece == BREAK:
            sections.append([])
        else:
            sections[-1] += [(i, weight) for i in piece_ids]
    room = tokenizer.context_length - 2
    chunks = [
        section[start : start + room]
        for section in sections
        for start in range(0, len(section), room)
    ]
    return chunks or [[]]


def _fill(
    tokens: Int[np.ndarray, "L"],
    weights: np.ndarray,
    chunk: Chunk,
    tokenizer: Tokenizer,
) -> None:
    """Writes one chunk into its rows."""
    end = 1 + len(chunk)
    tokens[0], tokens[end], tokens[end + 1 :] = (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    tokens[1:end] = [token for token, _ in chunk]
    weights[1:end] = [weight for _, weight in chunk]
