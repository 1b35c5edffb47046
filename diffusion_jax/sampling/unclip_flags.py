"""The flags of `--pipeline dalle2`: which there are, and which of them a mode takes.

text             images of prompts; with --best_of, those that CLIP likes best
text_embedding   of prompts, whose own embedding stands for an image's (figure 8)
caption          of prompts, which the decoder hears without any embedding (figure 8)
variations       of --init_image: anew, or of its own noise with --eta (figure 3)
interpolate      from --init_image to --to_image or --to_prompt (figure 4)
text_diff        --init_image changed as --before differs from --prompt (figure 5)
pca              --init_image of its first principal components (figure 7)
inpaint          --init_image painted where --mask is white
"""

from __future__ import annotations

import math
import pathlib
from typing import NamedTuple

from absl import flags

from diffusion_jax import build, runs, unclip_runs
from diffusion_jax.diffusion.process import Real
from diffusion_jax.pipelines import manipulations
from diffusion_jax.sampling import models
from diffusion_jax.weights import directory, hub, karlo

DALLE2, STABLE_DIFFUSION = "dalle2", "stable_diffusion"
PIPELINES = (STABLE_DIFFUSION, DALLE2)
FRAMES = 8

ONLY_STABLE_DIFFUSION = (
    *("step", "ema", "tokenizer", "prediction_type", "lora", "clip_skip", "tile"),
    *("sliced", "refiner", "handover", "negative", "no_weighting", "max_chunks"),
    *("height", "width", "to_seed", "guidance_rescale", "guidance_interval"),
    *("strength", "latents"),
)
SHARED = (  # by all modes of both pipelines
    *("pipeline", "weights", "workdir", "variant", "dtype", "seed", "first_index"),
    *("batch", "pad_batch", "steps", "grid", "guidance", "out", "array", "overwrite"),
    *("list_samplers", "dry_run"),
)
OF_UPSAMPLERS = ("upsampler_steps", "upsampler_sampler", "upsampler_grid")
OWN = (  # of all modes, but not of Stable Diffusion
    *("mode", "image_weights", "checkpoints", "num_upsamplers"),
    *OF_UPSAMPLERS,
)
OF_PRIOR = (
    *("prior", "prior_steps", "prior_guidance", "prior_sampler", "prior_grid"),
    "candidates",
)
OF_PROMPTS = ("prompt", "from_file", "num_images", "sampler")
ONLY_WEIGHTS = ("variant", "dtype", "image_weights")
ONLY_RUNS = {"prior": "which run's", "checkpoints": "which are read"}
INPUTS = ("weights", "image_weights", "init_image", "to_image", "mask", "from_file")


class Mode(NamedTuple):
    """What a mode takes besides what all take, and what of it must be there."""

    takes: tuple[str, ...]
    needs: tuple[str, ...] = ()


MODES = {
    "text": Mode((*OF_PROMPTS, *OF_PRIOR, "image_guidance", "best_of")),
    "text_embedding": Mode((*OF_PROMPTS, "image_guidance")),
    "caption": Mode(OF_PROMPTS),
    "variations": Mode(
        ("init_image", "num_images", "sampler", "eta", "corrections"), ("init_image",)
    ),
    "interpolate": Mode(
        (
            *("init_image", "to_image", "to_prompt", "frames", "frame"),
            *("fixed_noise", "corrections", *OF_PRIOR),
        ),
        ("init_image",),
    ),
    "text_diff": Mode(
        ("init_image", "before", "prompt", "theta", "frames", "corrections"),
        ("init_image", "prompt"),
    ),
    "pca": Mode(
        ("init_image", "dims", "components", "prior", "corrections"), ("init_image",)
    ),
    "inpaint": Mode(
        (*OF_PROMPTS, *OF_PRIOR, "init_image", "mask", "image_guidance"),
        ("init_image", "mask"),
    ),
}
TAKEN = {name for mode in MODES.values() for name in mode.takes}
# pairs that exclude each other, and why
EXCLUDES = {
    ("prompt", "from_file"): "either gives the prompts",
    ("to_image", "to_prompt"): "either is the other end",
    ("prior", "components"): "either has the components",
    ("eta", "sampler"): "from its own noise an image is drawn by DDIM",
    ("fixed_noise", "corrections"): "noise that is drawn was not found backwards",
}


def define(here: dict) -> None:
    """The flags that Stable Diffusion has not, and `--pipeline`."""
    text, whole, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    text("pipeline", None, "stable_diffusion or dalle2; seen if it can be.", **here)
    text("mode", None, f"Of dalle2: {', '.join(MODES)}.", **here)
    text("image_weights", None, "Lends CLIP's tower of images.", **here)
    text("prior", None, "The run of a prior, where there are two.", **here)
    text("checkpoints", None, "RUN=STEP,...: of runs; else the newest.", **here)
    for name in ("sampler", "grid"):
        text(f"prior_{name}", None, f"--{name} of the prior.", **here)
    whole("prior_steps", None, "--steps of the prior.", lower_bound=1, **here)
    number("prior_guidance", None, "--guidance of the prior.", **here)
    whole("candidates", None, "Embeddings to choose from.", lower_bound=1, **here)
    number("image_guidance", None, "--guidance of the embedding alone.", **here)
    for name in ("steps", "sampler", "grid"):
        text(f"upsampler_{name}", None, f"--{name} of all, or A,B: of each.", **here)
    whole("num_upsamplers", None, "How many enlarge; all.", lower_bound=0, **here)
    whole("best_of", None, "Images of which CLIP takes one.", lower_bound=2, **here)
    bounds = dict(lower_bound=0.0, upper_bound=1.0)
    number("eta", None, "How far from the image, 0 to 1.", **bounds, **here)
    whole("corrections", None, "Of steps to a picture's noise.", lower_bound=0, **here)
    text("to_image", None, "Interpolate to this picture.", **here)
    flags.DEFINE_bool("fixed_noise", False, "One noise for all frames.", **here)
    text("before", None, "A caption of the picture.", **here)
    flags.DEFINE_multi_float("theta", [], "How far to change it; 0.5.", **here)
    flags.DEFINE_multi_integer("dims", [], "Components to keep; repeatable.", **here)
    text("components", None, "A directory of pictures that have them.", **here)


def is_wanted(chosen: flags.FlagValues) -> bool:
    """Whether it is DALL·E 2, as the flags say or what they name shows.

    Raises for a published model that is of another pipeline, before more than its
    model_index.json is downloaded.
    """
    models.check_name("pipeline", chosen.pipeline, PIPELINES)
    if chosen.workdir is None and chosen.weights is not None:
        return _pipeline_of(chosen.weights, chosen.pipeline) == DALLE2
    if chosen.pipeline is not None or chosen.workdir is None:
        return chosen.pipeline == DALLE2
    root = pathlib.Path(chosen.workdir).expanduser()
    is_run = (root / runs.CONFIG_FILE).exists()
    return not is_run and bool(unclip_runs.read_configs(root))


def _pipeline_of(weights: str, said: str | None) -> str | None:
    """That of a published model, which must be the one that was said."""
    kind = hub.class_name(weights)
    if kind is None:
        return said
    found = dict.fromkeys((*directory.PLAIN, *directory.XL), STABLE_DIFFUSION)
    found |= dict.fromkeys(karlo.PIPELINES, DALLE2)
    if kind not in found:
        raise build.ConfigError(
            f"{weights} is of a {kind}, which is not supported; one of "
            f"{', '.join(found)}"
        )
    if said not in (None, found[kind]):
        raise build.ConfigError(
            f"{weights} is of a {kind}: give --pipeline {found[kind]}"
        )
    return found[kind]


def given(chosen: flags.FlagValues, *names: str) -> bool:
    """Whether any of these flags says something."""
    values = [chosen[name].value for name in names]
    return any(
        not (value is None or value is False or value in ([], "")) for value in values
    )


def check_absent(chosen: flags.FlagValues) -> None:
    """Raises for flags that only DALL·E 2 has, where that is not wanted."""
    stable = {"prompt", "from_file", "num_images", "sampler", "init_image", "mask"}
    stable |= {"to_prompt", "frames", "frame"}
    for name in (*OWN, *sorted(TAKEN - stable)):
        if given(chosen, name):
            raise build.ConfigError(
                f"--{name} is for --pipeline dalle2: give that, and a --workdir that "
                "holds the run of every stage, or the --weights of an unCLIP"
            )


def check(chosen: flags.FlagValues) -> None:
    """Raises for flags that are missing or do not go together; sets the defaults."""
    chosen.mode = "text" if chosen.mode is None else chosen.mode
    models.check_name("mode", chosen.mode, MODES)
    _check_taken(chosen)
    if (chosen.weights is None) == (chosen.workdir is None):
        raise build.ConfigError("give one of --weights and --workdir: what to sample")
    for (one, other), reason in EXCLUDES.items():
        if given(chosen, one) and given(chosen, other):
            raise build.ConfigError(f"--{one} and --{other}: {reason}")
    if chosen.workdir is not None:
        for name in ONLY_WEIGHTS:
            if given(chosen, name):
                raise build.ConfigError(f"--{name} is for --weights, not for runs")
    else:
        for name, what in ONLY_RUNS.items():
            if given(chosen, name):
                raise build.ConfigError(f"--{name} is for --workdir: {what}")
    for name in ("guidance", "prior_guidance", "image_guidance"):
        value = chosen[name].value
        if value is not None and not math.isfinite(value):
            raise build.ConfigError(f"--{name} {value} is not a finite number")
    check_guidance("--prior_guidance", chosen.prior_guidance)
    if chosen.image_guidance is None:
        check_guidance("--guidance", chosen.guidance)
    _check_upsamplers(chosen)
    _check_frames(chosen)


def check_guidance(name: str, scale: Real | None) -> None:
    """Raises below 1, which published pipelines and ours understand otherwise.

    Beside an `--image_guidance` there is no doubt: it is a share of the caption.
    """
    if scale is not None and scale < 1:
        raise build.ConfigError(f"{name} {scale:g}; 1, which is none, or more")


def _check_upsamplers(chosen: flags.FlagValues) -> None:
    num = chosen.num_upsamplers
    for name in OF_UPSAMPLERS:
        if num is None or not given(chosen, name):
            continue
        if num == 0:
            raise build.ConfigError(f"--{name}: of --num_upsamplers 0 there is none")
        num_values = chosen[name].value.count(",") + 1
        if num_values > num:
            raise build.ConfigError(
                f"--{name} has {num_values} values for --num_upsamplers {num}"
            )


def checkpoints(chosen: flags.FlagValues) -> dict[str, int]:
    """The steps of runs, by name."""
    found = {}
    for word in (chosen.checkpoints or "").split(","):
        name, _, step = word.strip().rpartition("=")
        if not word.strip():
            continue
        if not (name and step.isdecimal()):
            raise build.ConfigError(
                f"--checkpoints {word!r}; RUN=STEP, with commas between"
            )
        found[name] = int(step)
    return found


def _check_taken(chosen: flags.FlagValues) -> None:
    mode = MODES[chosen.mode]
    for name in ONLY_STABLE_DIFFUSION:
        if given(chosen, name):
            raise build.ConfigError(f"--{name} is for --pipeline stable_diffusion")
    for name in sorted(TAKEN - set(mode.takes)):
        if given(chosen, name):
            others = [other for other, one in MODES.items() if name in one.takes]
            raise build.ConfigError(
                f"--{name} is for --mode {' or '.join(others)}, not {chosen.mode}"
            )
    for name in mode.needs:
        if not given(chosen, name):
            raise build.ConfigError(f"--mode {chosen.mode} needs --{name}")
    if "from_file" in mode.takes and not given(chosen, "prompt", "from_file"):
        raise build.ConfigError(
            "give a --prompt, or --from_file with one on every line"
        )


def _check_frames(chosen: flags.FlagValues) -> None:
    if chosen.mode == "interpolate":
        if not given(chosen, "to_image", "to_prompt"):
            raise build.ConfigError(
                "--mode interpolate needs --to_image or --to_prompt"
            )
        chosen.frames = FRAMES if chosen.frames is None else chosen.frames
        if chosen.frame is not None and chosen.frame >= chosen.frames:
            raise build.ConfigError(
                f"--frame {chosen.frame} of {chosen.frames}, counted from 0"
            )
        if given(chosen, *OF_PRIOR) and chosen.to_prompt is None:
            raise build.ConfigError("the prior's flags are for --to_prompt")
    if chosen.mode == "text_diff":
        if len(chosen.prompt) != 1:
            raise build.ConfigError("a text diff goes to one --prompt")
        if chosen.frames is not None and len(chosen.theta) > 1:
            raise build.ConfigError("--frames goes up to one --theta")
        if not chosen.theta:
            chosen.theta = [manipulations.MAX_THETA]
            chosen.frames = FRAMES if chosen.frames is None else chosen.frames
        manipulations.check_thetas(tuple(chosen.theta))
    if chosen.corrections is not None and not starts_from_code(chosen):
        raise build.ConfigError("--corrections needs --eta")


def starts_from_code(chosen: flags.FlagValues) -> bool:
    """Whether images are drawn by DDIM from a noise that is not that of a sample."""
    is_eta = chosen.mode == "variations" and chosen.eta is not None
    return is_eta or chosen.mode in ("interpolate", "text_diff", "pca")


def directories(chosen: flags.FlagValues) -> list[pathlib.Path]:
    """Those of which every picture is read."""
    name = chosen.components
    return [] if name is None else [pathlib.Path(name).expanduser()]


def inputs(chosen: flags.FlagValues) -> list[pathlib.Path]:
    """What the flags name to be read, be it a file or not."""
    names = [chosen[name].value for name in INPUTS]
    return [pathlib.Path(name).expanduser() for name in names if name is not None]
