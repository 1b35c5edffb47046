"""Wrong calls of DALL·E 2: one line, before weights are read or programs made."""

import dataclasses
import json
import re
import shutil

import entry_points
import numpy as np
import pytest
import tiny_stack
from absl import flags
from PIL import Image

from diffusion_jax import build, runs, sample, unclip_runs
from diffusion_jax.sampling import (
    conflicts,
    plans,
    unclip_flags,
    unclip_models,
    unclip_plans,
)
from diffusion_jax.training import checkpoint

CAT, CAPTION = ("--init_image", "cat.png"), ("--prompt", "a red circle")
VARY, TO_CAT = ("--mode", "variations"), ("--to_image", "cat.png")
DIFF = ("--mode", "text_diff", *CAT, *CAPTION)
PCA, PATH = ("--mode", "pca", *CAT), ("--mode", "interpolate", *CAT)
PAINT = ("--mode", "inpaint", *CAT, *CAPTION)
# what the error must say -> the words of the call
WRONG = {
    "unknown mode 'text_dif': did you mean 'text_diff'": ("--mode", "text_dif"),
    "unknown pipeline 'dalle3': did you mean 'dalle2'": ("--pipeline", "dalle3"),
    "give one of --weights and --workdir": (*CAPTION, "--weights", "karlo"),
    "give a --prompt, or --from_file": (),
    "--prompt and --from_file": (*CAPTION, "--from_file", "page.png"),
    "--lora is for --pipeline stable_diffusion": (*CAPTION, "--lora", "x"),
    "--height is for --pipeline stable_diffusion": (*CAPTION, "--height", 64),
    "--negative is for --pipeline stable": (*CAPTION, "--negative", "blurry"),
    "--to_image is for --mode interpolate, not text": (*CAPTION, *TO_CAT),
    "--best_of is for --mode text, not caption": (
        *("--mode", "caption", *CAPTION, "--best_of", 2),
    ),
    "--prompt is for .*, not variations": (*VARY, *CAT, *CAPTION),
    "--prior_steps is for .*, not variations": (*VARY, *CAT, "--prior_steps", 2),
    "--mode variations needs --init_image": VARY,
    "--mode inpaint needs --mask": PAINT,
    "needs --to_image or --to_prompt": PATH,
    "--to_image and --to_prompt": (*PATH, *TO_CAT, "--to_prompt", "dog"),
    "the prior's flags are for --to_prompt": (*PATH, *TO_CAT, "--candidates", 2),
    "--frame 8 of 8": (*PATH, *TO_CAT, "--frame", 8),
    "theta 0.6; .* from 0 to 0.5": (*DIFF, "--theta", 0.6),
    "theta -0.1": (*DIFF, "--theta", -0.1),
    "--frames goes up to one --theta": (
        *(*DIFF, "--theta", 0.1, "--theta", 0.2, "--frames", 3),
    ),
    "a text diff goes to one --prompt": (*DIFF, "--prompt", "another"),
    "eta=1.5": (*VARY, *CAT, "--eta", 1.5),
    "--eta and --sampler": (*VARY, *CAT, "--eta", 0.5, "--sampler", "ddpm"),
    "--corrections needs --eta": (*VARY, *CAT, "--corrections", 1),
    "--fixed_noise and --corrections": (
        *(*PATH, *TO_CAT, "--fixed_noise", "--corrections", 1),
    ),
    "--dims 6; there are 5 components": (*PCA, "--dims", 6),
    "--dims 2; there are 1 components": (*PCA, "--dims", 2, "--components", "two"),
    "has 0 pictures; components need 2": (*PCA, "--components", "stack"),
    "--components none is not a directory": (*PCA, "--components", "none"),
    "no principal components: .*autoregressive": (*PCA, "--prior", "prior"),
    "no prior 'priro' .*did you mean 'prior'": (*CAPTION, "--prior", "priro"),
    "--prior_steps is for a diffusion prior": (
        *(*CAPTION, "--prior", "codes_prior", "--prior_steps", 3),
    ),
    "unknown sampler 'ddmi'": (*CAPTION, "--prior_sampler", "ddmi"),
    "unknown sampler 'analytic_dpm'": (*CAPTION, "--sampler", "analytic_dpm"),
    "unknown grid 'karas'": (*CAPTION, "--upsampler_grid", "karas"),
    "--upsampler_steps 'x'": (*CAPTION, "--upsampler_steps", "x"),
    "2 upsamplers are told .* there are 1": (*CAPTION, "--upsampler_steps", "3,4"),
    "--upsampler_grid has 2 values": (
        *(*CAPTION, "--upsampler_grid", "trailing,leading"),
        *("--upsampler_steps", "1,2,3"),
    ),
    "2 upsamplers wanted; this pipeline has 1": (*CAPTION, "--num_upsamplers", 2),
    "upsampler_steps: of --num_upsamplers 0 there is none": (
        *(*CAPTION, "--upsampler_steps", 3, "--num_upsamplers", 0),
    ),
    "--upsampler_grid has 2 values for --num_upsamplers 1": (
        *(*CAPTION, "--upsampler_grid", "trailing,leading", "--num_upsamplers", 1),
    ),
    "5000 steps": (*CAPTION, "--steps", 5000),
    "--prior_guidance nan": (*CAPTION, "--prior_guidance", "nan"),
    "--prior_guidance 0.5; 1, which is none": (*CAPTION, "--prior_guidance", 0.5),
    "--guidance 0.5; 1, which is none": (*CAPTION, "--guidance", 0.5),
    "weak.txt: guidance 0; 1, which is": ("--from_file", "weak.txt"),
    "--prior is for --mode .*, not variations": (*VARY, *CAT, "--prior", "prior"),
    "the prior's flags are for --to_prompt$": (*PATH, *TO_CAT, "--prior", "prior"),
    "--prior and --components": (*PCA, "--prior", "x", "--components", "two"),
    "--checkpoints 'prior'; RUN=STEP": (*CAPTION, "--checkpoints", "prior"),
    "checkpoint of 'priro', .* did you mean 'prior'": (
        *(*CAPTION, "--checkpoints", "decoder=3,priro=3"),
    ),
    "checkpoint of 'prior', no run that is read": (
        *(*VARY, *CAT, "--checkpoints", "prior=3"),
    ),
    "no step 4 in .*decoder/checkpoints; one of .3": (
        *(*CAPTION, "--checkpoints", "decoder=4"),
    ),
    "'a red circle' and .* are read as one": (*DIFF, "--before", "a red circle"),
    "are read as one: they differ in nothing": (
        *("--mode", "text_diff", *CAT, "--prompt", "a red circle " * 8),
        *("--before", "a red circle " * 9),
    ),
    "would have index 2147483648; indices are up to": (
        *(*CAPTION, "--first_index", 2**31 - 1, "--num_images", 2),
    ),
    "of 4 candidates each would have index 4294967299": (
        *(*CAPTION, "--first_index", 2**30, "--num_images", 1, "--best_of", 4),
    ),
    "two/grid.png is in two, whose pictures": (
        *(*PCA, "--components", "two", "--out", "two/grid.png"),
    ),
    "two/x.npy is in two, whose pictures": (
        *(*PCA, "--components", "two", "--array", "two/x.npy", "--out", "x.png"),
    ),
    "--dtype is for --weights": (*CAPTION, "--dtype", "bfloat16"),
    "--image_weights is for --weights": (*CAPTION, "--image_weights", "karlo"),
    "no image none.png": (*VARY, "--init_image", "none.png"),
    "mask is of 8 x 12 .* image of 8 x 8": (*PAINT, "--mask", "wide.png"),
    "black.png is black": (*PAINT, "--mask", "black.png"),
    "has a negative": ("--from_file", "negative.txt"),
    "its name must end in .npy": (*CAPTION, "--array", "images.png"),
    "cat.png is read": (*VARY, *CAT, "--num_images", 1, "--out", "cat.png"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with the stack, and files of every kind."""
    here = tmp_path_factory.mktemp("here")
    tiny_stack.write(here / "stack")
    (here / "two").mkdir()
    for name in ("cat", "two/0", "two/1"):
        Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(here / f"{name}.png")
    Image.fromarray(np.full((8, 12, 3), 255, np.uint8)).save(here / "wide.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(here / "black.png")
    (here / "weak.txt").write_text('{"prompt": "cat", "guidance": 0}')
    (here / "negative.txt").write_text('{"prompt": "cat", "negative": "dog"}')
    return here


@pytest.fixture
def refused(here, monkeypatch):
    """The error of a call, which must be one line and come before any work."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(unclip_runs, "read", lambda *_, **__: pytest.fail("reads"))

    def call(*words, workdir="stack"):
        with pytest.raises(SystemExit) as stopped:
            entry_points.sample("--workdir", workdir, *words)
        message = stopped.value.code
        assert message.startswith("error: ") and "\n" not in message
        return message

    return call


def chosen_of(*words):
    """The flags of a call."""
    chosen = flags.FlagValues()
    sample.define_flags(chosen)
    chosen(["sample", *map(str, words)])
    return chosen


@pytest.fixture
def planned(here, monkeypatch):
    """The plan of a call."""
    monkeypatch.chdir(here)

    def plan(*words):
        chosen = chosen_of("--workdir", "stack", *words)
        assert unclip_flags.is_wanted(chosen)
        return unclip_plans.make(chosen)

    return plan


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_flag_is_one_line(message, refused):
    assert re.search(message, refused(*WRONG[message]))


def test_a_stage_that_is_missing_is_named(here, refused, tmp_path):
    for name in ("decoder", "upsampler"):
        shutil.copytree(here / "stack" / name, tmp_path / name)
    assert "has no prior" in refused(*CAPTION, workdir=tmp_path)
    assert "no principal components" in refused(*PCA, workdir=tmp_path)
    shutil.rmtree(tmp_path / "decoder")
    assert "needs one run of a decoder" in refused(*CAPTION, workdir=tmp_path)


def test_of_two_priors_of_a_kind_one_must_be_named(here, refused, tmp_path):
    stack = tmp_path / "stack"
    shutil.copytree(here / "stack", stack)
    shutil.copytree(stack / "prior", stack / "prior_too")
    several = "several runs of a diffusion_prior, prior, prior_too: name one"
    assert several in refused(*CAPTION, workdir=stack)
    for name in ("prior_too", "codes_prior"):
        assert unclip_runs.find(stack, prior=name).prior.name == name
    unclip_plans.make(chosen_of("--workdir", stack, *VARY, *CAT))  # asks none


def test_another_clip_is_found_by_headers(here, refused, tmp_path):
    """What a prior's run keeps besides may differ; its CLIP may not."""
    shutil.copytree(here / "stack", tmp_path / "stack")
    frozen = tmp_path / "stack/prior" / runs.FROZEN
    params = checkpoint.load_params(frozen)
    params["embedding"]["mean"] += 1
    checkpoint.save_params(frozen, params)
    assert unclip_runs.find(tmp_path / "stack").prior.name == "prior"
    projection = params["image_encoder"]["visual_projection"]
    projection["kernel"] = -projection["kernel"]
    checkpoint.save_params(frozen, params)
    told = refused(*CAPTION, workdir=tmp_path / "stack")
    assert "were trained with different CLIPs" in told


def test_analytic_dpm_is_for_priors_that_keep_data(planned, refused, monkeypatch):
    words = (*CAPTION, "--prior_sampler", "analytic_dpm")
    prior = planned(*words).model.pipeline.prior
    assert plans.name_of(prior.stage.sampler) == "analytic_dpm"
    monkeypatch.setattr(unclip_runs, "keeps_pairs", lambda run: False)
    assert "prior must know the data, of which there is none" in refused(*words)


def test_what_a_mode_does_not_need_is_not_read(planned):
    """Neither its weights nor, with a run that is damaged, errors of it."""
    model = planned(*VARY, *CAT, "--num_upsamplers", 0).model
    assert model.pipeline.prior is None and not model.pipeline.upsamplers
    model = planned(*PCA).model
    assert model.pipeline.prior is None and model.components is not None


def test_one_run_is_not_all_of_them(refused):
    words = ("--pipeline", "dalle2", *CAPTION)
    assert "is one run; name the directory" in refused(*words, workdir="stack/decoder")


def test_flags_of_dalle2_are_refused_without_it(refused):
    words = ("--pipeline", "stable_diffusion", *CAPTION)
    for own in (("--mode", "text"), ("--theta", 0.1), ("--prior_steps", 3)):
        assert f"{own[0]} is for --pipeline dalle2" in refused(*words, *own)


def test_every_flag_is_of_one_pipeline_or_of_both():
    chosen = flags.FlagValues()
    sample.define_flags(chosen)
    known = {*unclip_flags.SHARED, *unclip_flags.OWN, *unclip_flags.TAKEN}
    others = set(unclip_flags.ONLY_STABLE_DIFFUSION)
    assert not known & others
    assert set(chosen) - {"?", "help", "helpfull", "helpshort", "helpxml"} == (
        known | others
    )
    assert set(conflicts.ONLY_PUBLISHED) <= others


def test_a_directory_of_karlo_is_recognised(here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    for kind, wanted, other in (
        ("UnCLIPPipeline", True, "stable_diffusion"),
        ("UnCLIPImageVariationPipeline", True, "stable_diffusion"),
        ("StableDiffusionPipeline", False, "dalle2"),
    ):
        index = {"_class_name": kind}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        words = ("--weights", tmp_path)
        assert unclip_flags.is_wanted(chosen_of(*words)) is wanted
        with pytest.raises(build.ConfigError, match=f"of a {kind}: give --pipeline"):
            unclip_flags.is_wanted(chosen_of(*words, "--pipeline", other))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(build.ConfigError, match="of a FluxPipeline, which is not"):
        unclip_flags.is_wanted(chosen_of(*words))


# ---- what plans say ------------------------------------------------------------------


def test_every_stage_is_sampled_as_chosen(planned):
    words = ("--prior_steps", 4, "--prior_sampler", "ddpm", "--prior_guidance", 3)
    words += ("--steps", 5, "--grid", "leading", "--guidance", 6, "--candidates", 3)
    words += ("--upsampler_steps", 7, "--upsampler_sampler", "euler")
    words += ("--prior_grid", "linspace", "--upsampler_grid", "linspace")
    plan = planned(*CAPTION, *words, "--num_images", 1)
    pipeline = plan.model.pipeline
    stages = unclip_models.stages_of(pipeline)
    assert [stage.steps for stage in stages.values()] == [4, 5, 7]
    samplers = [plans.name_of(stage.sampler) for stage in stages.values()]
    assert samplers == ["ddpm", "ddim", "euler"]
    grids = [getattr(s.grid, "func", s.grid).__name__ for s in stages.values()]
    assert grids == ["linspace", "leading", "linspace"]
    assert pipeline.prior.candidates == 3 and plan.images[0].guidance == 6
    assert unclip_models.prior_guidance(pipeline) == 3
    told = {name: str(value) for name, value in (plan.flags | plan.together).items()}
    for name, value in zip(words[::2], words[1::2]):
        assert told[name.removeprefix("--")] in (str(value), f"{value}.0")


def test_an_autoregressive_prior_is_chosen_by_name(planned):
    words = ("--prior", "codes_prior", "--prior_guidance", 2, "--candidates", 5)
    prior = planned(*CAPTION, *words).model.pipeline.prior
    assert (prior.guidance, prior.candidates, prior.network.num_dims) == (2, 5, 5)


def test_guidance_is_none_where_noise_is_found_backwards(planned):
    for words, wanted in {
        VARY: 2.0,
        (*VARY, "--eta", 1): 1.0,
        ("--mode", "interpolate", *TO_CAT): 1.0,
        ("--mode", "interpolate", *TO_CAT, "--fixed_noise"): 2.0,
        ("--mode", "pca", "--guidance", 3): 3.0,
    }.items():
        assert planned(*CAT, *words).images[0].guidance == wanted


def test_without_a_theta_a_text_diff_goes_as_far_as_it_can(planned):
    shares = [one.share for one in planned(*DIFF).images]
    np.testing.assert_allclose(shares, np.linspace(0, 0.5, 8))


def test_what_a_dry_run_says(refused, here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    words = ("--best_of", 3, "--num_images", 2, "--dry_run", "--prompt")
    entry_points.sample("--workdir", "stack", *words, "a red circle " * 9)
    told = capsys.readouterr()
    assert re.search("warning: the last [0-9]+ tokens of 'a red", told.err)
    for line in (
        "model: stack, mode text, 8 x 8 pixels",
        "prior: ddim, 2 steps, guidance 1.5",
        "decoder: ddim, 3 steps, guidance 2",
        "upsampler: ddim, 2 steps",
        "images: 2, each the best of 3, 6 at a time",
    ):
        assert line in told.out
    words = (*VARY, "--init_image", "wide.png", "--dry_run", "--num_upsamplers", 0)
    entry_points.sample("--workdir", "stack", *words)
    told = capsys.readouterr()
    assert "of wide.png, which is no square" in told.err
    assert "4 x 4 pixels" in told.out and "upsampler" not in told.out


def test_a_pipeline_without_an_image_tower_says_who_lends_one(planned):
    plan = planned(*CAPTION)
    clip = plan.model.pipeline.clip
    bare = dataclasses.replace(
        plan.model.pipeline, clip=dataclasses.replace(clip, image=None)
    )
    chosen = chosen_of("--weights", "karlo", *VARY, *CAT)
    with pytest.raises(build.ConfigError, match="lend one with --image_weights"):
        unclip_plans.check_stages(chosen, bare, False)
