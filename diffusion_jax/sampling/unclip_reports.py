"""What is told of a plan of DALL·E 2 without making anything."""

from __future__ import annotations

import numpy as np

from diffusion_jax.pipelines import edits
from diffusion_jax.pipelines.stage import Stage
from diffusion_jax.sampling import plans, unclip_models, unclip_plans
from diffusion_jax.sampling.unclip_plans import Plan

SHOWN = 20  # prompts of a long file


def planned(plan: Plan) -> str:
    """What the plan would do, in lines."""
    pipeline, num = plan.model.pipeline, plan.num_upsamplers
    size = unclip_plans.size_of(pipeline, num)
    lines = [f"model: {plan.model.name}, mode {plan.mode}, {size} x {size} pixels"]
    used = {one.name for one in pipeline.upsamplers[:num]} | {"decoder"}
    if unclip_plans.draws_embedding(plan.mode, plan.edit.to_prompt):
        used.add("prior")
    guidance = {"decoder": plan.images[0].guidance}
    for name, stage in unclip_models.stages_of(pipeline).items():
        if name in used:
            sampler = plan.sampler if name == "decoder" else None
            lines += of_stage(name, stage, sampler, guidance.get(name, stage.guidance))
    choice = f", each the best of {plan.best_of}" if plan.best_of > 1 else ""
    lines.append(f"images: {len(plan.images)}{choice}, {plan.batch_size} at a time")
    texts = [text for text in texts_of(plan) if text]
    lines += [f"prompt: {text!r}" for text in texts[:SHOWN]]
    return "\n".join(lines + [f"and {len(texts) - SHOWN} more"] * (len(texts) > SHOWN))


def of_stage(name: str, stage: Stage, sampler: str | None, scale: float) -> list[str]:
    heard = edits.times_heard(stage)
    sampler = plans.name_of(stage.sampler) if sampler is None else sampler
    return [
        f"  {name}: {sampler}, {len(heard)} steps, guidance {scale:g}",
        f"    times: {' '.join(f'{time:.6g}' for time in np.asarray(heard))}",
    ]


def texts_of(plan: Plan) -> list[str]:
    """Every text that is read, once."""
    texts = [one.prompt or "" for one in plan.images]
    texts += [plan.edit.to_prompt or "", plan.edit.before or ""]
    return list(dict.fromkeys(texts))


def warnings(plan: Plan) -> list[str]:
    """A line for each text whose end is not read, and each picture that is cropped."""
    texts = texts_of(plan)
    lines = [
        f"the last {num} tokens of {text!r} do not fit what this model reads"
        for text, num in zip(texts, plan.model.num_cut(texts))
        if num
    ]
    return lines + [
        f"of {name}, which is no square, the middle is taken"
        for name in plan.start.cropped
    ]
