"""A linear model on endless random data, trained by the real loop in milliseconds."""

import argparse
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.training import loop, optimizer, sharding
from diffusion_jax.types import Task

WIDTH, BATCH = 8, 16
FSDP = [("kernel$", "fsdp")]


class Stream:
    """Batch i is a function of i; `on_batch(i)` runs before it is handed out."""

    def __init__(self, on_batch=lambda index: None, spoil=lambda index: False):
        self.index, self.on_batch, self.spoil = 0, on_batch, spoil

    def __next__(self):
        self.on_batch(self.index)
        rng = np.random.default_rng(self.index)
        x = rng.normal(size=(BATCH, WIDTH)).astype(np.float32)
        y = x @ np.arange(WIDTH, dtype=np.float32)
        if self.spoil(self.index):
            y[3] = np.nan
        self.index += 1
        return {"x": x, "y": y}

    def get_state(self):
        return {"index": self.index}

    def set_state(self, state):
        self.index = state["index"]


def signal_at(number, which=signal.SIGTERM):
    """For `on_batch`: this process gets the signal while it draws batch `number`."""

    def on_batch(index):
        if index == number:
            os.kill(os.getpid(), which)

    return on_batch


def init(key):
    kernel = jax.random.normal(key, (WIDTH, 1))
    return {"dense": {"kernel": kernel, "bias": jnp.zeros(1)}}, {"scale": jnp.ones(1)}


def squared_error(params, frozen, key, batch):
    dense = params["dense"]
    error = batch["x"] @ dense["kernel"] + dense["bias"]
    error = error[:, 0] * frozen["scale"] - batch["y"]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def noisy_error(params, frozen, key, batch):
    """Draws from `key`, so that a wrong key of a resumed step shows."""
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    return squared_error(params, frozen, key, {**batch, "y": batch["y"] + noise})


def adamw(num_steps=40):
    return optimizer.make_optimizer(
        learning_rate=0.05, schedule="cosine", warmup_steps=5, total_steps=num_steps
    )


def train(workdir, stream, *, on_sample=None, rules=(), mesh=None, **options):
    options = {"num_steps": 40, "log_every": 10, "checkpoint_every": 10} | options
    return loop.train(
        Task(init, noisy_error),
        stream,
        adamw(),
        workdir,
        loop.LoopOptions(ema_decay=0.9, **options),
        mesh=mesh,
        sharding_rules=rules,
        on_sample=on_sample,
    )


def equal(tree, other):
    """Bit for bit, structure included."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other)
    return all(jax.tree.leaves(same))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--fsdp", type=int, default=0)
    args = parser.parse_args()

    on_batch = signal_at(args.kill_at, getattr(signal, args.signal))
    mesh, rules = None, ()
    if args.fsdp:
        mesh, rules = sharding.make_mesh({"data": -1, "fsdp": args.fsdp}), FSDP
    for workdir in args.workdirs:
        state, _ = train(workdir, Stream(on_batch), mesh=mesh, rules=rules)
    if args.fsdp:
        kernel = state.opt_state.inner_state[1][0].mu["dense"]["kernel"]
        print(jax.device_count(), *kernel.sharding.spec)


if __name__ == "__main__":
    main()
