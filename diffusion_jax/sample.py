"""Makes images of prompts, with a published model or a trained run.

    python -m diffusion_jax.sample --weights stable-diffusion-v1-5 \\
        --prompt "a photograph of an astronaut riding a (horse:1.2)" --negative blurry \\
        --sampler dpmpp_2m --grid karras --steps 25 --guidance 7.5 --num_images 4 --out cats

    python -m diffusion_jax.sample --workdir runs/quickstart/ldm \\
        --prompt "a small red circle above a large blue square" --out grid.png

    --init_image cat.png --strength 0.6            changes a picture
    --init_image cat.png --mask hole.png           paints where the mask is white
    --lora style.safetensors:0.8                   may be repeated
    --refiner sdxl-refiner --handover 0.8          goes on with another model
    --to_prompt "a dog" --to_seed 1 --frames 16    from one image to another
    --latents noise.npy --array images.npy         to compare with other programs

    python -m diffusion_jax.sample --pipeline dalle2 --weights kakaobrain/karlo-v1-alpha \\
        --prompt "a portrait of a fox" --prior_guidance 4 --guidance 8 --out foxes

    python -m diffusion_jax.sample --pipeline dalle2 --workdir runs/scenes \\
        --mode text_diff --init_image red.png --before "a red circle" \\
        --prompt "a blue circle" --frames 5 --out edit.png

`--weights` is a directory as diffusers writes it, a single safetensors file, or an id of
the hub. Image i of a seed is the same whatever `--batch` and the number of devices; every
PNG says how it was made, and `python -m diffusion_jax.inspect IMAGE` prints the command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from absl import flags

from diffusion_jax import build, command
from diffusion_jax.sampling import (
    conflicts,
    making,
    outputs,
    plans,
    progress,
    reports,
    unclip_best,
    unclip_flags,
    unclip_making,
    unclip_plans,
    unclip_reports,
)
from diffusion_jax.sampling.plans import Plan
from diffusion_jax.sampling.wanted import MAX_SEED
from diffusion_jax.types import Params

OUT_OF_RUN, OUT_OF_WEIGHTS = "grid.png", "samples"


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    here = dict(flag_values=values)
    _define_model(here)
    _define_images(here)
    _define_steps(here)
    _define_starts(here)
    unclip_flags.define(here)
    text, truth = flags.DEFINE_string, flags.DEFINE_bool
    text("out", None, "A .png file, or a directory for one PNG per image.", **here)
    text("array", None, "Also all images as floats in [-1, 1], .npy, NHWC.", **here)
    truth("overwrite", False, "Replace pictures that were made otherwise.", **here)
    truth("list_samplers", False, "Name samplers and grids, and stop.", **here)
    truth("dry_run", False, "Say what would be made; read no weights.", **here)


def _define_model(here: dict) -> None:
    text, truth = flags.DEFINE_string, flags.DEFINE_bool
    text("weights", None, "A published model: directory, file or hub id.", **here)
    text("workdir", None, "A run of our own training.", **here)
    flags.DEFINE_integer("step", None, "The run's checkpoint; else the newest.", **here)
    text("variant", None, "Of the files in a directory: fp16, say.", **here)
    truth("ema", False, "The averaged weights of a single file.", **here)
    text("tokenizer", None, "Where a single file's tokenizers are.", **here)
    text("prediction_type", None, "Of a single file: epsilon, v_prediction.", **here)
    text("dtype", None, "float32 (default), bfloat16 or float16.", **here)
    flags.DEFINE_multi_string("lora", [], "FILE or FILE:scale; repeatable.", **here)
    flags.DEFINE_integer(
        "clip_skip", None, "Leave out so many text layers.", lower_bound=0, **here
    )
    flags.DEFINE_integer(
        "tile", None, "Decode in tiles of so many latents.", lower_bound=1, **here
    )
    truth("sliced", False, "The autoencoder takes one image at a time.", **here)
    text("refiner", None, "The model that takes the last steps.", **here)
    flags.DEFINE_float("handover", None, "After this share of noise; 0.8.", **here)


def _define_images(here: dict) -> None:
    text, whole = flags.DEFINE_string, flags.DEFINE_integer
    flags.DEFINE_multi_string("prompt", [], "What to show; repeatable.", **here)
    text("from_file", None, "A prompt, or JSON with prompt, on every line.", **here)
    text("negative", "", "What to keep away from.", **here)
    flags.DEFINE_bool("no_weighting", False, "Brackets are text.", **here)
    whole("max_chunks", None, "Cut prompts after this.", lower_bound=1, **here)
    bounds = dict(lower_bound=0, upper_bound=MAX_SEED)
    whole("seed", 0, "With its index, fixes every image.", **bounds, **here)
    whole("first_index", 0, "The index of the first image.", **bounds, **here)
    whole("num_images", None, "Images per prompt.", lower_bound=1, **here)
    whole("batch", None, "Images at a time.", lower_bound=1, **here)
    flags.DEFINE_bool("pad_batch", False, "Fill a batch, to be exact.", **here)
    whole("height", None, "Pixels.", lower_bound=1, **here)
    whole("width", None, "Pixels.", lower_bound=1, **here)
    text("to_prompt", None, "Interpolate to this prompt.", **here)
    whole("to_seed", None, "Interpolate to this seed.", **bounds, **here)
    whole("frames", None, "Of an interpolation; 8.", lower_bound=2, **here)
    whole("frame", None, "Only this one, from 0.", lower_bound=0, **here)


def _define_steps(here: dict) -> None:
    text, number = flags.DEFINE_string, flags.DEFINE_float
    text("sampler", None, "The solver; see --list_samplers.", **here)
    text("grid", None, "The times; see --list_samplers.", **here)
    flags.DEFINE_integer("steps", None, "How many steps.", lower_bound=1, **here)
    number("guidance", None, "The scale of guidance; 1: none.", **here)
    number(
        "guidance_rescale",
        None,
        "Share of the rescaled prediction.",
        lower_bound=0.0,
        upper_bound=1.0,
        **here,
    )
    text("guidance_interval", None, "LOW,HIGH of sigma / alpha.", **here)


def _define_starts(here: dict) -> None:
    text = flags.DEFINE_string
    text("init_image", None, "A picture to start from.", **here)
    flags.DEFINE_float("strength", None, "How much of it to change.", **here)
    text("mask", None, "A picture, white where to paint.", **here)
    text("latents", None, "N(0, 1) noise to start from, .npy.", **here)


def run(chosen: flags.FlagValues) -> None:
    """All that the flags ask for."""
    if chosen.list_samplers:
        print(reports.samplers_and_grids())
        return
    is_unclip = unclip_flags.is_wanted(chosen)
    if is_unclip:
        plan, inputs = unclip_plans.make(chosen), unclip_flags.inputs(chosen)
        directories = unclip_flags.directories(chosen)
        warnings, planned = unclip_reports.warnings, unclip_reports.planned
    else:
        unclip_flags.check_absent(chosen)
        plan, inputs, directories = plans.make(chosen), conflicts.inputs(chosen), []
        warnings, planned = reports.cut, reports.planned
    for line in warnings(plan):
        print(f"warning: {line}", file=sys.stderr)
    if chosen.dry_run:
        print(planned(plan))
        return
    is_run = chosen.workdir is not None
    default = OUT_OF_RUN if is_run else OUT_OF_WEIGHTS
    out = outputs.place(chosen.out or default, chosen.array, of_run=is_run)
    outputs.check_inputs_kept(out, plan, inputs, directories)
    if not chosen.overwrite:
        outputs.check_not_lost(out, plan)
    if is_unclip:
        make_unclip(plan, out)
    else:
        make(plan, out, *load(plan))


def load(plan: Plan) -> tuple[Params, Params | None]:
    """The parameters, adapted, and those of the refiner."""
    try:
        params = plan.model.load()
        others = None if plan.refiner is None else plan.refiner.load()
    except ValueError as error:
        raise build.ConfigError(str(error)) from error
    if plan.loras:
        params = making.adapt(params, plan.loras, plan.scales)
    return params, others


def make(
    plan: Plan, out: outputs.Out, params: Params, refiner_params: Params | None
) -> None:
    """Writes every image as soon as its batch is done, whatever stops the next one."""
    tell = progress.reporter(len(plan.images))
    generate = making.maker(
        plan.model,
        batch_size=plan.batch_size,
        refiner=plan.refiner,
        from_noise=plan.start.from_noise,
        on_step=tell.step,
        on_batch=tell.begin,
    )
    batches = generate(params, plan.images, plan.start, plan.to_prompt, refiner_params)
    write(plan, out, _told(batches, tell))


def _told(
    batches: Iterator[making.Batch], tell: progress.Reporter
) -> Iterator[making.Batch]:
    for batch in batches:
        tell.end()
        yield batch


def make_unclip(plan: unclip_plans.Plan, out: outputs.Out) -> None:
    """As `make`, with the weights of every stage."""
    try:
        params = plan.model.load()
    except ValueError as error:
        raise build.ConfigError(str(error)) from error
    tell = progress.reporter(unclip_best.num_drawn(plan), unit="stage")
    generate = unclip_making.maker(
        plan, on_stage=tell.step, on_batch=tell.begin, on_done=tell.end
    )
    write(plan, out, generate(params))


def write(
    plan: outputs.Plan, out: outputs.Out, batches: Iterator[making.Batch]
) -> None:
    """Images as they come, and at last what holds several of them."""
    made: outputs.Made = {}
    try:
        for batch, images in batches:
            for one, image in zip(batch, images):
                if out.has_several:
                    made[one.position] = image
                if out.picture is None:
                    outputs.save(image, outputs.path_of(out, one), plan, one)
                    print(outputs.path_of(out, one), flush=True)
    finally:
        if made:
            for path in outputs.finish(out, plan, made):
                print(path)


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    run(flags.FLAGS)


if __name__ == "__main__":
    define_flags()
    command.run(main)
