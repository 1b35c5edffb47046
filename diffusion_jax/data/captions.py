"""Captions -> token ids, by the byte-pair scheme of CLIP (arXiv:2103.00020, sec. 2.4).

Training writes `vocab.json` and `merges.txt` in the published form: 256 bytes, the
same bytes at the end of a word, one token per merge, start and end of text last.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
import transformers
from jaxtyping import Int

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
WHOLE_FILE = "tokenizer.json"  # has the vocabulary and the merges, too
CONFIG_FILE = "tokenizer_config.json"
NUM_BYTES = 2 * 256  # tokens that are no merge: bytes, within and at the end of a word


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Texts -> `context_length` ids each: start, tokens, end, padding."""

    backend: tokenizers.Tokenizer
    context_length: int
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "N L"]:
        """A text that is too long loses its tail, never its end token."""
        ids = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        for row, encoding in zip(ids, self.backend.encode_batch(list(texts))):
            kept = encoding.ids[: self.context_length]
            row[: len(kept)] = kept
            row[len(kept) - 1] = self.eos_id
        return ids

    def content(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, however many, without start, end and padding."""
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def num_cut(self, texts: Sequence[str]) -> Int[np.ndarray, "N"]:
        """How many tokens of each text do not fit."""
        lengths = [len(e.ids) for e in self.backend.encode_batch(list(texts))]
        return np.maximum(np.asarray(lengths, np.int32) - self.context_length, 0)

    @property
    def each(self) -> tuple[Tokenizer, ...]:
        """This one alone; those of a model with several are `Tokenizers`."""
        return (self,)

    def decode(self, ids: Int[np.ndarray, "L"]) -> str:
        """The text of one row, lower-cased, a space after every word."""
        return self.backend.decode(ids).replace(END_OF_WORD, " ").strip()


@dataclasses.dataclass(frozen=True)
class Tokenizers:
    """Texts -> ids of every text encoder of a model that has several."""

    each: tuple[Tokenizer, ...]

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "N T L"]:
        return np.stack([tokenizer(texts) for tokenizer in self.each], axis=1)

    @property
    def context_length(self) -> int:
        return self.each[0].context_length

    def num_cut(self, texts: Sequence[str]) -> Int[np.ndarray, "N"]:
        """How many tokens of each text do not fit."""
        return np.max([tokenizer.num_cut(texts) for tokenizer in self.each], axis=0)


AnyTokenizer = Tokenizer | Tokenizers


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = [chr(256 + place) for place in range(len(others))]
    return [chr(byte) for byte in printable] + stand_ins


def train_tokenizer(
    captions: Iterable[str],
    directory: str | pathlib.Path,
    *,
    vocab_size: int,
    context_length: int,
) -> Tokenizer:
    """Learns merges from the captions and writes a tokenizer directory.

    The vocabulary is smaller than `vocab_size` where the captions have no more pairs
    to merge.
    """
    alphabet = _byte_alphabet()
    alphabet += [byte + END_OF_WORD for byte in alphabet]
    num_merges = vocab_size - len(alphabet) - 2
    if num_merges < 0:
        raise ValueError(f"vocab_size {vocab_size} is less than {len(alphabet) + 2}")
    learner = transformers.CLIPTokenizer().backend_tokenizer  # for how it splits text
    learner.model = tokenizers.models.BPE(end_of_word_suffix=END_OF_WORD)
    learner.train_from_iterator(
        captions,
        tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    merges = merges[:num_merges]
    tokens = [*alphabet, *("".join(pair) for pair in merges), START, END]
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (directory / VOCAB_FILE).write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (directory / MERGES_FILE).write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    return load_tokenizer(directory, context_length=context_length)


def load_tokenizer(
    directory: str | pathlib.Path, *, context_length: int | None = None
) -> Tokenizer:
    """Loads a published CLIP tokenizer directory, or one of `train_tokenizer`.

    The context is as long as the directory says (`model_max_length`), unless given.
    """
    directory = pathlib.Path(directory)
    if context_length is not None and context_length < 2:
        raise ValueError(f"context_length {context_length} has no room for start, end")
    vocab = _read_vocabulary(directory)
    try:
        clip = transformers.CLIPTokenizer.from_pretrained(
            str(directory), local_files_only=True
        )
    except Exception as error:  # the backend's own errors are bare exceptions
        raise _unreadable(directory, error) from error
    _check_vocabulary(clip, vocab, directory)
    if context_length is None:
        context_length = clip.model_max_length
    if not 2 <= context_length < 2**31:  # unsaid, it is a very large number
        raise ValueError(
            f"the tokenizer of {directory} has a model_max_length of {context_length};"
            " say context_length"
        )
    backend = tokenizers.Tokenizer.from_str(clip.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(
        backend,
        context_length,
        len(clip),
        clip.bos_token_id,
        clip.eos_token_id,
        clip.pad_token_id,
    )


def _read_vocabulary(directory: pathlib.Path) -> dict[str, int]:
    """Token -> id as the files say, whichever of the two published forms they have."""
    is_whole = not (directory / VOCAB_FILE).is_file()
    if is_whole and not (directory / WHOLE_FILE).is_file():
        raise FileNotFoundError(
            f"no {VOCAB_FILE} and no {WHOLE_FILE} in the tokenizer directory {directory}"
        )
    if not is_whole and not (directory / MERGES_FILE).is_file():
        raise FileNotFoundError(
            f"no {MERGES_FILE} in the tokenizer directory {directory}"
        )
    file = directory / (WHOLE_FILE if is_whole else VOCAB_FILE)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return dict(content["model"]["vocab"] if is_whole else content)
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(file, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> ValueError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ValueError(f"{path} is not a tokenizer that can be read: {reason}")


def _check_vocabulary(
    clip: transformers.CLIPTokenizer, vocab: dict[str, int], directory: pathlib.Path
) -> None:
    """transformers makes a tokenizer of two tokens, silently, of files it cannot read."""
    if not vocab.items() <= clip.get_vocab().items():
        raise ValueError(
            f"the tokenizer loaded from {directory} has {len(clip)} tokens,"
            f" its vocabulary file has {len(vocab)}"
        )
    if len(vocab) <= len(clip.all_special_tokens):
        raise ValueError(f"the tokenizer of {directory} has only {len(vocab)} tokens")
    has_merges = json.loads(clip.backend_tokenizer.to_str())["model"]["merges"]
    if len(vocab) > NUM_BYTES + 2 and not has_merges:
        raise ValueError(
            f"the tokenizer of {directory} has {len(vocab)} tokens and no merges"
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(clip, name) is None:
            raise ValueError(f"the tokenizer of {directory} has no {name}")
