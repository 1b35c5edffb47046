"""What the experiments on the small DALL·E 2 choose, count, keep and draw."""

import json
import types

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from ml_collections import ConfigDict
from PIL import Image

from diffusion_jax import build, unclip_runs
from diffusion_jax.data import scene_captions, scenes
from diffusion_jax.evaluation import figures, upsampling
from diffusion_jax.pipelines import manipulations
from experiments import (
    colour_edits,
    fig_unclip_guidance,
    fig_unclip_pca,
    fig_unclip_text_diff,
    scenes_dalle2,
    scenes_measures,
    scenes_stack,
    unclip_figures,
)
from experiments.scenes_stack import Scenes


def random_scenes(num, image_size=32):
    rng = np.random.default_rng(0)
    drawn = [scenes.sample(rng) for _ in range(num)]
    captions = [scene_captions.write(rng, scene_captions.claims_of(s)) for s in drawn]
    return drawn, Scenes(rendered(drawn, image_size), captions)


def rendered(drawn, image_size=32):
    return scenes.render(drawn, image_size=image_size).astype(np.float32) / 127.5 - 1


def with_object(scene, **changes):
    return scene._replace(objects=(scene.objects[0]._replace(**changes),))


# ---- edits ---------------------------------------------------------------------------


def test_a_recoloured_caption_claims_another_colour_and_else_the_same():
    _, examples = random_scenes(60)
    single = scenes_stack.single_objects(examples)
    assert 10 < len(single.captions) < 50
    for caption in single.captions:
        after = scene_captions.parse(colour_edits.recoloured(caption, "cyan"))
        before = scene_captions.parse(caption)
        (thing,) = before.things
        assert after == before._replace(things=(thing._replace(colour="cyan"),))


def test_edits_are_to_other_colours_that_training_shows_with_the_shape():
    _, examples = random_scenes(200)
    known, all_pairs = (
        colour_edits.edits(examples, may_be_held_out=allowed).after
        for allowed in (False, True)
    )
    captions = colour_edits.edits(examples).scenes.captions
    few = colour_edits.edits(examples, 5)
    assert (few.scenes.captions, few.after) == (captions[:5], known[:5])
    assert len(captions) == len(known) > 50
    colours = [list(map(colour_edits.colour_of, c)) for c in (captions, known)]
    assert all(a != b for a, b in zip(*colours, strict=True))
    assert set(colours[1]) == set(scenes.COLOURS)
    held_out = [scene_captions.is_held_out(scene_captions.parse(c)) for c in known]
    assert not any(held_out)
    assert any(scene_captions.is_held_out(scene_captions.parse(c)) for c in all_pairs)


def test_an_edit_succeeds_that_changes_the_colour_and_nothing_else():
    drawn, _ = random_scenes(80)
    drawn = [scene for scene in drawn if len(scene.objects) == 1][:12]
    colours = ["blue" if s.objects[0].colour != "blue" else "red" for s in drawn]
    captions = [
        f"a {s.objects[0].size} {colour} {s.objects[0].shape}"
        for s, colour in zip(drawn, colours, strict=True)
    ]
    right = [
        with_object(s, colour=colour, rgb=scenes.PALETTE[colour])
        for s, colour in zip(drawn, colours, strict=True)
    ]
    moved = [
        with_object(s, x=0.7 if s.objects[0].x < 0.5 else 0.3, y=0.3) for s in right
    ]
    grown = [with_object(s, radius=10 / 32 - s.objects[0].radius) for s in right]
    originals = rendered(drawn)

    def share(edited, image_size=32):
        images = rendered(edited, image_size)
        return colour_edits.share_of_successes(images, originals, captions)

    assert share(right) == share(right, image_size=64) == 1
    assert share(drawn) == share(moved) == 0
    assert share(grown) < 0.2


def test_the_best_setting_succeeds_most_and_changes_least():
    shares = {(0.3, 1.0): 0.5, (0.2, 2.0): 0.7, (0.2, 1.0): 0.7, (0.5, 1.0): 0.7}
    assert colour_edits.best(shares) == (0.2, 1.0)
    assert max(colour_edits.THETAS) <= manipulations.MAX_THETA


# ---- measures, with stand-ins for networks -------------------------------------------


BLUR = dict(name="blur", probability=0.5, size=3, sigma=0.6)


@pytest.mark.parametrize("options", [BLUR, {"name": "bsr"}])
def test_every_image_is_degraded_and_clean_ones_are_not(options):
    _, examples = random_scenes(8)
    low, again, clean = (
        scenes_measures.degraded(examples.images, 16, chosen)
        for chosen in (options, options, {"name": "none"})
    )
    np.testing.assert_array_equal(low, again)
    assert np.all(np.abs(low - clean).max(axis=(1, 2, 3)) > 0.02)
    bicubic = np.asarray(upsampling.bicubic(examples.images, 16))
    assert np.abs(clean - bicubic).mean() < 0.01


def an_upsampler(low_size, **degradation):
    upsampler = types.SimpleNamespace(low_size=low_size, degradation=degradation)
    return types.SimpleNamespace(upsampler=upsampler)


def test_upsamplers_are_compared_on_clean_and_on_degraded_images():
    """These know the originals."""
    sizes = {"one": 32, "two": 64}
    examples = {name: random_scenes(4, size)[1] for name, size in sizes.items()}
    seen = []

    def enlarge(low_res, *, first, last):
        seen.append((low_res.shape[1], first, last))
        return examples[("one", "two")[last - 1]].images

    stages = [types.SimpleNamespace(name=k, size=v) for k, v in sizes.items()]
    configs = {"one": an_upsampler(16, **BLUR), "two": an_upsampler(32, name="bsr")}
    subject = types.SimpleNamespace(
        pipeline=types.SimpleNamespace(upsamplers=stages),
        stack=types.SimpleNamespace(configs=configs),
        scenes=lambda split, num, stage: examples[stage],
        enlarge=enlarge,
    )
    found = scenes_measures.upsampling(subject, None, 16)
    assert seen == [(16, 0, 1)] * 2 + [(32, 1, 2)] * 2 + [(16, 0, 2)] * 2
    for name in ("one", "two", "cascade"):
        for kind in ("clean", "degraded"):
            ours, theirs = (f"{name}_{kind}_{by}" for by in ("upsampled", "bicubic"))
            assert found[f"{ours}_psnr"] > found[f"{theirs}_psnr"] + 10
            assert found[f"{ours}_accuracy"] == 1 >= found[f"{theirs}_accuracy"]
        clean, degraded = (
            found[f"{name}_{kind}_bicubic_psnr"] for kind in ("clean", "degraded")
        )
        assert degraded < clean


def test_the_first_draw_and_the_best_by_clip_are_told_apart():
    values = np.float32([0.1, 0.4, 0.2, 0.9, 0.6, 0.3])

    def embed_images(images):
        angle = images[:, 0, 0, 0]
        return np.stack([np.sin(angle), np.cos(angle)], axis=1)

    enlarged = []

    def enlarge(images, *, last):
        enlarged.append((len(images), last))
        return images.repeat(2, axis=1).repeat(2, axis=2)

    subject = types.SimpleNamespace(
        draw=lambda captions: np.broadcast_to(
            values[:, None, None, None], (len(captions), 2, 2, 3)
        ),
        enlarge=enlarge,
        num_before_clip=2,
        embed_images=embed_images,
        embed_texts=lambda captions: np.float32([[1, 0]] * len(captions)),
    )
    small, first, best = scenes_measures.draws(subject, ["a", "b"], num=3)
    assert small.shape == (2, 2, 2, 3) and first.shape == best.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(small[:, 0, 0, 0], first[:, 0, 0, 0])
    np.testing.assert_allclose(first[:, 0, 0, 0], [0.1, 0.9])
    np.testing.assert_allclose(best[:, 0, 0, 0], [0.4, 0.9])
    assert enlarged == [(6, 2)]


def test_diversity_is_of_draws_of_one_caption():
    draws = np.zeros((3, 4, 2, 2, 3), np.float32)
    draws += np.arange(3, dtype=np.float32)[:, None, None, None, None]
    assert fig_unclip_guidance.diversity(draws) == 0
    draws[:, 0] += 1  # half of the six pairs are of it
    assert fig_unclip_guidance.diversity(draws) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("width", "counts"), [(6, (1, 2, 4, 6)), (8, (1, 2, 4, 8)), (1, (1,))]
)
def test_components_are_counted_in_powers_of_two_up_to_all(width, counts):
    assert fig_unclip_pca.counts_of(width) == counts


def test_a_stack_without_a_prior_is_an_error_in_one_line(monkeypatch, tmp_path):
    pipeline = types.SimpleNamespace(prior=None, upsamplers=("one",))
    stack = types.SimpleNamespace(pipeline=pipeline, configs={"decoder": None})
    monkeypatch.setattr(unclip_runs, "load", lambda *_, **__: stack)
    with pytest.raises(build.ConfigError, match="need a prior and upsamplers"):
        scenes_stack.load(tmp_path)


# ---- what is kept and drawn ----------------------------------------------------------


def trained_by(times, steps, monkeypatch):
    """Trainings that take these seconds and leave these checkpoints, by stage."""
    clock = [0.0]

    def train_one(config, workdir):
        clock[0] += times[workdir.name]
        step = steps[workdir.name]
        (workdir / "checkpoints" / str(abs(step))).mkdir(parents=True, exist_ok=True)
        if step < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(scenes_dalle2.train, "train", train_one)
    monkeypatch.setattr(scenes_dalle2.time, "monotonic", lambda: clock[0])


def test_seconds_are_of_the_runs_that_are_there(tmp_path, monkeypatch):
    scenes_dalle2.write(tmp_path, {"accuracy_held_in": 0.5})
    names = list(scenes_dalle2.CONFIGS)
    took, at = dict.fromkeys(names, 10.0), dict.fromkeys(names, 100)
    trained_by(took, at | {"decoder": -50}, monkeypatch)

    def again():
        seconds = scenes_dalle2.read(tmp_path).get("seconds", {})
        scenes_dalle2.train_all(tmp_path, "", seconds)

    with pytest.raises(KeyboardInterrupt):
        again()
    trained_by(took, at, monkeypatch)
    again()  # the decoder goes on, and only that adds to what there is
    expected = took | {"decoder": 20.0, "total": 70.0}
    kept = scenes_dalle2.read(tmp_path)
    assert kept == {"accuracy_held_in": 0.5, "seconds": expected}
    again()  # nothing is left to do
    assert scenes_dalle2.read(tmp_path)["seconds"] == expected
    (tmp_path / "decoder" / "checkpoints").rename(tmp_path / "deleted")
    again()
    kept = scenes_dalle2.read(tmp_path)["seconds"]
    assert kept == expected | {"decoder": 10.0, "total": 60.0}
    assert scenes_dalle2.read(tmp_path / "nowhere") == {}


def subject_of(value, steps=3, **others):
    params = {"decoder": np.float32([value]), **others}
    config = ConfigDict(dict(sampling=dict(steps=steps)))
    stack = unclip_runs.Stack(None, params, None, {"decoder": config})
    return scenes_stack.Subject(stack)


def test_rows_of_images_are_enlarged_as_rows():
    subject = subject_of(0.0)

    def double(rows, seed):
        images, index = rows
        return images.repeat(2, axis=1).repeat(2, axis=2) + index[:, None, None, None]

    subject.__dict__["_upsample"] = [double, double]
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3))
    flat = subject.enlarge(images.reshape(6, 4, 4, 3))
    assert flat.shape == (6, 16, 16, 3)
    rows = subject.enlarge(images)
    np.testing.assert_array_equal(rows, flat.reshape(2, 3, 16, 16, 3))


def test_rows_of_another_setting_are_neither_taken_for_measured_nor_drawn(tmp_path):
    table = tmp_path / "a.csv"
    settings = [
        unclip_figures.setting_of(subject, num_images=num)
        for subject, num in (
            (subject_of(0.0), 8),
            (subject_of(0.0), 16),
            (subject_of(1.0), 16),
            (subject_of(0.0, steps=4), 16),
        )
    ]
    for i, shared in enumerate(settings):
        setting = {**shared, "theta": 0.5}
        assert not unclip_figures.is_measured(table, setting)
        unclip_figures.add(table, setting, success=i / 4)
        assert unclip_figures.is_measured(table, setting)
    for i, shared in enumerate(settings):
        (row,) = unclip_figures.rows_of(table, shared)
        assert float(row["success"]) == i / 4


def test_what_is_measured_of_the_weights_does_not_make_them_others():
    informed = subject_of(0.0, eps_power=np.float32([1.0]))
    plain, other = subject_of(0.0), subject_of(1.0)
    settings = map(unclip_figures.setting_of, (informed, plain, other))
    informed, plain, other = (setting["weights"] for setting in settings)
    assert informed == plain != other


def test_lines_and_bars_show_every_row(tmp_path):
    rows = [
        {"way": way, "x": str(x), "y": str(x * y), "blank": ""}
        for way, y in (("arc", 1.0), ("fixed", 2.0))
        for x in (1, 2, 4)
    ]
    draw = {
        "lines": lambda rows, out: unclip_figures.draw_lines(
            rows, ("x", "x"), {"y": "y"}, out, lines="way", logarithmic=True
        ),
        "bars": lambda rows, out: unclip_figures.draw_bars(
            rows, "x", {"y": "y", "blank": "-"}, out
        ),
    }
    for name, function in draw.items():
        drawn = []
        for i, shown in enumerate((rows, rows, rows[:-1])):
            out = tmp_path / f"{name}{i}.png"
            function(shown, out)
            drawn.append(np.asarray(Image.open(out)))
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert not np.array_equal(drawn[0], drawn[2])


def test_bars_of_equal_names_do_not_cover_one_another(tmp_path):
    heights = []
    for names in (("a", "a"), ("a", "b")):
        rows = [{"name": name, "y": "1"} for name in names]
        out = tmp_path / f"{''.join(names)}.png"
        unclip_figures.draw_bars(rows, "name", {"y": "y"}, out)
        colour = np.array(to_rgb(figures.PALETTE[0])) * 255
        pixels = np.asarray(Image.open(out).convert("RGB"), np.float64)
        is_bar = (np.abs(pixels - colour).max(axis=-1) < 2).any(axis=1)
        heights.append(np.count_nonzero(np.diff(is_bar.astype(int)) == 1))
    assert heights == [2, 2]


def test_the_guidance_of_text_diffs_was_chosen_before(tmp_path):
    with pytest.raises(build.ConfigError, match="has no text_diff_scale"):
        fig_unclip_text_diff.chosen_scale(tmp_path)
    scenes_dalle2.write(tmp_path, {"text_diff_scale": 2.0})
    assert fig_unclip_text_diff.chosen_scale(tmp_path) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_command_trains_and_measures_the_whole_stack(tmp_path):
    seconds = {}
    scenes_dalle2.train_all(tmp_path, "runlocal", seconds)
    assert set(scenes_dalle2.CONFIGS) < set(seconds)
    result = scenes_dalle2.measure(tmp_path, num=16)
    kept = json.loads((tmp_path / scenes_dalle2.RESULTS).read_text())
    assert kept == result | {"seconds": seconds}
    shares = [v for k, v in result.items() if "accuracy" in k]
    assert len(shares) > 10
    assert all(0 <= share <= 1 for share in shares)
    assert all(np.isfinite(list(result.values())))
    for picture in ("samples", "reconstructions", "curves"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    scenes_dalle2.train_all(tmp_path, "runlocal", seconds)  # goes on at its end
