"""The train loop: one for every Task.

    restore or init  ->  step, step, ... (a row every `log_every`, samples every
    `sample_every`, a checkpoint every `checkpoint_every` steps)  ->  checkpoint

The same call again goes on from the newest checkpoint and, on the same hardware, gives
the bits of the run that was never interrupted. The host runs ahead of the device and
waits for it only to write rows and checkpoints.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import signal
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from diffusion_jax.training import checkpoint, interrupts, metrics, sharding
from diffusion_jax.training.feed import Batches, Drawn, draw
from diffusion_jax.training.state import (
    TrainState,
    init_state,
    place_frozen,
    place_trainable,
    trace_init,
)
from diffusion_jax.training.step import (
    MetricSums,
    compile_step,
    make_train_step,
    metric_names,
)
from diffusion_jax.types import Key, Params, Task

RUN_AHEAD = 2  # steps queued on the device; more would only hold more batches

OnSample = Callable[[int, TrainState, Params], Mapping[str, Any]]
"""`on_sample(step, state, frozen)` -> numbers for the table and images (H W 3) for
TensorBoard. The next step reuses the memory of `state`: read it, do not keep it."""


class NonFiniteError(RuntimeError):
    """The loss or its gradient was not finite in too many steps in a row."""


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """How long, how often, and under which name; `sample_every=0` is never."""

    num_steps: int
    seed: int = 0
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    accumulate: int = 1
    log_every: int = 50
    sample_every: int = 0
    checkpoint_every: int = 1000
    keep: int = 3
    max_bad_steps: int = 10
    name: str = "train"

    def __post_init__(self) -> None:
        positive = "num_steps accumulate log_every checkpoint_every keep max_bad_steps"
        for field in positive.split():
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be >= 1")
        if self.sample_every < 0:
            raise ValueError(f"sample_every is {self.sample_every}; it must be >= 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1)")


class Start(NamedTuple):
    """Where a run begins: at step 0, or where the newest checkpoint left it."""

    step: int
    state: TrainState
    frozen: Params
    position: Any = None  # of the batches
    extra: Mapping[str, Any] = {}  # what `Run.save` adds


def begin(
    task: Task,
    optimizer: optax.GradientTransformation,
    manager: ocp.CheckpointManager,
    key: Key,
    mesh: Mesh,
    rules: sharding.Rules,
) -> Start:
    """Restores the newest good checkpoint, or draws the initial parameters."""

    def make(params: Params) -> TrainState:
        return init_state(optimizer, params)

    traced = trace_init(task.init, key)
    trainable, frozen = traced.shapes
    target = jax.eval_shape(make, trainable)
    places = sharding.infer_shardings(target, rules, mesh)
    restored = checkpoint.restore_newest(manager, _with_shardings(target, places))
    frozen = place_frozen(traced, sharding.infer_shardings(frozen, rules, mesh))
    if restored is not None:
        state, position, extra = restored.state, restored.data, restored.extra
        return Start(restored.step, state, frozen, position, extra)
    params = place_trainable(traced, places.params)
    return Start(0, jax.jit(make, out_shardings=places)(params), frozen)


def _with_shardings(shapes: PyTree, places: PyTree) -> PyTree:
    def join(shape, place):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    return jax.tree.map(join, shapes, places)


class Run:
    """The moving parts of one call of `train`."""

    def __init__(
        self,
        start: Start,
        draw_next: Callable[[], Drawn],
        options: LoopOptions,
        manager: ocp.CheckpointManager,
        mesh: Mesh,
    ):
        self.step, self.state, self.frozen = start.step, start.state, start.frozen
        self.options, self.manager, self.draw_next = options, manager, draw_next
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.num_records_skipped = 0
        self.unfinished = start.extra.get("sums")
        self.unseen: collections.deque = collections.deque()
        is_silent = jax.process_index() != 0
        self.progress = metrics.Progress(
            options.name, options.num_steps, is_silent=is_silent
        )

    def prepare(
        self, task: Task, optimizer: optax.GradientTransformation, key: Key
    ) -> None:
        """Draws the first batch and builds the program, which its call compiles."""
        options = self.options
        train_step = make_train_step(
            task.loss,
            optimizer,
            ema_decay=options.ema_decay,
            ema_warmup=options.ema_warmup,
            accumulate=options.accumulate,
        )
        train_step = jax.jit(train_step)  # traced once for the names and the program
        self.drawn = self.draw_next()
        arguments = (self.state, self.frozen, key, self.drawn.batch)
        self.names = metric_names(train_step, *arguments)
        self.sums = self.make_sums(self.unfinished)
        self.key, self.program = key, compile_step(train_step, *arguments)

    def make_sums(self, saved: Mapping[str, Any] | None = None) -> MetricSums:
        """Zeros, or the sums of the interval in which the checkpoint was written."""
        if saved is None or sorted(saved["total"]) != sorted(self.names):
            saved = {"total": dict.fromkeys(self.names, 0.0), "count": 0}
        total = {name: np.float32(saved["total"][name]) for name in self.names}
        sums = MetricSums(total, np.int32(saved["count"]))
        return sharding.place(sums, jax.tree.map(lambda _: self.replicated, sums))

    def advance(self) -> None:
        """Queues one step, then draws the next batch while the device works."""
        self.step += 1
        drawn, arguments = self.drawn, (self.frozen, self.key, self.drawn.batch)
        self.state, self.sums, health = self.program(self.state, self.sums, *arguments)
        self.unseen.append((self.step, health, drawn.num_examples))
        self.position = drawn.position
        self.num_records_skipped = drawn.num_skipped
        if self.step < self.options.num_steps:
            self.drawn = self.draw_next()
        self.look(at_most=RUN_AHEAD)

    def look(self, *, at_most: int) -> None:
        """Waits until only `at_most` steps are unseen; raises on too many bad ones."""
        while len(self.unseen) > at_most:
            step, health, num_examples = self.unseen.popleft()
            loss, num_skipped, in_row = jax.device_get(health)
            skipped = {"steps": int(num_skipped), "records": self.num_records_skipped}
            self.progress.add(step, float(loss), skipped, num_examples)
            if in_row >= self.options.max_bad_steps:
                self.progress.end()
                raise NonFiniteError(
                    f"{self.options.name}: loss or gradient not finite in {in_row} "
                    f"steps in a row, the last of them step {step} (loss {loss}); "
                    f"parameters are unchanged since step {step - in_row}; newest "
                    f"checkpoint: step {self.manager.latest_step() or 'none'}"
                )

    def row(self) -> dict[str, np.float32 | int]:
        """The means over the interval that ends here, and the counts of the run."""
        self.look(at_most=0)
        total, count = jax.device_get(self.sums)
        self.sums = self.make_sums()
        with np.errstate(invalid="ignore"):  # 0 / 0: every step was skipped
            means = {
                name: total[name] / np.float32(count)
                for name in sorted(total, key=lambda name: (name != "loss", name))
            }
        counts = {
            "num_steps_skipped": int(self.state.num_skipped),
            "num_records_skipped": self.num_records_skipped,
        }
        return means | counts

    def save(self) -> None:
        """Queues a checkpoint; the state is copied before this returns."""
        self.look(at_most=0)
        total, count = jax.device_get(self.sums)
        total = {name: float(value) for name, value in total.items()}
        extra = {"sums": {"total": total, "count": int(count)}}
        position = json.loads(self.position)
        checkpoint.save(self.manager, self.step, self.state, position, extra)

    def report(self, writer: metrics.Writer, on_sample: OnSample | None) -> None:
        """Writes this step's row and samples, if they are due."""
        options, is_last = self.options, self.step == self.options.num_steps
        values, timing = {}, {}
        if is_last or self.step % options.log_every == 0:
            values = self.row()
            timing = self.progress.log(float(values["loss"]))
        every = options.sample_every
        if on_sample and every and (is_last or self.step % every == 0):
            self.look(at_most=0)
            values |= on_sample(self.step, self.state, self.frozen)
        writer.write(self.step, values, timing)

    def stop(self, number: int) -> None:
        """Saves and leaves: exit code 0 after SIGTERM, KeyboardInterrupt on Ctrl-C."""
        self.save()
        self.manager.wait_until_finished()
        self.progress.say(
            f"{self.options.name}: saved step {self.step}; "
            "the same command goes on from there"
        )
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0)


def train(
    task: Task,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    workdir: epath.PathLike,
    options: LoopOptions,
    *,
    mesh: Mesh | None = None,
    sharding_rules: sharding.Rules = (),
    on_sample: OnSample | None = None,
) -> tuple[TrainState, Params]:
    """Trains to `num_steps` from where `workdir` stands; returns (state, frozen).

    A finished run returns at once without drawing a batch. Ctrl-C and SIGTERM save.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    init_key, train_key = jax.random.split(jax.random.key(options.seed))
    directory = epath.Path(workdir) / "checkpoints"
    with checkpoint.open_manager(directory, keep=options.keep) as manager:
        start = begin(task, optimizer, manager, init_key, mesh, sharding_rules)
        if start.step >= options.num_steps:
            return start.state, start.frozen
        if start.position is not None:
            batches.set_state(start.position)
        run = Run(start, lambda: draw(batches, mesh), options, manager, mesh)
        run.prepare(task, optimizer, train_key)
        is_silent = jax.process_index() != 0
        writer = metrics.Writer(workdir, start.step, is_silent=is_silent)
        with contextlib.closing(writer):
            _finish(run, writer, on_sample)
        return run.state, run.frozen


def _finish(run: Run, writer: metrics.Writer, on_sample: OnSample | None) -> None:
    options, manager = run.options, run.manager
    run.progress.begin(run.step)
    with interrupts.deferred() as received:
        while run.step < options.num_steps:
            run.advance()
            run.report(writer, on_sample)
            if run.step % options.checkpoint_every == 0:
                run.save()
            if jax.process_count() > 1 and manager.reached_preemption(run.step):
                received.append(signal.SIGTERM)
            if received:
                run.stop(received[0])
        run.save()
    run.progress.end()
