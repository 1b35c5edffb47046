"""Batches: a function of seed and position, whoever computes them and when."""

import json
import logging

import numpy as np
import pytest

from diffusion_jax.data import batches, captions, records, scenes_builder

NUM = 37


def numbered(num=NUM):
    return batches.arrays({"value": np.arange(num), "double": 2.0 * np.arange(num)})


def noisy_example(row, rng):
    """Random, so that the tests see which generator each record is given."""
    return {"value": row["value"], "noise": rng.random(3)}


def stream(source=None, example=noisy_example, **options):
    options = {"batch_size": 8, "seed": 0} | options
    source = numbered() if source is None else source
    return batches.make_batches(source, example, **options)


def take(iterator, num):
    return [next(iterator) for _ in range(num)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_same_seed_gives_the_same_batches_and_another_others():
    assert_same(take(stream(), 6), take(stream(), 6))
    assert (next(stream())["value"] != next(stream(seed=1))["value"]).any()


def test_every_epoch_has_every_record_once_in_another_order():
    values = np.concatenate([b["value"] for b in take(stream(batch_size=1), 3 * NUM)])
    epochs = values.reshape(3, NUM)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(NUM))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


def test_a_record_meets_new_randomness_in_each_epoch():
    drawn = take(stream(batch_size=NUM), 2)
    noise = [b["noise"][np.argsort(b["value"])] for b in drawn]
    assert (noise[0] != noise[1]).all()


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 11])
def test_a_resumed_stream_goes_on_with_the_same_batches(stop):
    whole = take(stream(), 16)
    first = stream()
    take(first, stop)
    state = json.loads(json.dumps(first.get_state()))
    second = stream()
    second.set_state(state)
    assert_same(take(second, 16 - stop), whole[stop:])
    assert second.get_state()["position"] == 16 * 8


def test_a_stream_can_be_set_back():
    iterator = stream()
    state = iterator.get_state()
    first = take(iterator, 3)
    iterator.set_state(state)
    assert_same(take(iterator, 3), first)


def test_a_state_of_other_data_or_seed_is_refused():
    state = stream().get_state()
    with pytest.raises(ValueError, match="num_records 37"):
        stream(numbered(38)).set_state(state)
    with pytest.raises(ValueError, match="seed 0"):
        stream(seed=1).set_state(state)
    with pytest.raises(ValueError, match="shuffle True"):
        stream(shuffle=False).set_state(state)
    with pytest.raises(ValueError, match="num_records None"):
        stream().set_state({"position": 8})


def test_hosts_partition_the_global_batch():
    whole = take(stream(), 5)
    for count in (2, 4):
        hosts = [
            take(stream(shard_index=index, shard_count=count), 5)
            for index in range(count)
        ]
        for step, batch in enumerate(whole):
            for index, host in enumerate(hosts):
                np.testing.assert_array_equal(
                    host[step]["noise"], batch["noise"][index::count]
                )


def test_the_state_moves_between_numbers_of_hosts():
    host = stream(shard_index=1, shard_count=4)
    take(host, 3)
    alone = stream()
    alone.set_state(host.get_state())
    assert_same(take(alone, 2), take(stream(), 5)[3:])


def test_one_epoch_in_order_ends_and_loses_nothing():
    options = {"shuffle": False, "num_epochs": 1}
    parts = list(stream(drop_remainder=False, **options))
    assert [len(b["value"]) for b in parts] == [8, 8, 8, 8, 5]
    values = np.concatenate([b["value"] for b in parts])
    np.testing.assert_array_equal(values, np.arange(NUM))
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in parts]), values)
    assert len(list(stream(**options))) == 4
    iterator = stream(drop_remainder=False, **options)
    take(iterator, 4)
    resumed = stream(drop_remainder=False, **options)
    resumed.set_state(iterator.get_state())
    assert_same(list(resumed), parts[4:])
    ended = stream(drop_remainder=False, **options)
    ended.set_state(resumed.get_state())
    assert list(ended) == []


BAD = {3, 4, 20, 36}


def some_bad(row, rng):
    if int(row["value"]) in BAD:
        raise records.BadRecord("ugly")
    return {"value": row["value"]}


def test_bad_records_are_replaced_by_the_next_counted_and_logged_once(caplog):
    options = {"shuffle": False, "batch_size": NUM}
    iterator = stream(example=some_bad, **options)
    with caplog.at_level(logging.WARNING):
        first, second = take(iterator, 2)
    expected = np.arange(NUM)
    expected[[3, 4, 20, 36]] = 5, 5, 21, 0
    for batch in (first, second):
        np.testing.assert_array_equal(batch["value"], expected)
        np.testing.assert_array_equal(batch["index"], expected)
    # Record 4 is skipped on its own account and on that of record 3.
    assert iterator.num_skipped == 2 * 5
    told = sorted(r.getMessage() for r in caplog.records if "skipped" in r.getMessage())
    assert len(told) == len(BAD)
    assert "record 20" in told[0]
    assert "ugly" in told[0]


def test_the_count_of_bad_records_is_part_of_the_state():
    first = stream(example=some_bad)
    take(first, 5)
    second = stream(example=some_bad)
    second.set_state(first.get_state())
    take(second, 5)
    whole = stream(example=some_bad)
    take(whole, 10)
    assert second.num_skipped == whole.num_skipped > 0


class Unreadable(list):
    """A source that cannot read its second record."""

    def __getitem__(self, index):
        if index == 1:
            raise records.BadRecord("caption is not text")
        return {"value": index}


def test_a_record_that_the_source_cannot_read_is_skipped_too(caplog):
    source = Unreadable(range(4))
    batch = next(stream(source, batches.row_example, batch_size=4, shuffle=False))
    np.testing.assert_array_equal(batch["value"], [0, 2, 2, 3])
    assert "record 1: caption is not text" in caplog.text


def all_bad(row, rng):
    raise records.BadRecord("hopeless")


def test_a_source_with_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match="hopeless"):
        next(stream(example=all_bad))


def broken(row, rng):
    raise KeyError("typo")


def test_other_errors_stop_and_name_the_record():
    with pytest.raises(KeyError) as caught:
        next(stream(example=broken, shuffle=False))
    assert any("record 0" in note for note in caught.value.__notes__)


def test_impossible_requests_are_errors():
    with pytest.raises(ValueError, match="empty"):
        stream(numbered(0))
    with pytest.raises(ValueError, match="batch_size 8"):
        stream(shard_count=3)
    with pytest.raises(ValueError, match="drop_remainder=False"):
        stream(batch_size=64, num_epochs=1)
    with pytest.raises(ValueError, match="different lengths"):
        batches.arrays({"a": np.zeros(3), "b": np.zeros(4)})


def test_memory_mapped_arrays_are_rows(tmp_path):
    np.save(tmp_path / "latents.npy", np.arange(24.0).reshape(6, 2, 2))
    latents = np.load(tmp_path / "latents.npy", mmap_mode="r")
    source = batches.arrays({"latents": latents})
    (batch,) = stream(
        source, batches.row_example, batch_size=6, shuffle=False, num_epochs=1
    )
    np.testing.assert_array_equal(batch["latents"], latents)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    made = list(scenes_builder.generate("train", 24, image_size=64))
    tokenizer = captions.train_tokenizer(
        [caption for _, caption in made],
        tmp_path_factory.mktemp("tokenizer"),
        vocab_size=600,
        context_length=24,
    )
    source = [records.Record(png, c, f"scene {i}") for i, (png, c) in enumerate(made)]
    return source, tokenizer


def test_images_and_tokens_are_ready_for_the_networks(pictures):
    source, tokenizer = pictures
    example = batches.image_text_example(tokenizer, image_size=32, flip=True)
    batch = next(stream(source, example))
    assert batch["image"].shape == (8, 32, 32, 3)
    assert batch["image"].dtype == np.float32
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    texts = [source[index].caption for index in batch["index"]]
    np.testing.assert_array_equal(batch["tokens"], tokenizer(texts))


def test_examples_kept_in_memory_give_the_same_batches(pictures):
    source, tokenizer = pictures
    example = batches.image_text_example(tokenizer, image_size=32)
    rows = batches.in_memory(source, example)
    assert len(rows) == len(source)
    assert_same(
        take(stream(rows, batches.row_example), 5), take(stream(source, example), 5)
    )


def test_broken_images_and_empty_captions_are_skipped_by_name(pictures, caplog):
    source, tokenizer = pictures
    source = list(source)
    source[1] = source[1]._replace(image=source[1].image[:200])
    source[2] = source[2]._replace(caption="  ")
    example = batches.image_text_example(tokenizer, image_size=32)
    iterator = stream(source, example, shuffle=False)
    batch = next(iterator)
    np.testing.assert_array_equal(batch["index"], [0, 3, 3, 3, 4, 5, 6, 7])
    assert iterator.num_skipped == 3
    assert "scene 1" in caplog.text
    assert "scene 2): empty caption" in caplog.text


def test_an_unknown_crop_is_an_error_before_training(pictures):
    with pytest.raises(ValueError, match="center, random"):
        batches.image_text_example(pictures[1], image_size=32, crop="left")
