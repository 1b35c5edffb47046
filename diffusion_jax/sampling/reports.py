"""What is told without making anything: the samplers there are, and a plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from diffusion_jax.diffusion.grids import GRIDS
from diffusion_jax.pipelines import edits
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.sampling import plans
from diffusion_jax.sampling.models import Model
from diffusion_jax.sampling.plans import Plan

SHOWN = 20  # prompts of a long file


def samplers_and_grids() -> str:
    """Every name that --sampler and --grid take, with the first line of its docstring."""
    return "\n".join(
        [
            "samplers:",
            *_listed(plans.samplers()),
            "grids:",
            *_listed(GRIDS),
        ]
    )


def _listed(choices: Mapping[str, Callable]) -> list[str]:
    width = max(map(len, choices))
    return [
        f"  {name:{width}}  {_first_line(choices[name])}" for name in sorted(choices)
    ]


def _first_line(function: Callable) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return (function.__doc__ or "").strip().split("\n")[0]


def planned(plan: Plan) -> str:
    """What the plan would do, in lines."""
    lines = _of_model("model", plan.model)
    if plan.refiner is not None:
        lines += _of_model("refiner", plan.refiner)
    if plan.start.image is not None:
        kind = "inpainting" if plan.start.mask is not None else "an image"
        lines.append(f"starts from: {kind}, strength {plan.flags['strength']:g}")
    lines += [f"lora: {word}" for word in plan.flags.get("lora", [])]
    num = len(plan.images)
    lines.append(f"images: {num}, {plan.batch_size} at a time")
    texts = list(dict.fromkeys(one.prompt for one in plan.images))
    negatives = list(dict.fromkeys(one.negative for one in plan.images))
    texts += [] if plan.to_prompt is None else [plan.to_prompt]
    lines += _of_texts("prompt", plan.model, texts)
    lines += _of_texts("negative", plan.model, negatives)
    return "\n".join(lines)


def _of_model(kind: str, model: Model) -> list[str]:
    pipeline = model.pipeline
    height, width = (side * pipeline.factor for side in pipeline.latent_shape[:2])
    return [
        (
            f"{kind}: {model.name}, {height} x {width} pixels (height x width), "
            f"weights of {_size(model.num_bytes())}"
        ),
        *_of_stage(plans.sampler_of(model), pipeline.unet),
    ]


def _size(num_bytes: int) -> str:
    return (
        f"{num_bytes / 1e9:.2f} GB" if num_bytes > 1e8 else f"{num_bytes / 1e6:.1f} MB"
    )


def _of_stage(sampler: str, stage: Stage) -> list[str]:
    heard = edits.times_heard(stage)
    taken = heard[stage.first : stage.last]
    return [
        (
            f"  sampler: {sampler}, {len(taken)} of {stage.steps} steps, "
            f"guidance {stage.guidance:g}"
        ),
        f"  times: {' '.join(f'{time:.6g}' for time in np.asarray(taken))}",
    ]


def _of_texts(kind: str, model: Model, texts: list[str]) -> list[str]:
    lines = [
        f"{kind}: {text!r}: {num} tokens{_cut(cut)}"
        for text, num, cut in zip(
            texts[:SHOWN], model.num_tokens(texts[:SHOWN]), model.num_cut(texts[:SHOWN])
        )
    ]
    hidden = len(texts) - SHOWN
    return lines + [f"and {hidden} more"] * (hidden > 0)


def _cut(num: int) -> str:
    return f", of which the last {num} are cut" if num else ""


def cut(plan: Plan) -> list[str]:
    """A line for each text whose end a model does not read."""
    texts = [text for one in plan.images for text in (one.prompt, one.negative)]
    texts = list(dict.fromkeys(texts + [plan.to_prompt or ""]))
    return [
        f"the last {num} tokens of {text!r} do not fit what this model reads"
        for text, num in zip(texts, plan.model.num_cut(texts))
        if num
    ]
