"""From flags to a plan of DALL·E 2: what can be wrong is found before weights are read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from absl import flags

from diffusion_jax import build
from diffusion_jax.diffusion import grids
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.pipelines import manipulations
from diffusion_jax.pipelines.dalle2 import Dalle2
from diffusion_jax.sampling import (
    models,
    plans,
    records,
    unclip_flags,
    unclip_models,
    unclip_starts,
    wanted,
)
from diffusion_jax.sampling.unclip_models import Choices, Chosen, Model, Parts
from diffusion_jax.sampling.unclip_starts import Start
from diffusion_jax.sampling.wanted import Wanted

BATCH_OF_RUNS, IMAGES_OF_RUNS = 16, 8


class Edit(NamedTuple):
    """What is done to `Start.image`; see `manipulations`."""

    to_prompt: str | None = None
    before: str | None = None
    fixed_noise: bool = False
    eta: float | None = None  # None: from fresh noise
    corrections: int = 0


class Plan(NamedTuple):
    """All that is to be done."""

    model: Model
    mode: str
    images: list[Wanted]
    start: Start
    edit: Edit
    num_upsamplers: int
    image_guidance: float | None
    best_of: int  # 1: no choice
    batch_size: int
    sampler: str
    flags: dict[str, Any]  # those that all images share, as a record has them
    together: dict[str, Any]  # those that make all images in one go


def make(chosen: flags.FlagValues) -> Plan:
    """Raises a ConfigError in one line for what does not exist or does not fit."""
    try:
        unclip_flags.check(chosen)
        _check_names(chosen)
        return _make(chosen)
    except FileNotFoundError:
        raise
    except ValueError as error:
        raise build.ConfigError(" ".join(str(error).split())) from error


def _check_names(chosen: flags.FlagValues) -> None:
    for stage in ("prior_", "", "upsampler_"):
        samplers = plans.samplers()
        if stage == "prior_":
            samplers["analytic_dpm"] = SAMPLERS["analytic_dpm"]
        for kind, choices in {"sampler": samplers, "grid": grids.GRIDS}.items():
            value = chosen[f"{stage}{kind}"].value
            names = _split(value) if stage == "upsampler_" else [value]
            for name in names:
                models.check_name(kind, name, choices)


def _make(chosen: flags.FlagValues) -> Plan:
    model = find_model(chosen)
    draws = draws_embedding(chosen.mode, chosen.to_prompt)
    num_upsamplers = model.pipeline.num_upsamplers(chosen.num_upsamplers)
    unclip_models.check(
        model.pipeline,
        uses_prior=draws,
        num_upsamplers=num_upsamplers,
        keeps_pairs=model.keeps_pairs,
    )
    check_stages(chosen, model.pipeline, draws)
    _check_differs(chosen, model)
    size = size_of(model.pipeline, num_upsamplers)
    start = unclip_starts.read(chosen, size if chosen.mode == "inpaint" else None)
    images = _images(chosen, model, start)
    best_of = 1 if chosen.best_of is None else chosen.best_of
    batch_size = chosen.batch or (1 if chosen.workdir is None else BATCH_OF_RUNS)
    if not chosen.pad_batch:
        batch_size = min(batch_size, best_of * len(images))
    edit = Edit(
        chosen.to_prompt,
        chosen.before,
        chosen.fixed_noise,
        chosen.eta,
        chosen.corrections or 0,
    )
    has_own_sampler = not unclip_flags.starts_from_code(chosen)
    return Plan(
        model,
        chosen.mode,
        images,
        start,
        edit,
        num_upsamplers,
        chosen.image_guidance,
        best_of,
        batch_size,
        sampler_of(chosen, model.pipeline) if has_own_sampler else "ddim",
        _flags(chosen, model.pipeline, batch_size),
        _together(chosen, model.pipeline, images),
    )


# ---- the model -----------------------------------------------------------------------


def find_model(chosen: flags.FlagValues) -> Model:
    """What is named by --weights or --workdir, its stages as the flags say."""
    stages = stages_chosen(chosen)
    if chosen.workdir is not None:
        return unclip_models.of_runs(
            plans.path(chosen.workdir), stages, parts_chosen(chosen)
        )
    lends = chosen.image_weights
    return unclip_models.of_weights(
        plans.path(chosen.weights),
        stages,
        image_name=None if lends is None else plans.path(lends),
        variant=chosen.variant,
        dtype=chosen.dtype,
    )


def parts_chosen(chosen: flags.FlagValues) -> Parts:
    """The runs that the mode needs."""
    prior_for = None
    if draws_embedding(chosen.mode, chosen.to_prompt):
        prior_for = unclip_models.EMBEDDINGS
    elif chosen.mode == "pca" and chosen.components is None:
        prior_for = unclip_models.COMPONENTS
    checkpoints = unclip_flags.checkpoints(chosen)
    return Parts(prior_for, chosen.prior, chosen.num_upsamplers, checkpoints)


def stages_chosen(chosen: flags.FlagValues) -> Chosen:
    prior, decoder = (
        Choices(*(chosen[f"{stage}{name}"].value for name in Choices._fields))
        for stage in ("prior_", "")
    )
    return Chosen(prior, decoder, _upsamplers(chosen), chosen.candidates)


def _upsamplers(chosen: flags.FlagValues) -> tuple[Choices, ...]:
    """A,B of every flag, those with one value for all."""
    values = {
        name: _split(chosen[f"upsampler_{name}"].value)
        for name in ("steps", "sampler", "grid")
    }
    num = max(map(len, values.values()))
    for name, several in values.items():
        if len(several) not in (0, 1, num):
            raise build.ConfigError(
                f"--upsampler_{name} has {len(several)} values, another flag of "
                f"upsamplers {num}"
            )
    made = []
    for i in range(num):
        own = {name: v[i % len(v)] for name, v in values.items() if v}
        if "steps" in own:
            own["steps"] = _steps(own["steps"])
        made.append(Choices(**own))
    return tuple(made)


def _split(text: str | None) -> list[str]:
    return [] if not text else [word.strip() for word in text.split(",")]


def _steps(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise build.ConfigError(f"--upsampler_steps {word!r}; a number, 1 at least")
    return int(word)


def sampler_of(chosen: flags.FlagValues, pipeline: Dalle2) -> str:
    """The name of the decoder's sampler, whatever its options."""
    return chosen.sampler or plans.name_of(pipeline.decoder.sampler)


def size_of(pipeline: Dalle2, num_upsamplers: int) -> int:
    """Pixels a side of what is made."""
    if not num_upsamplers:
        return pipeline.size
    return pipeline.upsamplers[num_upsamplers - 1].size


def draws_embedding(mode: str, to_prompt: str | None) -> bool:
    """Whether the prior is asked."""
    return mode in ("text", "inpaint") or to_prompt is not None


def check_stages(chosen: flags.FlagValues, pipeline: Dalle2, uses_prior: bool) -> None:
    """Raises for a stage that the mode needs and the pipeline lacks."""
    if uses_prior:
        pipeline.check_has_prior()
    starts_from_image = chosen.mode in ("variations", "interpolate", "text_diff", "pca")
    if pipeline.clip.image is None and (starts_from_image or chosen.best_of):
        hint = "" if chosen.weights is None else ": lend one with --image_weights"
        raise build.ConfigError(
            f"{chosen.weights or chosen.workdir} has no image tower of CLIP{hint}"
        )
    if chosen.image_guidance is not None:
        unclip_models.check_two_scales(pipeline)


def _check_differs(chosen: flags.FlagValues, model: Model) -> None:
    """Raises for a text diff of captions that are one, as far as they are read."""
    if chosen.before is None:
        return
    before, after = model.read([chosen.before, chosen.prompt[0]])
    if np.array_equal(before, after):
        raise build.ConfigError(
            f"--before {chosen.before!r} and --prompt {chosen.prompt[0]!r} are read as "
            "one: they differ in nothing"
        )


# ---- what to make --------------------------------------------------------------------


def _lines(chosen: flags.FlagValues) -> list[wanted.Line]:
    if chosen.from_file is None:
        return [wanted.Line(prompt) for prompt in chosen.prompt] or [wanted.Line(None)]
    lines = wanted.read_lines(plans.path(chosen.from_file))
    if any(line.negative for line in lines):
        raise build.ConfigError(
            f"{chosen.from_file} has a negative; DALL·E 2 has no negative prompts"
        )
    return lines


def guidance_of(chosen: flags.FlagValues, pipeline: Dalle2) -> float:
    """The decoder's; none where an image's own noise was found without any."""
    if chosen.guidance is not None:
        return float(chosen.guidance)
    if unclip_flags.starts_from_code(chosen) and not chosen.fixed_noise:
        return 1.0
    return float(pipeline.decoder.guidance)


def _images(chosen: flags.FlagValues, model: Model, start: Start) -> list[Wanted]:
    num_images = chosen.num_images
    has_frames = chosen.mode in ("interpolate", "text_diff", "pca")
    if num_images is None:
        num_images = 1 if chosen.workdir is None or has_frames else IMAGES_OF_RUNS
    lines = _lines(chosen)
    if chosen.image_guidance is None:
        for line in lines:
            unclip_flags.check_guidance(f"{chosen.from_file}: guidance", line.guidance)
    images = wanted.images(
        lines,
        negative="",
        seed=chosen.seed,
        guidance=guidance_of(chosen, model.pipeline),
        num_images=num_images,
        first_index=chosen.first_index,
    )
    wanted.check_indices(images, chosen.best_of or 1)
    if chosen.mode == "interpolate":
        return wanted.frames(images[0], chosen.frames, chosen.frame)
    if chosen.mode == "text_diff":
        return _series(images[0], "theta", thetas(chosen))
    if chosen.mode == "pca":
        return _series(images[0], "dims", dims(chosen, model, start))
    return images


def _series(first: Wanted, flag: str, values: list[Any]) -> list[Wanted]:
    """An image for each value of a flag."""
    return [
        first._replace(position=i, frame=i, share=float(value), own={flag: value})
        for i, value in enumerate(values)
    ]


def thetas(chosen: flags.FlagValues) -> list[float]:
    """Those that are named, or frames from 0 up to the one."""
    if chosen.frames is None:
        return list(chosen.theta)
    return np.linspace(0, chosen.theta[0], chosen.frames).tolist()


def dims(chosen: flags.FlagValues, model: Model, start: Start) -> list[int]:
    """How many components each image keeps: those of figure 7 that there are."""
    if start.others is not None:
        width = model.pipeline.clip.text.projection_dim
        most = min(len(start.others) - 1, width)
    elif model.components is not None:
        most = len(model.components.axes)
    else:
        raise build.ConfigError(
            "no principal components: this needs the run of an autoregressive prior, "
            "or --components DIRECTORY of pictures to find them in"
        )
    for num in chosen.dims:
        if not 0 <= num <= most:
            raise build.ConfigError(f"--dims {num}; there are {most} components")
    counts = [num for num in manipulations.PCA_COUNTS if num <= most]
    return list(chosen.dims) or counts or [most]


# ---- the record ----------------------------------------------------------------------

PATHS = (
    *("weights", "image_weights", "workdir", "init_image", "to_image", "mask"),
    "components",
)
RECORDED = (
    *PATHS,
    *("variant", "dtype", *unclip_flags.OF_PRIOR, "sampler", "grid"),
    *("image_guidance", *unclip_flags.OF_UPSAMPLERS),
    *("num_upsamplers", "best_of", "to_prompt", "before", "fixed_noise", "eta"),
    "corrections",
)


def _flags(
    chosen: flags.FlagValues, pipeline: Dalle2, batch_size: int
) -> dict[str, Any]:
    """The flags that all images share, in a form that makes the same again."""
    found: dict[str, Any] = dict(pipeline=unclip_flags.DALLE2, mode=chosen.mode)
    for name in RECORDED:
        value = chosen[name].value
        if value is None or value is False:
            continue
        found[name] = records.shown_path(value) if name in PATHS else value
    if chosen.mode == "interpolate":
        found["frames"] = chosen.frames
    found["steps"] = pipeline.decoder.steps
    if batch_size > 1:  # the same program rounds in the same way
        found |= dict(batch=batch_size, pad_batch=True)
    return found


def _together(
    chosen: flags.FlagValues, pipeline: Dalle2, images: list[Wanted]
) -> dict[str, Any]:
    """The flags of prompts and seeds by which one command makes all images."""
    found: dict[str, Any] = {}
    if chosen.from_file is not None:
        found["from_file"] = records.shown_path(chosen.from_file)
    elif chosen.prompt:
        found["prompt"] = list(chosen.prompt)
    found |= dict(seed=chosen.seed, first_index=chosen.first_index)
    found["guidance"] = guidance_of(chosen, pipeline)
    if chosen.mode == "text_diff":
        found["theta"] = [one.share for one in images]
    elif chosen.mode == "pca":
        found["dims"] = [int(one.share) for one in images]
    elif chosen.mode != "interpolate":
        found["num_images"] = len(images) // len(_lines(chosen))
    elif chosen.frame is not None:
        found["frame"] = chosen.frame
    return found
