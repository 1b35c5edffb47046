"""Batches: shuffled, decoded, sharded over hosts, and resumable at any point.

Everything a batch holds is a function of (seed, position in the stream): `grain`
shuffles each epoch anew, hands a generator to each record, and reads ahead in threads
or worker processes. The state of the stream is its position alone, so it goes on with
the same batches whatever the number of workers or hosts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from diffusion_jax.data import images, records

Row = dict[str, Any]  # of numpy arrays and numbers
Example = Callable[[Any, np.random.Generator], Row]
"""Makes the arrays of one record; raises `records.BadRecord` if it cannot."""

Tokenizer = Callable[[Sequence[str]], Int[np.ndarray, "N L"]]

MAX_SKIPS = 1000  # bad records in a row
NUM_THREADS, NUM_AHEAD = 2, 8  # that read ahead, and how many batches

_log = logging.getLogger(__name__)


def arrays(columns: Mapping[str, np.ndarray]) -> Sequence[Row]:
    """Equally long arrays, memory-mapped or not, as a source of rows."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays of different lengths: {lengths}")
    return _Rows(dict(columns))


class _Rows(Sequence):
    def __init__(self, columns: dict[str, np.ndarray]):
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index: int) -> Row:
        return {name: column[index] for name, column in self._columns.items()}


def row_example(row: Row, rng: np.random.Generator) -> Row:
    """The example of a source that has arrays already."""
    return row


def image_text_example(
    tokenizer: captions.AnyTokenizer | None,
    *,
    image_size: int,
    crop: str = "center",
    flip: bool = False,
    confuse: Callable[[np.random.Generator, str], str] | None = None,
) -> Example:
    """Records -> `image` (float32 in [-1, 1], square) and, with a tokenizer, `tokens`.

    With `confuse`, of `hard_negatives`, also `false_tokens`: of a false caption.
    """
    if crop not in images.CROPS:
        raise ValueError(f"unknown crop {crop!r}; one of {', '.join(images.CROPS)}")
    return functools.partial(
        _image_text,
        tokenizer=tokenizer,
        image_size=image_size,
        crop=crop,
        flip=flip,
        confuse=confuse,
    )


def _image_text(record, rng, *, tokenizer, image_size, crop, flip, confuse):
    if not record.caption.strip():
        raise records.BadRecord("empty caption")
    image = images.decode(record.image)
    image = images.square(image, image_size, crop=crop, rng=rng)
    if flip:
        image = images.flip(image, rng)
    made = {"image": images.to_float(image)}
    if tokenizer is None:
        return made
    made["tokens"] = tokenizer([record.caption])[0]
    if confuse is not None:
        made["false_tokens"] = tokenizer([confuse(rng, record.caption)])[0]
    return made


def _read(index: int, rng: np.random.Generator, *, source, example) -> dict:
    """The example of record `index`, or of the next readable one after it."""
    for num_skipped in range(min(len(source), MAX_SKIPS)):
        at = (index + num_skipped) % len(source)
        try:
            arrays_of_record = example(source[at], rng)
        except records.BadRecord as error:
            reason = error
            continue
        except Exception as error:
            error.add_note(f"while reading record {at}")
            raise
        counts = {"index": np.int32(at), "num_skipped": np.int32(num_skipped)}
        return {**arrays_of_record, **counts}
    raise ValueError(
        f"no readable record among {min(len(source), MAX_SKIPS)} from {index} on;"
        f" the last: {reason}"
    )


class Batches(Iterator):
    """Iterates over dicts of arrays; `index` tells the record of each row.

    `num_skipped` counts the bad records met so far, each of which was replaced by the
    next readable one; every one of them is logged once.
    """

    def __init__(self, dataset, explain, make_iterator, *, identity, step):
        self._dataset = dataset
        self._explain = explain
        self._make_iterator = make_iterator
        self._identity = identity
        self._step = step
        self._position = 0
        self._iterator = None
        self._explained: set[int] = set()
        self.num_skipped = 0

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._make_iterator(self._dataset[self._position :])
        batch = dict(next(self._iterator))
        self._position += self._step
        self._account(batch["index"], batch.pop("num_skipped"))
        return batch

    def _account(self, index: np.ndarray, num_skipped: np.ndarray) -> None:
        self.num_skipped += int(num_skipped.sum())
        num_records = self._identity["num_records"]
        for last, num in zip(index[num_skipped > 0], num_skipped[num_skipped > 0]):
            for at in range(int(last) - int(num), int(last)):
                if at % num_records not in self._explained:
                    self._explained.add(at % num_records)
                    _log.warning("skipped %s", self._explain(at % num_records))

    def get_state(self) -> dict[str, int]:
        """Where the stream is, for JSON; only `num_skipped` differs between hosts."""
        counts = {"position": self._position, "num_skipped": self.num_skipped}
        return {**self._identity, **counts}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on where `state` was taken, from the same data and seed only."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the saved data stream has {name} {state.get(name)}, this one"
                    f" has {value}"
                )
        self.close()
        self._position = state["position"]
        self.num_skipped = state["num_skipped"]

    def close(self) -> None:
        """Stops the threads and workers that read ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def _explain(at: int, *, source, example) -> str:
    """What is wrong with a record, found out by reading it again."""
    name = ""
    try:
        record = source[at]
        name = f" ({record.name})" if hasattr(record, "name") else ""
        example(record, np.random.default_rng(0))
    except records.BadRecord as error:
        return f"record {at}{name}: {error}"
    return f"record {at}{name}"


def make_batches(
    source: Sequence,
    example: Example,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    num_workers: int = 0,
    num_epochs: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    drop_remainder: bool = True,
) -> Batches:
    """An iterator over batches; `batch_size` counts the rows of all hosts together.

    Host `shard_index` gets every `shard_count`-th row. Worker processes (0: threads of
    this one) receive a pickled copy of the source, so keep large arrays to threads.
    """
    num_records = len(source)
    if not num_records:
        raise ValueError("the source is empty")
    if batch_size < 1 or batch_size % shard_count:
        raise ValueError(f"batch_size {batch_size} does not divide by {shard_count}")
    if drop_remainder and num_epochs and num_records * num_epochs < batch_size:
        raise ValueError(
            f"{num_records} records give no batch of {batch_size} in {num_epochs}"
            " epochs; use drop_remainder=False"
        )
    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
    dataset = grain.MapDataset.range(num_records).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.repeat(num_epochs)
    read = functools.partial(_read, source=source, example=example)
    return Batches(
        dataset.random_map(read),
        functools.partial(_explain, source=source, example=example),
        functools.partial(
            _iterate,
            shard=slice(shard_index, None, shard_count),
            batch_size=batch_size // shard_count,
            drop_remainder=drop_remainder,
            num_workers=num_workers,
        ),
        identity={"num_records": num_records, "seed": seed, "shuffle": shuffle},
        step=batch_size,
    )


def _iterate(dataset, *, shard, batch_size, drop_remainder, num_workers):
    """Starts to read: the rows of this host, batched, ahead of their use."""
    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=NUM_AHEAD)
    dataset = dataset[shard].batch(batch_size, drop_remainder=drop_remainder)
    stream = dataset.to_iter_dataset(read_options=options)
    if num_workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers))
    return iter(stream)


def in_memory(source: Sequence, example: Example, *, seed: int = 0) -> Sequence[Row]:
    """Every example of a source made once, as rows of arrays, in the same order.

    For small data and many epochs; random crops and flips stay as they fell.
    """
    options = dict(shuffle=False, num_epochs=1, drop_remainder=False)
    parts = list(make_batches(source, example, batch_size=256, seed=seed, **options))
    names = parts[0].keys() - {"index"}
    return arrays({name: np.concatenate([p[name] for p in parts]) for name in names})
