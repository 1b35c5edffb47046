"""Upsampled against bicubic: what is nearer to the originals scores better."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data import images, scene_captions, scene_verifier, scenes
from diffusion_jax.evaluation import reconstruction, upsampling
from diffusion_jax.models import layers

NUM, SIZE, LOW = 12, 32, 8
RNG = np.random.default_rng(0)
SCENES = [scenes.sample(RNG) for _ in range(NUM)]
ORIGINALS = images.to_float(scenes.render(SCENES, image_size=SIZE))
CAPTIONS = [scene_captions.write(RNG, scene_captions.claims_of(s)) for s in SCENES]
LOW_RES = np.asarray(upsampling.bicubic(ORIGINALS, LOW))


def test_originals_beat_bicubic_and_bicubic_ties_with_itself():
    noise = 0.01 * RNG.normal(size=ORIGINALS.shape).astype(np.float32)
    best = upsampling.compare(
        ORIGINALS,
        LOW_RES,
        ORIGINALS + noise,
        verify=scene_verifier.shows,
        captions=CAPTIONS,
    )
    assert best.upsampled.psnr > best.bicubic.psnr + 10
    assert best.upsampled.accuracy.fraction > best.bicubic.accuracy.fraction
    tied = upsampling.compare(
        ORIGINALS, LOW_RES, np.asarray(upsampling.bicubic(LOW_RES, SIZE))
    )
    assert tied.upsampled == tied.bicubic
    assert tied.bicubic.accuracy is None
    assert tied.bicubic.psnr == pytest.approx(best.bicubic.psnr)


def test_the_baseline_is_what_the_pipeline_shows_the_network():
    seen = layers.bicubic(jnp.asarray(LOW_RES), SIZE)
    expected = reconstruction.psnr(ORIGINALS, np.clip(seen, -1, 1))
    found = upsampling.compare(ORIGINALS, LOW_RES, ORIGINALS[::-1])
    assert found.bicubic.psnr == pytest.approx(float(expected))


def test_values_that_leave_the_range_are_clipped_as_they_are_shown():
    beyond = np.where(ORIGINALS > 0, 1.0, -1.0).astype(np.float32)
    found = upsampling.compare(beyond, LOW_RES, 1.5 * beyond)
    assert np.isinf(found.upsampled.psnr)
