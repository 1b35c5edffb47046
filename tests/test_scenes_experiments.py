"""What the experiments on the small DALL·E 2 choose, count, keep and draw."""

import json
import types

import numpy as np
import pytest

from diffusion_jax import build, unclip_runs
from diffusion_jax.data import scene_captions, scenes
from diffusion_jax.evaluation import upsampling
from diffusion_jax.pipelines import manipulations
from experiments import (
    colour_edits,
    fig_unclip_guidance,
    fig_unclip_pca,
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
    captions = [f"a {s.objects[0].size} {s.objects[0].shape}" for s in drawn]
    captions = [
        f"a {s.objects[0].size} {colour} {s.objects[0].shape}"
        for s, colour in zip(drawn, colours, strict=True)
    ]
    right = [
        with_object(s, colour=colour, rgb=scenes.PALETTE[colour])
        for s, colour in zip(drawn, colours, strict=True)
    ]
    moved = [with_object(s, x=1 - s.objects[0].x, y=0.3) for s in right]
    moved = [
        with_object(s, x=0.7 if before.objects[0].x < 0.5 else 0.3)
        for s, before in zip(moved, drawn, strict=True)
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


def config_of(low_size, **degradation):
    upsampler = types.SimpleNamespace(low_size=low_size, degradation=degradation)
    return types.SimpleNamespace(upsampler=upsampler)


def stand_in(**fields):
    stages = [types.SimpleNamespace(name="one"), types.SimpleNamespace(name="two")]
    configs = {"one": config_of(16, name="blur", probability=0.5, size=3, sigma=0.6)}
    configs["two"] = config_of(32, name="bsr")
    return types.SimpleNamespace(
        pipeline=types.SimpleNamespace(upsamplers=stages),
        stack=types.SimpleNamespace(configs=configs),
        **fields,
    )


@pytest.mark.parametrize(("stage", "low_size"), [("one", 16), ("two", 32)])
def test_every_image_is_degraded_as_in_training(stage, low_size):
    _, examples = random_scenes(8, image_size=2 * low_size)
    low = scenes_measures.degraded(stand_in(), stage, examples.images, low_size)
    again = scenes_measures.degraded(stand_in(), stage, examples.images, low_size)
    clean = np.asarray(upsampling.bicubic(examples.images, low_size))
    assert low.shape == clean.shape
    np.testing.assert_array_equal(low, again)
    assert np.all(np.abs(low - clean).max(axis=(1, 2, 3)) > 0.02)


def test_an_upsampler_that_knows_the_original_beats_bicubic():
    _, examples = random_scenes(8, image_size=64)
    seen = []

    def enlarge(low_res, *, first, last):
        seen.append((low_res.shape[1], first, last))
        return examples.images

    subject = stand_in(scenes=lambda *_: examples, enlarge=enlarge)
    found = scenes_measures.compare(subject, "one", 0, 2, 8)
    assert seen == [(16, 0, 2)]
    assert found["upsampled_psnr"] > found["bicubic_psnr"] + 10
    assert found["upsampled_accuracy"] == 1 > found["bicubic_accuracy"]


def test_the_first_draw_and_the_best_by_clip_are_told_apart():
    values = np.float32([0.1, 0.4, 0.2, 0.9, 0.6, 0.3])

    def embed_images(images):
        angle = images[:, 0, 0, 0]
        return np.stack([np.sin(angle), np.cos(angle)], axis=1)

    subject = types.SimpleNamespace(
        draw=lambda captions: np.broadcast_to(
            values[:, None, None, None], (len(captions), 2, 2, 3)
        ),
        enlarge=lambda images, **_: images,
        embed_images=embed_images,
        embed_texts=lambda captions: np.float32([[1, 0]] * len(captions)),
    )
    first, best = scenes_measures.draws(subject, ["a", "b"], num=3)
    np.testing.assert_allclose(first[:, 0, 0, 0], [0.1, 0.9])
    np.testing.assert_allclose(best[:, 0, 0, 0], [0.4, 0.9])


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


def test_seconds_of_a_run_that_goes_on_add_up_and_keep_the_figures(tmp_path):
    scenes_dalle2.write(tmp_path, {"accuracy_held_in": 0.5})
    seconds = {"clip": 2.0, "total": 2.0}
    scenes_dalle2.add_seconds(tmp_path, seconds, "clip", start=-1e9)
    kept = scenes_dalle2.read(tmp_path)
    assert kept["accuracy_held_in"] == 0.5
    assert kept["seconds"]["clip"] == kept["seconds"]["total"] > 1e9
    assert scenes_dalle2.read(tmp_path / "nowhere") == {}


def test_rows_of_other_weights_are_neither_taken_for_measured_nor_drawn(tmp_path):
    table = tmp_path / "a.csv"
    old, new = ({"weights": name, "theta": 0.5} for name in ("old", "new"))
    unclip_figures.add(table, old, success=1.0)
    assert unclip_figures.is_measured(table, old)
    assert not unclip_figures.is_measured(table, new)
    unclip_figures.add(table, new, success=0.25)
    (row,) = unclip_figures.newest(table)
    assert (row["weights"], float(row["success"])) == ("new", 0.25)


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
            drawn.append(out.read_bytes())
        assert drawn[0] == drawn[1] != drawn[2]


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
