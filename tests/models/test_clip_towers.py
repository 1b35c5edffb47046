"""CLIP's towers alone say what the whole says; images of any size and scale are read."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import clip_towers
from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision, ProjectedVision
from diffusion_jax.models.clip_towers import ClipTowers
from diffusion_jax.models.text import ProjectedText
from tests.models.drawn import draw, draw_params

EOS = 19
TEXT = CLIPText(
    vocab_size=20,
    context_length=6,
    width=16,
    num_layers=1,
    num_heads=2,
    mlp_width=32,
    eos_id=EOS,
)
VISION = CLIPVision(
    image_size=8, patch_size=4, width=24, num_layers=1, num_heads=3, mlp_width=48
)
CLIP_MODEL = CLIP(TEXT, VISION, projection_dim=12)
TOWERS = ClipTowers(ProjectedText(TEXT, 12), ProjectedVision(VISION, 12))
TOKENS = jnp.array([[18, 3, 4, EOS, 0, 0], [18, EOS, EOS, EOS, EOS, EOS]])
IMAGES = jnp.tanh(draw(2, 8, 8, 3))


@functools.cache
def parameters():
    return draw_params(CLIP_MODEL, IMAGES, TOKENS)


def tower_params():
    whole = parameters()
    return {
        "text_encoder": {k: whole[k] for k in ("text_model", "text_projection")},
        "image_encoder": {k: whole[k] for k in ("vision_model", "visual_projection")},
    }


@pytest.mark.parametrize("unit_norm", [True, False])
def test_the_towers_embed_as_the_whole_model(unit_norm):
    towers = ClipTowers(TOWERS.text, TOWERS.image, unit_norm)
    variables = {"params": parameters()}
    text = towers.encode_text(tower_params(), TOKENS)
    expected = CLIP_MODEL.apply(
        variables, TOKENS, unit_norm=unit_norm, method="encode_text"
    )
    np.testing.assert_allclose(text.embed, expected, atol=1e-5)
    image = towers.encode_image(tower_params(), IMAGES)
    expected = CLIP_MODEL.apply(
        variables, IMAGES, unit_norm=unit_norm, method="encode_image"
    )
    np.testing.assert_allclose(image, expected, atol=1e-5)
    is_unit = bool(jnp.allclose(jnp.linalg.norm(image, axis=1), 1.0, atol=1e-5))
    assert is_unit == unit_norm


@pytest.mark.parametrize("eos_id", [EOS, 2])
def test_the_mask_ends_with_the_first_end_of_text(eos_id):
    text = ProjectedText(TEXT.clone(eos_id=eos_id), 12)
    mask = ClipTowers(text).encode_text(tower_params(), TOKENS).mask
    assert mask.sum(axis=1).tolist() == [4, 2]
    assert (mask == (jnp.arange(6) < mask.sum(axis=1, keepdims=True))).all()


def test_images_are_normalised_by_mean_and_std_of_values_in_0_1():
    mean, std = (0.1, 0.4, 0.6), (0.2, 0.3, 0.5)
    plain = IMAGES * jnp.array(std) / 0.5 + 2 * jnp.array(mean) - 1
    other = ClipTowers(TOWERS.text, TOWERS.image, True, mean, std)
    np.testing.assert_allclose(
        other.encode_image(tower_params(), plain),
        TOWERS.encode_image(tower_params(), IMAGES),
        atol=1e-5,
    )


def test_larger_images_are_seen_at_the_size_of_the_tower():
    colour = jnp.broadcast_to(jnp.array([0.5, -1.0, 1.0]), (1, 8, 8, 3))
    large = jnp.broadcast_to(colour[:, :1, :1], (1, 20, 20, 3))
    np.testing.assert_allclose(
        TOWERS.encode_image(tower_params(), large),
        TOWERS.encode_image(tower_params(), colour),
        atol=1e-5,
    )


def test_resizing_averages_what_is_too_fine_and_stays_within_range():
    checks = jnp.indices((32, 32)).sum(axis=0) % 2 * 2.0 - 1
    checks = jnp.broadcast_to(checks[None, :, :, None], (1, 32, 32, 3))
    fine = clip_towers.resized(checks, 8)
    assert jnp.abs(fine[:, 2:-2, 2:-2]).max() < 0.05
    step = jnp.where(jnp.arange(8) < 4, -1.0, 1.0)
    step = jnp.broadcast_to(step[None, :, None, None], (1, 8, 8, 3))
    assert jnp.abs(clip_towers.resized(step, 16)).max() == 1


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="8x9, not square"):
        TOWERS.encode_image(tower_params(), jnp.zeros((1, 8, 9, 3)))
    with pytest.raises(ValueError, match="none for images"):
        ClipTowers(TOWERS.text).encode_image(tower_params(), IMAGES)
