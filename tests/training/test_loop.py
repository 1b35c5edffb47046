"""The loop resumes to the bit, survives bad steps and says what it does."""

import io
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import toy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion_jax.training import checkpoint, loop, optimizer, state
from diffusion_jax.types import Task


def table(workdir):
    return (workdir / "metrics.csv").read_text()


def steps_saved(workdir):
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


class Stop(Exception):
    pass


def raise_at(number):
    def on_batch(index):
        if index == number:
            raise Stop

    return on_batch


def test_a_killed_run_resumes_to_the_same_bits(straight, run_toy, tmp_path):
    workdir, expected = straight
    assert run_toy(tmp_path, "--kill-at", 27).returncode == -signal.SIGKILL
    assert steps_saved(tmp_path) in ([10], [10, 20])
    resumed, _ = toy.train(tmp_path, toy.Stream())
    assert toy.equal(resumed, expected)
    assert table(tmp_path) == table(workdir)


@pytest.mark.parametrize("stop_at", [13, 20, 38])
def test_resuming_within_an_interval_gives_the_same_table(straight, tmp_path, stop_at):
    workdir, expected = straight
    with pytest.raises(SystemExit) as left:
        toy.train(tmp_path, toy.Stream(toy.signal_at(stop_at)))
    assert left.value.code == 0
    resumed, _ = toy.train(tmp_path, toy.Stream())
    assert toy.equal(resumed, expected)
    assert table(tmp_path) == table(workdir)


def test_interval_lengths_do_not_change_the_parameters(straight, tmp_path):
    _, expected = straight
    other, _ = toy.train(tmp_path, toy.Stream(), log_every=7, checkpoint_every=9)
    assert toy.equal(other, expected)
    rows = table(tmp_path).splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [7, 14, 21, 28, 35, 40]


def test_a_finished_run_returns_without_a_batch(straight):
    workdir, expected = straight
    before = table(workdir)
    again, frozen = toy.train(workdir, toy.Stream(raise_at(0)))
    assert toy.equal(again, expected)
    assert frozen["scale"].shape == (1,)
    assert table(workdir) == before


def test_resuming_draws_no_initial_parameters(straight, monkeypatch):
    workdir, _ = straight
    monkeypatch.delattr(state, "place_trainable")
    monkeypatch.delattr(loop, "place_trainable")
    toy.train(workdir, toy.Stream())


def test_the_table_holds_interval_means(straight, tmp_path):
    workdir, _ = straight
    toy.train(tmp_path, toy.Stream(), log_every=1)
    each = np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True)
    mean = np.genfromtxt(workdir / "metrics.csv", delimiter=",", names=True)
    for name in ("loss", "mae", "grad_norm", "learning_rate"):
        means = each[name].reshape(4, 10).mean(axis=1)
        np.testing.assert_allclose(mean[name], means, rtol=1e-5)


def test_one_bad_batch_is_skipped_and_counted(tmp_path):
    stream = toy.Stream(spoil=lambda index: index == 14)
    final, _ = toy.train(tmp_path, stream, log_every=1, num_steps=20)
    assert int(final.step) == 20
    assert int(final.num_skipped) == 1
    assert int(final.num_skipped_in_row) == 0
    rows = np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True)
    assert np.isnan(rows["loss"]).nonzero()[0].tolist() == [14]
    assert np.all(np.isfinite(final.params["dense"]["kernel"]))


def test_a_bad_batch_is_left_out_of_the_interval_mean(tmp_path):
    rows = []
    for log_every in (1, 10):
        stream = toy.Stream(spoil=lambda index: index == 14)
        workdir = tmp_path / str(log_every)
        toy.train(workdir, stream, num_steps=20, log_every=log_every)
        table = workdir / "metrics.csv"
        rows.append(np.genfromtxt(table, delimiter=",", names=True))
    each, mean = rows
    expected = [each["loss"][:10].mean(), np.nanmean(each["loss"][10:])]
    np.testing.assert_allclose(mean["loss"], expected, rtol=1e-5)
    assert mean["num_steps_skipped"].tolist() == [0, 1]


def test_ten_bad_steps_in_a_row_stop_the_run(straight, tmp_path):
    drawn = []
    stream = toy.Stream(on_batch=drawn.append, spoil=lambda index: index >= 25)
    with pytest.raises(loop.NonFiniteError, match="10 steps in a row.* step 35 .* 30"):
        toy.train(tmp_path, stream, log_every=1000)
    assert len(drawn) < 35 + 5
    assert steps_saved(tmp_path) == [10, 20, 30]
    kept = restore(tmp_path)
    good, _ = toy.train(tmp_path / "good", toy.Stream(), num_steps=25)
    assert toy.equal(kept.params, good.params)
    assert toy.equal(kept.ema_params, good.ema_params)
    assert toy.equal(kept.opt_state, good.opt_state)
    assert (int(kept.step), int(kept.num_skipped_in_row)) == (30, 5)


def restore(workdir):
    def make(key):
        return state.init_state(toy.adamw(), toy.init(key)[0])

    target = jax.eval_shape(make, jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), target
    )
    with checkpoint.open_manager(workdir / "checkpoints", keep=3) as manager:
        return checkpoint.restore_newest(manager, target).state


def test_nine_bad_steps_do_not_stop_the_run(tmp_path):
    stream = toy.Stream(spoil=lambda index: 10 <= index < 19)
    final, _ = toy.train(tmp_path, stream, num_steps=20)
    assert int(final.num_skipped) == 9


def test_a_damaged_newest_checkpoint_costs_only_its_steps(straight, tmp_path):
    workdir, expected = straight
    with pytest.raises(Stop):
        toy.train(tmp_path, toy.Stream(raise_at(35)))
    newest = tmp_path / "checkpoints" / "30" / "meta"
    for path in newest.iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="checkpoints/30 cannot be read"):
        resumed, _ = toy.train(tmp_path, toy.Stream())
    assert toy.equal(resumed, expected)
    assert table(tmp_path) == table(workdir)


@pytest.fixture
def listens_to_ctrl_c():
    """A shell that starts the tests in the background makes them ignore SIGINT."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_ctrl_c_saves_and_is_raised_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path, toy.Stream(toy.signal_at(13, signal.SIGINT)))
    assert steps_saved(tmp_path) == [10, 13]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_ends_the_process_well(run_toy, tmp_path):
    done = run_toy(tmp_path, "--kill-at", 13, "--signal", "SIGTERM")
    assert done.returncode == 0, done.stderr
    assert "saved step 13" in done.stderr
    assert steps_saved(tmp_path) == [10, 13]


def test_training_works_off_the_main_thread(straight, tmp_path):
    _, expected = straight
    results = []
    thread = threading.Thread(
        target=lambda: results.append(toy.train(tmp_path, toy.Stream()))
    )
    thread.start()
    thread.join()
    assert toy.equal(results[0][0], expected)


def test_samples_reach_the_table_and_tensorboard(tmp_path):
    def on_sample(step, state, frozen):
        image = np.full((4, 6, 3), 2 * step / 255 - 1, np.float32)
        bytes_of_it = np.full((4, 6, 3), step, np.uint8)
        return {"accuracy": step / 100, "samples": image, "bytes": bytes_of_it}

    toy.train(
        tmp_path, toy.Stream(), num_steps=20, sample_every=15, on_sample=on_sample
    )
    rows = np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True)
    assert rows["step"].tolist() == [10, 15, 20]
    np.testing.assert_allclose(rows["accuracy"], [np.nan, 0.15, 0.2], rtol=1e-6)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [10, 20]
    for name in ("samples", "bytes"):
        events = board.Images(name)
        assert [event.step for event in events] == [15, 20]
        pictures = [PIL.Image.open(io.BytesIO(e.encoded_image_string)) for e in events]
        assert pictures[0].size == (6, 4)
        assert [picture.getpixel((0, 0)) for picture in pictures] == [
            (15,) * 3,
            (20,) * 3,
        ]


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    with pytest.raises(Stop):
        toy.train(tmp_path, toy.Stream(raise_at(35)), checkpoint_every=20)
    toy.train(tmp_path, toy.Stream())
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [10, 20, 30, 40]


def test_the_progress_says_where_the_run_is(tmp_path, capsys):
    stream = toy.Stream()
    stream.num_skipped = 3
    toy.train(tmp_path, stream, name="toy")
    lines = capsys.readouterr().err.splitlines()
    assert sum("compiling" in line for line in lines) == 1
    assert len(lines) == 5
    for word in ("toy", "40/40", "loss", "images/s", "left", "3 records skipped"):
        assert word in lines[-1]


def test_batches_that_end_early_are_an_error(tmp_path):
    def end(index):
        if index == 15:
            raise StopIteration

    with pytest.raises(ValueError, match="ended before num_steps"):
        toy.train(tmp_path, toy.Stream(end))


def test_a_resumed_run_of_another_model_is_refused(straight):
    workdir, _ = straight

    def wide(key):
        return {"dense": {"kernel": jnp.zeros((9, 1))}}, {}

    with pytest.raises(checkpoint.MismatchError, match="bias is float32.* absent here"):
        loop.train(
            Task(wide, toy.squared_error),
            toy.Stream(),
            optimizer.make_optimizer(learning_rate=0.1),
            workdir,
            loop.LoopOptions(num_steps=50),
        )


def test_loaded_weights_survive_their_training(tmp_path):
    key = jax.random.key(1)
    params, frozen = toy.init(key)

    def init(key):
        return params, frozen

    loop.train(
        Task(init, toy.squared_error),
        toy.Stream(),
        toy.adamw(),
        tmp_path,
        loop.LoopOptions(num_steps=3),
    )
    assert toy.equal(params, toy.init(key)[0])
    assert toy.equal(frozen, toy.init(key)[1])


def test_the_loss_is_traced_once(tmp_path):
    traces = []

    def loss(params, frozen, key, batch):
        traces.append(1)
        return toy.squared_error(params, frozen, key, batch)

    for accumulate in (1, 4):
        traces.clear()
        loop.train(
            Task(toy.init, loss),
            toy.Stream(),
            toy.adamw(),
            tmp_path / str(accumulate),
            loop.LoopOptions(num_steps=3, accumulate=accumulate),
        )
        assert len(traces) == 1


@pytest.mark.parametrize("field", ["num_steps", "log_every", "keep", "max_bad_steps"])
def test_options_that_make_no_sense_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        loop.LoopOptions(**{"num_steps": 1, field: 0})
