"""What `experiments.scenes_dalle2` measures of the stack that it trained.

Every group is a function of (stack, directory for its pictures, number of captions of
each split) to named numbers. "held_in" is the validation split; the captions of the
test split, "held_out", have pairs of colour and shape that training never shows.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax import build
from diffusion_jax.data import degradation, scene_verifier
from diffusion_jax.evaluation import accuracy, embedding_cosines, grids, reconstruction
from diffusion_jax.evaluation import upsampling as upsampling_scores
from diffusion_jax.pipelines import best_of
from experiments import colour_edits, scenes_stack
from experiments.scenes_stack import Scenes, Subject

SPLITS = {"held_in": "validation", "held_out": "test"}
NUM_CANDIDATES = 4  # of each caption, for the best by CLIP
NUM_SHOWN = 12  # samples of each split
NUM_PICTURES = 8
NUM_FOR_MEAN = 1024  # training images behind the mean embedding
ETAS = (0.5, 1.0)  # of variations
SCALES = (1.0, 2.0)  # of the guidance, among which text diffs choose
THETA, SCALE = "text_diff_theta", "text_diff_scale"  # what they chose

Numbers = dict[str, float]


def text_to_image(subject: Subject, out: pathlib.Path, num: int) -> Numbers:
    """Draws of each caption, verified at full size: the first, and the best by CLIP.

    The first also as bicubic interpolation enlarges what the decoder drew.
    """
    result, shown = {}, []
    size = subject.pipeline.upsamplers[-1].size
    for name, split in SPLITS.items():
        captions = subject.scenes(split, num).captions
        small, *drawn = draws(subject, captions)
        first, best = (
            subject.enlarge(images, first=subject.num_before_clip) for images in drawn
        )
        found = scenes_stack.accuracy_of(first, captions)
        result |= with_interval(f"accuracy_{name}", found)
        best_found = scenes_stack.accuracy_of(best, captions)
        best_name = f"accuracy_{name}_best_of_{NUM_CANDIDATES}"
        result |= with_interval(best_name, best_found)
        bicubic = np.asarray(upsampling_scores.bicubic(small, size))
        by_bicubic = scenes_stack.accuracy_of(bicubic, captions)
        result[f"accuracy_{name}_by_bicubic"] = by_bicubic.fraction
        part = slice(0, NUM_SHOWN)
        shown.append((first[part], captions[part], found.verdicts[part]))
    images, captions, verdicts = map(np.concatenate, zip(*shown, strict=True))
    captions = captions.tolist()
    picture = grids.captioned_grid(images, captions, columns=6, correct=verdicts)
    metadata = {"prompts": json.dumps(captions)}
    grids.save_png(picture, out / "samples.png", metadata=metadata)
    return result


def with_interval(name: str, found: accuracy.Accuracy) -> Numbers:
    """The share and the ends of its confidence interval."""
    ends = {f"{name}_low": found.low, f"{name}_high": found.high}
    return {name: found.fraction} | ends


def draws(
    subject: Subject, captions: list[str], num: int = NUM_CANDIDATES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of some draws of each caption the first, and the best by CLIP as large as it sees.

    Before both the first as the decoder made it.
    """
    repeated = [caption for caption in captions for _ in range(num)]
    small = subject.draw(repeated)
    images = subject.enlarge(small, last=subject.num_before_clip)
    embeds = subject.embed_images(images), subject.embed_texts(captions)
    ranked = jax.jit(best_of.ranked)(images, *embeds)
    return small[::num], images[::num], np.asarray(ranked.images[:, 0])


def cosines(subject: Subject, out: pathlib.Path, num: int) -> Numbers:
    """How near the embeddings of both priors are to what they should be near to."""
    other = scenes_stack.load(out, prior="codes_prior")
    mean = mean_embedding(subject)
    result = {}
    for name, split in SPLITS.items():
        for prior, owner in (("prior", subject), ("codes_prior", other)):
            found = cosines_of(owner, split, num, mean)
            named = found._asdict().items()
            result |= {f"{prior}_{key}_{name}": value for key, value in named}
    return result


def cosines_of(
    subject: Subject, split: str, num: int, mean: np.ndarray
) -> embedding_cosines.PriorCosines:
    scenes = subject.scenes(split, num)
    drawn = subject.draw_embedding(scenes.captions)
    image = subject.embed_images(scenes.images)
    text = subject.embed_texts(scenes.captions)
    return embedding_cosines.prior_cosines(drawn, image, text, mean)


def mean_embedding(subject: Subject) -> np.ndarray:
    """Of images that were trained on."""
    scenes = subject.scenes("train", NUM_FOR_MEAN)
    return subject.embed_images(scenes.images).mean(axis=0)


def variations(subject: Subject, out: pathlib.Path, num: int) -> Numbers:
    """Whether images of z_i alone show the same caption, with more and more noise."""
    scenes = subject.scenes("validation", few(num))
    code = subject.encode(scenes.images)
    guidance = subject.pipeline.decoder.guidance
    made = {"reconstruction": subject.redraw(code)}
    for eta in ETAS:
        name = f"variation_eta_{eta:g}"
        made[name] = subject.redraw(code, scale=guidance, eta=eta)
    large = {name: subject.enlarge(images) for name, images in made.items()}
    last = subject.pipeline.upsamplers[-1].name
    originals = subject.scenes("validation", few(num), last).images
    small = upsampling_scores.bicubic(scenes.images, subject.pipeline.size)
    result = {
        "reconstruction_psnr_small": float(
            reconstruction.psnr(np.asarray(small), made["reconstruction"])
        )
    }
    for name, images in large.items():
        found = scenes_stack.accuracy_of(images, scenes.captions)
        result[f"{name}_accuracy"] = found.fraction
        result[f"{name}_difference"] = float(np.abs(images - originals).mean())
    part = slice(0, NUM_PICTURES)
    rows = {"original": originals[part]}
    rows |= {name: images[part] for name, images in large.items()}
    picture = grids.labelled_rows(rows, scale=2)
    grids.save_png(picture, out / "reconstructions.png", metadata={})
    return result


def text_diffs(subject: Subject, out: pathlib.Path, num: int) -> Numbers:
    """Colours changed by captions: theta chosen on some images, reported on others."""
    validation = subject.scenes("validation", 2 * num)
    halves = validation.take(slice(0, num)), validation.take(slice(num, None))
    for_choice, reported = (colour_edits.edits(half, few(num)) for half in halves)
    shares = colour_edits.sweep(subject, for_choice, scales=SCALES)
    theta, scale = colour_edits.best(shares)
    test = subject.scenes("test", num)
    test = colour_edits.edits(test, few(num), may_be_held_out=True)
    result = {THETA: theta, SCALE: scale}
    result["text_diff_chosen_on"] = shares[theta, scale]
    for name, edits in (("held_in", reported), ("held_out", test)):
        edited = colour_edits.apply(subject, edits, theta, scale)
        result[f"text_diff_{name}"] = colour_edits.share_of_successes(
            edited, edits.scenes.images, edits.after
        )
        result[f"text_diff_{name}_images"] = len(edits.after)
    return result


def upsampling(subject: Subject, out: pathlib.Path, num: int) -> Numbers:
    """The upsamplers beside bicubic interpolation.

    That they are better rests on "clean" images, of bicubic downsampling alone, and on
    the decoder's own, which `text_to_image` enlarges both ways. Those "degraded" as in
    training say that they learnt it: no interpolation takes noise or JPEG away.
    """
    stages = subject.pipeline.upsamplers
    parts = {stage.name: (i, i + 1) for i, stage in enumerate(stages)}
    if len(stages) > 1:
        parts["cascade"] = 0, len(stages)
    result = {}
    for name, (first, last) in parts.items():
        scenes = subject.scenes("validation", few(num), stages[last - 1].name)
        config = subject.stack.configs[stages[first].name].upsampler
        options = {"clean": {"name": "none"}, "degraded": config.degradation}
        for kind, how in options.items():
            low_res = degraded(scenes.images, config.low_size, how)
            enlarged = subject.enlarge(low_res, first=first, last=last)
            score = compare(scenes, low_res, enlarged)
            result |= {f"{name}_{kind}_{key}": value for key, value in score.items()}
    return result


def compare(scenes: Scenes, low_res: np.ndarray, enlarged: np.ndarray) -> Numbers:
    """PSNR and accuracy of the upsamplers' images and of bicubic enlargement."""
    verify = dict(verify=scene_verifier.shows, captions=scenes.captions)
    found = upsampling_scores.compare(scenes.images, low_res, enlarged, **verify)
    result = {}
    for kind, score in found._asdict().items():
        result[f"{kind}_psnr"] = score.psnr
        result[f"{kind}_accuracy"] = score.accuracy.fraction
    return result


def degraded(
    images: np.ndarray, low_size: int, options: Mapping[str, Any]
) -> np.ndarray:
    """Small images, degraded so; those that would be blurred at random, all."""
    options = dict(options)
    if "probability" in options:
        options["probability"] = 1.0
    degrade = build.choose("degradation", degradation.DEGRADATIONS, options)
    rng = np.random.default_rng(0)
    times = images.shape[1] // low_size
    return np.clip([degrade(image, times, rng) for image in images], -1, 1)


def few(num: int) -> int:
    """So many examples where every one is drawn often."""
    return max(num // 3, 1)


GROUPS: dict[str, Callable[[Subject, pathlib.Path, int], Numbers]] = {
    "text_to_image": text_to_image,
    "cosines": cosines,
    "variations": variations,
    "text_diffs": text_diffs,
    "upsampling": upsampling,
}
