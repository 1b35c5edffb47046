"""The verifier says yes to what a caption says, and no to everything else."""

import numpy as np
import pytest
from scipy import ndimage

from diffusion_jax.data import (
    images,
    scene_captions,
    scene_verifier,
    scenes,
    scenes_builder,
)

NUM = 1000


def rendered(num, *, image_size, seed=0, held_out=True):
    rng = np.random.default_rng(seed)
    drawn = [scenes.sample(rng, held_out=held_out) for _ in range(num)]
    pixels = scenes.render(drawn, image_size=image_size)
    return rng, [scene_captions.claims_of(s) for s in drawn], images.to_float(pixels)


def degraded(rng, pixels, *, blur, noise):
    """Blur in pixels, noise as a standard deviation of the range 0..1."""
    pixels = ndimage.gaussian_filter(pixels, (0, blur, blur, 0))
    return (pixels + 2 * noise * rng.normal(size=pixels.shape)).astype(np.float32)


@pytest.mark.parametrize("image_size", [32, 64])
def test_true_captions_are_accepted_and_swapped_ones_refused(image_size):
    rng = np.random.default_rng(5)
    yes = no = 0
    for png, caption in scenes_builder.generate("test", NUM, image_size=image_size):
        pixels = images.square(images.decode(png), image_size, crop="center")
        found = scene_verifier.detect(images.to_float(pixels))
        claims = scene_captions.parse(caption)
        swapped = scene_captions.swap_one(rng, claims)
        yes += scene_verifier.compare(found, claims).is_shown
        no += not scene_verifier.compare(found, swapped).is_shown
    assert yes >= 0.995 * NUM
    assert no >= 0.995 * NUM


@pytest.mark.parametrize(("blur", "noise"), [(0.5, 0.03), (0.6, 0.05)])
def test_slight_blur_and_noise_do_not_matter(blur, noise):
    rng, claims, pixels = rendered(150, image_size=32, held_out=False)
    pixels = degraded(rng, pixels, blur=blur, noise=noise)
    verdicts = [
        scene_verifier.compare(scene_verifier.detect(image), claim).is_shown
        for image, claim in zip(pixels, claims)
    ]
    assert np.mean(verdicts) >= 0.98


def test_detection_finds_where_things_are():
    rng = np.random.default_rng(1)
    drawn = [scenes.sample(rng) for _ in range(50)]
    pixels = images.to_float(scenes.render(drawn, image_size=32))
    for scene, image in zip(drawn, pixels):
        found = scene_verifier.detect(image)
        assert len(found) == len(scene.objects)
        for thing in scene.objects:
            near = min(found, key=lambda f: np.hypot(f.x - thing.x, f.y - thing.y))
            assert np.hypot(near.x - thing.x, near.y - thing.y) < 0.3 / 32
            assert abs(near.radius / 32 - thing.radius) < 0.2 / 32
            assert near[:3] == thing[:3]


def painted(alpha, rgb):
    """Some shape on a grey of 0..1, as an image in [-1, 1]."""
    image = 0.5 + (np.asarray(rgb) - 0.5) * alpha[..., None]
    return (2 * ndimage.gaussian_filter(image, (0.4, 0.4, 0)) - 1).astype(np.float32)


def alpha_of(shape, radius=6.0, angle=0.0):
    placement = np.array([[0.5, 0.5, radius / 32, angle, 1 / 32]])
    return scenes.coverage(shape, placement, scenes.pixel_centres(32))[0]


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_half_a_shape_is_no_shape(shape):
    alpha = alpha_of(shape)
    assert (
        scene_verifier.detect(painted(alpha, scenes.PALETTE["red"]))[0].shape == shape
    )
    half = alpha * (np.arange(32) >= 16)
    found = scene_verifier.detect(painted(half, scenes.PALETTE["red"]))
    assert all(thing.shape != shape for thing in found)


def test_a_shape_turned_far_is_no_shape():
    for shape in ("triangle", "crescent"):
        image = painted(alpha_of(shape, angle=np.pi / 4), scenes.PALETTE["blue"])
        (found,) = scene_verifier.detect(image)
        assert found.shape == scene_verifier.UNKNOWN


def test_two_colours_in_one_object_are_no_object():
    alpha = alpha_of("circle")
    rgb = np.where((np.arange(32) < 16)[None, :, None], (1, 0.1, 0.1), (0.1, 0.2, 0.9))
    found = scene_verifier.detect(painted(alpha, rgb))
    assert all(scene_verifier.UNKNOWN in thing[:3] for thing in found)


def test_a_colour_off_the_palette_and_a_size_between_are_unknown():
    (found,) = scene_verifier.detect(painted(alpha_of("circle"), (1.0, 0.5, 0.55)))
    assert found.colour == scene_verifier.UNKNOWN
    huge = painted(alpha_of("circle", radius=9.0), scenes.PALETTE["green"])
    (found,) = scene_verifier.detect(huge)
    assert found.size == scene_verifier.UNKNOWN


def test_a_third_object_falsifies_the_caption():
    one = alpha_of("circle", radius=4.0)
    extra = np.maximum(np.roll(one, 10, 1), np.roll(one, -10, 1))
    caption = "a small red circle"
    assert scene_verifier.shows(painted(one, scenes.PALETTE["red"]), caption)
    verdict = scene_verifier.judge(painted(extra, scenes.PALETTE["red"]), caption)
    assert not verdict.is_shown
    assert verdict.reason == "shows a small red circle, a small red circle"


def test_emptiness_noise_and_nan_show_nothing():
    rng = np.random.default_rng(0)
    for image in (
        np.zeros((32, 32, 3)),
        rng.uniform(-1, 1, (32, 32, 3)),
        0.2 * rng.normal(size=(32, 32, 3)),
        np.full((32, 32, 3), np.nan),
        np.pad(np.full((28, 28, 3), -0.2), ((2, 2), (2, 2), (0, 0)), constant_values=1),
    ):
        assert not scene_verifier.shows(image.astype(np.float32), "a small red circle")


def test_images_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="48 x 48"):
        scene_verifier.detect(np.zeros((48, 48, 3), np.float32))
