"""Where images go: a directory of PNGs, one PNG, and an array of floats."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from diffusion_jax import build
from diffusion_jax.evaluation import grids
from diffusion_jax.sampling import records
from diffusion_jax.sampling.wanted import Wanted

COLUMNS = 4
ROUNDING = ("batch", "pad_batch")  # flags that change no more than that
Made = dict[int, Float[np.ndarray, "H W 3"]]  # images by position


@runtime_checkable
class Plan(Protocol):
    """What is told of images, and where they go; every pipeline's plan has it."""

    images: list[Wanted]
    flags: dict[str, Any]  # those that all images share, as a record has them
    together: dict[str, Any]  # those that make all images in one go
    sampler: str
    model: Any  # its name, and `facts`


class Out(NamedTuple):
    """`picture` is one PNG for all; if it is None, `directory` gets one per image."""

    directory: pathlib.Path
    picture: pathlib.Path | None
    array: pathlib.Path | None
    has_sheet: bool  # a run's directory also gets all images on one sheet

    @property
    def has_several(self) -> bool:
        """Whether something holds all images, which are then kept in memory."""
        return self.has_sheet or self.picture is not None or self.array is not None


def place(out: str, array: str | None, *, of_run: bool) -> Out:
    """Raises where nothing can be written."""
    target = pathlib.Path(out).expanduser()
    is_png = target.suffix.lower() == ".png"
    directory = target.parent if is_png else target
    if is_png and target.is_dir():
        raise build.ConfigError(f"--out {out} is a directory; give it another name")
    places = [directory]
    if array is not None:
        if not array.endswith(".npy"):
            raise build.ConfigError(f"--array {array}; its name must end in .npy")
        places.append(pathlib.Path(array).expanduser().parent)
    for each in places:
        try:
            each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise build.ConfigError(
                f"cannot write to {each}: {error.strerror}"
            ) from error
    saved = None if array is None else pathlib.Path(array).expanduser()
    return Out(directory, target if is_png else None, saved, of_run)


def flags_of(plan: Plan, one: Wanted) -> dict[str, Any]:
    """The flags that make one image of the plan."""
    own = {} if one.prompt is None else dict(prompt=one.prompt)
    if one.negative:
        own["negative"] = one.negative
    own |= dict(seed=one.seed, first_index=one.index, guidance=one.guidance)
    if one.own is not None:
        own |= one.own
    elif one.frame is None:
        own["num_images"] = 1
    else:
        own["frame"] = one.frame
    return plan.flags | own


def texts_of(plan: Plan, one: Wanted) -> dict[str, str]:
    """The text chunks of one image."""
    flags = flags_of(plan, one)
    facts = {}
    if plan.model.facts is not None:
        facts = {"prompt": one.prompt or "", "index": str(one.index)}
        facts |= plan.model.facts(one.seed, one.negative)
        flags |= _step(facts)
    return records.texts(flags, sampler=plan.sampler, model=plan.model.name) | facts


def _step(facts: Mapping[str, str]) -> dict[str, Any]:
    """The flag of a run's checkpoint, or of those of several runs."""
    if "checkpoint_steps" in facts:
        steps = json.loads(facts["checkpoint_steps"]).items()
        return {"checkpoints": ",".join(f"{run}={step}" for run, step in steps)}
    if "checkpoint_step" not in facts:
        return {}
    return {"step": int(facts["checkpoint_step"])}


def save(
    image: Float[np.ndarray, "H W 3"], path: pathlib.Path, plan: Plan, one: Wanted
) -> None:
    """One image as it is, with its record."""
    picture = Image.fromarray(grids.to_uint8(image))
    grids.save_png(picture, path, metadata=texts_of(plan, one))


def path_of(out: Out, one: Wanted) -> pathlib.Path:
    return out.directory / f"{one.stem}.png"


def check_inputs_kept(
    out: Out,
    plan: Plan,
    inputs: Sequence[pathlib.Path],
    directories: Sequence[pathlib.Path] = (),
) -> None:
    """Raises if a file that is read would be written over, which nobody can want.

    Neither may anything be written to `directories`, of which every picture is read.
    """
    inputs = [path for path in inputs if path.is_file()]
    for path in [*_pictures(out, plan), *([] if out.array is None else [out.array])]:
        for one in directories:
            if path.resolve().is_relative_to(one.resolve()):
                raise build.ConfigError(
                    f"{path} is in {one}, whose pictures are read: choose another "
                    "--out or --array"
                )
        if path.exists() and any(path.samefile(one) for one in inputs):
            raise build.ConfigError(
                f"{path} is read, and would be written over: choose another --out or "
                "--array"
            )


def check_not_lost(out: Out, plan: Plan) -> None:
    """Raises if what was made otherwise would be written over; a run's may be."""
    if plan.model.facts is not None:
        return
    for path, flags in _pictures(out, plan).items():
        if path.exists() and not _is_same(path, flags):
            raise build.ConfigError(
                f"{path} is there and was made otherwise: choose another --out, --seed "
                "or --first_index, or --overwrite it"
            )
    if out.array is not None and out.array.exists():  # it tells not how it was made
        raise build.ConfigError(
            f"{out.array} is there: choose another --array, or --overwrite it"
        )


def _pictures(out: Out, plan: Plan) -> dict[pathlib.Path, dict[str, Any]]:
    """Every picture that the plan writes, and the flags of its record."""
    found = {}
    if out.picture is None:
        found = {path_of(out, one): flags_of(plan, one) for one in plan.images}
    if is_alone(out, plan):
        found[out.picture] = flags_of(plan, plan.images[0])
    elif out.picture is not None or out.has_sheet:
        path = _sheet_path(out)
        found[path] = _flags_of_sheet(plan, path.name)
    return found


def is_alone(out: Out, plan: Plan) -> bool:
    """Whether the one picture is the one image, rather than a sheet."""
    return out.picture is not None and len(plan.images) == 1 and not out.has_sheet


def _sheet_path(out: Out) -> pathlib.Path:
    return out.picture or out.directory / "grid.png"


def _is_same(path: pathlib.Path, flags: Mapping[str, Any]) -> bool:
    try:
        found = records.read(path)["flags"]
    except build.ConfigError:
        return False
    found, wanted = (
        {name: value for name, value in each.items() if name not in ROUNDING}
        for each in (found, flags)
    )
    return found == wanted


def finish(out: Out, plan: Plan, made: Made) -> list[pathlib.Path]:
    """Writes what holds several images, of those that were made; returns where."""
    written = []
    images = [made[position] for position in sorted(made)]
    chosen = [plan.images[position] for position in sorted(made)]
    if out.array is not None:
        np.save(out.array, np.stack(images))
        written.append(out.array)
    if is_alone(out, plan):
        save(images[0], out.picture, plan, chosen[0])
        written.append(out.picture)
    elif out.picture is not None or out.has_sheet:
        sheet = _sheet_path(out)
        _save_sheet(np.stack(images), sheet, plan, chosen)
        written.append(sheet)
    return written


def _save_sheet(
    images: Float[np.ndarray, "B H W 3"],
    path: pathlib.Path,
    plan: Plan,
    chosen: list[Wanted],
) -> None:
    """All images with their prompts; its record makes the sheet again."""
    first = chosen[0]
    prompts = [caption_of(one) for one in chosen]
    sheet = grids.captioned_grid(images, prompts, columns=min(COLUMNS, len(images)))
    grids.save_png(sheet, path, metadata=_texts_of_sheet(plan, first, path.name))


def caption_of(one: Wanted) -> str:
    """What stands beneath an image on a sheet."""
    if one.own is not None:  # frames of one prompt
        return ", ".join(f"{name} {value}" for name, value in one.own.items())
    if one.prompt is None and one.frame is not None:
        return f"{one.share:.2f} of the way"
    return f"seed {one.seed}, {one.index}" if one.prompt is None else one.prompt


def _flags_of_sheet(plan: Plan, name: str) -> dict[str, Any]:
    return plan.flags | plan.together | {"out": name}


def _texts_of_sheet(plan: Plan, first: Wanted, name: str) -> dict[str, str]:
    flags = _flags_of_sheet(plan, name)
    prompts = list(dict.fromkeys(one.prompt or "" for one in plan.images))
    facts = {}
    if plan.model.facts is not None:
        facts = plan.model.facts(first.seed, first.negative)
        flags |= _step(facts)
        facts["prompt"] = json.dumps(prompts, ensure_ascii=False)
    return records.texts(flags, sampler=plan.sampler, model=plan.model.name) | facts
