"""DALL·E 2 from the command line: what every mode makes of a stack of tiny runs.

Every call compiles programs of its own, so that all but a few modes are slow.
"""

import functools
import json
import shlex
import shutil

import compile_cache
import entry_points
import jax
import numpy as np
import pytest
import tiny_stack
from absl import flags
from PIL import Image

from diffusion_jax import runs, sample, unclip_runs
from diffusion_jax.evaluation import grids
from diffusion_jax.pipelines import best_of, priors
from diffusion_jax.sampling import outputs, records, unclip_plans

RED, BLUE = ("--prompt", "a red circle"), ("--prompt", "a blue square")
A, B = ("--init_image", "a.png"), ("--init_image", "b.png")
VARY, DIFF = ("--mode", "variations", *A), ("--mode", "text_diff", *A, *RED)
PATH, PCA = ("--mode", "interpolate", *A), ("--mode", "pca", *A)
TO_B, PAINT = ("--to_image", "b.png"), ("--mode", "inpaint", *A, "--mask", "mask.png")
# every mode and what is drawn otherwise: the words of a call
CALLS = {
    "variations, eta": (*VARY, "--num_images", 4, "--eta", 0.5),
    "text_diff": (*DIFF, "--before", "a blue square", "--theta", 0.2, "--theta", 0.4),
}
SLOW_CALLS = {
    "text": RED,
    "text, analytic_dpm": (*RED, "--prior_sampler", "analytic_dpm"),
    "text, codes_prior": (*RED, "--prior", "codes_prior", "--prior_guidance", 2),
    "text, image_guidance": (*RED, "--image_guidance", 3, "--guidance", 0.5),
    "text, best_of": (*RED, "--best_of", 2),
    "text_embedding": ("--mode", "text_embedding", *RED),
    "caption": ("--mode", "caption", *RED),
    "variations": VARY,
    "interpolate": (*PATH, *TO_B, "--frames", 3),
    "interpolate, one noise": (*PATH, *TO_B, "--frames", 3, "--fixed_noise"),
    "interpolate, corrected": (*PATH, *TO_B, "--frames", 3, "--corrections", 1),
    "interpolate, a caption": (*PATH, "--to_prompt", RED[1], "--frames", 3),
    "pca": (*PCA, "--dims", 1, "--dims", 4),
    "pca of pictures": (*PCA, "--components", "many", "--dims", 0, "--dims", 1),
    "inpaint": (*PAINT, *RED),
}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    jax.config.update("jax_disable_most_optimizations", True)  # which take the time
    yield from compile_cache.compile_once(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with the stack and some pictures."""
    here = tmp_path_factory.mktemp("here")
    tiny_stack.write(here / "stack")
    rng = np.random.default_rng(0)
    (here / "many").mkdir()
    for name in ("a", "b", "many/0", "many/1"):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(here / f"{name}.png")
    Image.open(here / "a.png").save(here / "many" / "a.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(here / "mask.png")
    return here


@pytest.fixture(scope="module")
def load():
    """A run's weights, read once."""
    return functools.cache(runs.load)


@pytest.fixture(scope="module")
def known():
    """The images of calls that were made."""
    return {}


@pytest.fixture
def make(here, load, known, monkeypatch, tmp_path):
    """Runs the command in that directory; the images as floats."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(runs, "load", load)

    def run(*words, out=None, upsamplers=0):
        words = ("--workdir", "stack", "--num_upsamplers", upsamplers, *words)
        if out is None and words in known:
            return known[words]
        array = tmp_path / "images.npy"
        array.unlink(missing_ok=True)
        where = ("--array", array, "--out", tmp_path / "out" if out is None else out)
        entry_points.sample(*words, "--batch", 4, "--pad_batch", *where)
        known[words] = np.load(array)
        return known[words]

    return run


@pytest.fixture
def rebuilt_a(make):
    """What the decoder makes again of a.png."""
    return make(*VARY, "--num_images", 4, "--eta", 0)[0]


@pytest.fixture
def rebuilt(make, rebuilt_a):
    """Of a.png and of b.png."""
    words = ("--mode", "variations", *B, "--num_images", 1, "--eta", 0)
    return rebuilt_a, make(*words)[0]


def command_of(path, capsys):
    """The words by which a picture is made again."""
    capsys.readouterr()
    entry_points.inspect(path)
    return shlex.split(capsys.readouterr().out)[3:]


# ---- records -------------------------------------------------------------------------


def check_made_again(make, words, tmp_path, capsys):
    """The last image of a call by the command that it tells, alone, one at a time."""
    if not {"--num_images", "--frames", "--theta", "--dims"} & {*words}:
        words = (*words, "--num_images", 2)
    images = make(*words, out=tmp_path / "out")
    path = max((tmp_path / "out").glob("0*.png"))
    array = tmp_path / "again.npy"
    others = ("--batch", 1, "--out", tmp_path / "again", "--array", array)
    entry_points.sample(*command_of(path, capsys), *others)
    np.testing.assert_allclose(np.load(array), images[-1:], atol=1e-3)
    assert len(images) > 1 and np.abs(images[0] - images[-1]).max() > 1e-2


@pytest.mark.parametrize("call", CALLS)
def test_an_image_is_made_again_in_another_batch(make, call, tmp_path, capsys):
    check_made_again(make, CALLS[call], tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("call", SLOW_CALLS)
def test_any_image_is_made_again_in_another_batch(make, call, tmp_path, capsys):
    check_made_again(make, SLOW_CALLS[call], tmp_path, capsys)


def test_a_command_makes_the_same_pixels(make, tmp_path, capsys):
    out, several = tmp_path / "out", (*RED, *BLUE, "--num_images", 2)
    images = make(*several, out=out, upsamplers=1)
    assert images.shape == (4, 8, 8, 3)
    assert np.abs(images[2] - images[3]).max() > 1e-2  # of one prompt
    names = sorted(path.name for path in out.iterdir())
    assert names == [*(f"0000{i}-seed0.png" for i in range(4)), "grid.png"]
    told = grids.read_metadata(out / names[3])
    assert told["prompt"] == "a blue square"
    entry_points.sample(*command_of(out / names[3], capsys), "--out", tmp_path / "on")
    pixels = [np.asarray(Image.open(tmp_path / d / names[3])) for d in ("out", "on")]
    np.testing.assert_array_equal(*pixels)
    sheet = records.read(out / "grid.png")["flags"]
    assert sheet["prompt"] == ["a red circle", "a blue square"]


def test_a_record_names_the_checkpoints_that_were_read(here, tmp_path, monkeypatch):
    """Though the run has gone on since."""
    stack = tmp_path / "stack"
    shutil.copytree(here / "stack", stack)
    monkeypatch.chdir(tmp_path)

    def flags_of(*words):
        chosen = flags.FlagValues()
        sample.define_flags(chosen)
        words = ("--workdir", "stack", *RED, *words, "--num_upsamplers", 0)
        chosen(["sample", *map(str, words)])
        plan = unclip_plans.make(chosen)
        plan.model.load()
        at_once = records_of(plan)
        new = stack / "decoder" / runs.CHECKPOINTS / "5"
        if not new.exists():
            shutil.copytree(new.with_name("3"), new)
        assert records_of(plan) == at_once
        return at_once["checkpoints"]

    def records_of(plan):
        told = outputs.texts_of(plan, plan.images[0])
        return json.loads(told[records.KEY])["flags"]

    first = flags_of()
    assert first == "decoder=3,prior=3"
    assert flags_of() == "decoder=5,prior=3"
    assert flags_of("--checkpoints", first) == first


# ---- of prompts ----------------------------------------------------------------------


@pytest.mark.slow
def test_lines_of_a_file_are_as_flags(make, tmp_path):
    own = dict(prompt="a blue square", seed=7, guidance=3.0)
    lines = ["a red circle", json.dumps(own)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    once = ("--num_images", 1)
    several = make("--from_file", tmp_path / "prompts.txt", *once)
    alone = [make(*RED, *once), make(*BLUE, *once, "--seed", 7, "--guidance", 3)]
    np.testing.assert_allclose(several, np.concatenate(alone), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num_before", [0, 1])
def test_the_best_is_that_which_clip_finds_nearest(
    make, here, num_before, monkeypatch, capsys
):
    """Before the upsampler or after it, of the images that are drawn without a choice."""
    monkeypatch.setattr(best_of, "num_before_choice", lambda *_: num_before)
    several = ("--num_images", 6)
    large = make(*RED, *several, upsamplers=1)
    seen = large if num_before else make(*RED, *several)
    best = make(*RED, "--num_images", 3, "--best_of", 2, upsamplers=1, out=here / "x")
    made = unclip_runs.load("stack")

    @jax.jit
    def cosines(params, images, tokens):
        image = made.pipeline.encode_image(params, images)
        return image @ made.pipeline.encode_text(params, tokens).clip.embed[0]

    found = cosines(made.params, seen, made.tokenizer([RED[1]])).reshape(3, 2)
    pairs = large.reshape(3, 2, 8, 8, 3)
    for image, pair, scores in zip(best, pairs, found, strict=True):
        np.testing.assert_allclose(image, pair[int(scores.argmax())], atol=1e-4)
    assert f"cosine {float(found[1].max()):.3f}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_modes_of_figure_8_hear_what_they_should(make, load, known, monkeypatch):
    once = ("--num_images", 1)
    modes = {
        mode: functools.partial(make, "--mode", mode, *once)
        for mode in ("text", "text_embedding", "caption")
    }
    before = {mode: run(*RED) for mode, run in modes.items()}
    pairs = [("text", "text_embedding"), ("text", "caption")]
    for one, other in pairs:
        assert np.abs(before[one] - before[other]).max() > 1e-3
    assert np.abs(modes["caption"](*BLUE) - before["caption"]).max() > 1e-3

    def load_other(path, **options):
        run = load(path, **options)
        if path.name != "prior":
            return run
        return run._replace(params=jax.tree.map(lambda a: -a, run.params))

    known.clear()
    monkeypatch.setattr(runs, "load", load_other)
    for mode in ("text_embedding", "caption"):  # no prior is asked
        np.testing.assert_array_equal(modes[mode](*RED), before[mode])
    assert np.abs(modes["text"](*RED) - before["text"]).max() > 1e-3
    known.clear()


@pytest.mark.slow
def test_analytic_dpm_is_estimated_for_the_steps_that_are_chosen(make, monkeypatch):
    estimate, asked = priors.estimate_eps_power, []

    def noted(prior, *rest):
        asked.append(prior.stage.steps)
        return estimate(prior, *rest)

    monkeypatch.setattr(priors, "estimate_eps_power", noted)
    once = ("--num_images", 1, "--prior_sampler", "analytic_dpm", "--prior_steps")
    for steps in (2, 3):
        assert np.isfinite(make(*RED, *once, steps)).all()
    assert asked == [2, 3]


# ---- of pictures ---------------------------------------------------------------------


def test_variations_are_the_further_from_each_other_the_larger_eta(make):
    spreads = []
    for eta in (0, 0.5, 1):
        images = make(*VARY, "--num_images", 4, "--eta", eta)
        spreads.append(images.std(axis=0).mean())
    assert spreads[0] < 1e-6
    assert 1e-3 < spreads[1] < spreads[2]


@pytest.mark.slow
def test_without_eta_variations_begin_at_fresh_noise(make, rebuilt):
    images = make(*VARY, "--num_images", 4)
    assert images.std(axis=0).mean() > 1e-3
    assert np.abs(images - rebuilt[0]).max(axis=(1, 2, 3)).min() > 1e-2


@pytest.mark.slow
def test_an_interpolation_goes_from_one_picture_to_the_other(make, rebuilt):
    frames = make(*PATH, *TO_B, "--frames", 3)
    np.testing.assert_allclose(frames[[0, 2]], rebuilt, atol=1e-4)
    middle = [np.abs(frames[1] - end).max() for end in rebuilt]
    assert min(middle) > 1e-3
    alone = make(*PATH, *TO_B, "--frames", 3, "--frame", 1)
    np.testing.assert_allclose(alone, frames[1:2], atol=1e-5)


@pytest.mark.slow
def test_frames_of_one_noise_have_that_of_their_seed(make, rebuilt, tmp_path):
    words = (*PATH, *TO_B, "--fixed_noise", "--frames", 2)
    first, same, other = (
        make(*words, "--seed", seed, out=tmp_path / "out") for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max(axis=(1, 2, 3)).min() > 1e-3
    assert np.abs(first - rebuilt).max(axis=(1, 2, 3)).min() > 1e-3


@pytest.mark.slow
def test_an_interpolation_to_a_caption_leaves_the_noise(make, rebuilt):
    for caption in ("a red circle", "a blue square"):
        frames = make(*PATH, "--frames", 2, "--to_prompt", caption)
        np.testing.assert_allclose(frames[0], rebuilt[0], atol=1e-4)
        assert np.abs(frames[1] - rebuilt[0]).max() > 1e-3


def test_a_text_diff_begins_at_the_picture(make, rebuilt_a):
    words = (*DIFF, "--before", "a blue square")
    frames = make(*words, "--theta", 0.4, "--frames", 3)
    np.testing.assert_allclose(frames[0], rebuilt_a, atol=1e-4)
    alone = make(*CALLS["text_diff"])
    np.testing.assert_allclose(alone, frames[1:], atol=1e-5)
    moved = [np.abs(frame - rebuilt_a).mean() for frame in frames]
    assert moved[0] < moved[1] < moved[2]


@pytest.mark.slow
def test_all_components_of_pictures_rebuild_one_of_them(make, rebuilt):
    words = (*PCA, "--components", "many", "--dims")
    whole = make(*words, 2)
    np.testing.assert_allclose(whole[0], rebuilt[0], atol=1e-3)
    assert np.abs(make(*words, 0) - whole).max() > 1e-3


@pytest.mark.slow
def test_components_of_an_autoregressive_prior_are_found(make, tmp_path):
    images = make(*PCA, "--dims", 0, "--dims", 5, out=tmp_path / "out")
    assert np.abs(images[0] - images[1]).max() > 1e-3
    told = records.read(tmp_path / "out" / "00000-seed0-frame001.png")
    assert told["flags"]["dims"] == 5


@pytest.mark.slow
def test_what_a_mask_keeps_stays(make, here):
    words = (*PAINT, "--num_images", 2)
    images = make(*words, *RED, upsamplers=1)
    original = np.asarray(Image.open(here / "a.png"), np.float32) / 127.5 - 1
    kept = np.broadcast_to(original[:, 4:], (2, 8, 4, 3))
    np.testing.assert_array_equal(images[:, :, 4:], kept)
    assert np.abs(images[:, :, :4] - original[:, :4]).max(axis=(1, 2, 3)).min() > 0.1
    assert np.abs(images[0] - images[1]).max() > 1e-2
    other = make(*words, *BLUE, upsamplers=1)
    assert np.abs(images - other).max() > 1e-3
