"""Batches from worker processes; apart, as each of them imports this file."""

import numpy as np

from diffusion_jax.data import batches


def noisy_example(row, rng):
    return {"value": row["value"], "noise": rng.random(3)}


def stream(**options):
    source = batches.arrays({"value": np.arange(37)})
    return batches.make_batches(source, noisy_example, batch_size=8, seed=0, **options)


def take(iterator, num):
    return [next(iterator) for _ in range(num)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_worker_processes_change_nothing():
    whole = take(stream(), 7)
    workers = stream(num_workers=2)
    assert_same(take(workers, 3), whole[:3])
    state = workers.get_state()
    workers.close()
    threads = stream()
    threads.set_state(state)
    assert_same(take(threads, 4), whole[3:])
