"""The U-Net treats every sample alone, starts at zero, and uses all it is given."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw, draw_params

from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning

STABLE_DIFFUSION = UNet(
    channels=(8, 16),
    blocks_per_level=1,
    attention=("transformer", "none"),
    num_heads=2,
    norm_groups=4,
)
UNCLIP = UNet(
    channels=(8, 16),
    blocks_per_level=1,
    attention=("none", "added_kv"),
    mid_attention="added_kv",
    resample="resnet",
    time_modulation="scale_shift",
    vector="identity",
    num_heads=2,
    norm_groups=4,
)
UNCONDITIONAL = UNet(
    channels=(8,),
    blocks_per_level=1,
    attention=("none",),
    mid_attention="none",
    norm_groups=4,
)


def inputs(unet, batch=3):
    vector = draw(batch, 32, seed=2) if unet.vector == "identity" else None
    mask = jnp.arange(5) < jnp.array([[5], [3], [1]])[:batch]
    cond = Conditioning(draw(batch, 5, 6, seed=1), mask, vector)
    return draw(batch, 4, 6, 4), jnp.linspace(1.0, 999.0, batch), cond


@functools.cache
def parameters(unet):
    return draw_params(unet, *inputs(unet))


@functools.cache
def jitted(unet):
    return jax.jit(unet.apply)


def run(unet, *args):
    return jitted(unet)({"params": parameters(unet)}, *args)


@pytest.mark.parametrize("unet", [STABLE_DIFFUSION, UNCLIP], ids=["sd", "unclip"])
def test_a_sample_does_not_depend_on_its_batch(unet):
    args = inputs(unet)
    shuffled = jax.tree.map(lambda a: a[jnp.array([2, 1, 1])], args)
    y, z = run(unet, *args), run(unet, *shuffled)
    np.testing.assert_allclose(y[jnp.array([2, 1, 1])], z, atol=1e-5)
    assert jnp.abs(y[0] - y[1]).max() > 0.01


def test_jit_changes_nothing():
    args = inputs(UNCONDITIONAL, batch=1)
    eager = UNCONDITIONAL.apply({"params": parameters(UNCONDITIONAL)}, *args)
    np.testing.assert_allclose(run(UNCONDITIONAL, *args), eager, atol=1e-5)


def test_bfloat16_is_close_to_float32():
    args = inputs(STABLE_DIFFUSION)
    exact = run(STABLE_DIFFUSION, *args)
    half = STABLE_DIFFUSION.clone(dtype="bfloat16")
    rounded = jax.jit(half.apply)({"params": parameters(STABLE_DIFFUSION)}, *args)
    assert rounded.dtype == jnp.float32
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < error < 0.05


def test_the_output_starts_at_zero():
    args = inputs(UNCONDITIONAL, batch=1)
    y, _ = jax.jit(UNCONDITIONAL.init_with_output)(jax.random.key(0), *args)
    np.testing.assert_array_equal(y, jnp.zeros_like(y))


@pytest.mark.parametrize("unet", [STABLE_DIFFUSION, UNCLIP], ids=["sd", "unclip"])
def test_every_parameter_and_input_matters(unet):
    x, time, cond = inputs(unet)
    args = x, time, cond._replace(mask=None)  # whose bits have no gradient

    def loss(params, args):
        x, time, told = args
        told = told._replace(mask=cond.mask)
        return jnp.square(unet.apply({"params": params}, x, time, told) - 1).mean()

    grads = jax.jit(jax.grad(loss, (0, 1)))(parameters(unet), args)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.abs(grad).max() > 1e-7, jax.tree_util.keystr(path)


def test_tokens_are_a_set_and_hidden_ones_do_not_matter():
    x, time, cond = inputs(STABLE_DIFFUSION)
    y = run(STABLE_DIFFUSION, x, time, cond)
    order = jnp.array([3, 0, 4, 1, 2])
    other = jnp.where(cond.mask[..., None], cond.tokens, 100.0)[:, order]
    moved = cond._replace(tokens=other, mask=cond.mask[:, order])
    np.testing.assert_allclose(y, run(STABLE_DIFFUSION, x, time, moved), atol=1e-5)


def shape_of(unet, x, cond=Conditioning(), time=None):  # noqa: B008
    time = jnp.zeros(len(x)) if time is None else time
    return jax.eval_shape(unet.init_with_output, jax.random.key(0), x, time, cond)


def test_the_image_joins_the_input_channels():
    cond = Conditioning(tokens=draw(1, 5, 6), image=draw(1, 4, 4, 5))
    y, params = shape_of(STABLE_DIFFUSION, draw(1, 4, 4, 4), cond)
    assert y.shape == (1, 4, 4, 4)
    assert params["params"]["conv_in"]["kernel"].shape == (3, 3, 9, 8)


def test_without_tokens_both_attentions_are_to_the_pixels():
    _, params = shape_of(STABLE_DIFFUSION, draw(1, 4, 4, 4))
    block = params["params"]["mid_block"]["attentions.0"]["transformer_blocks.0"]
    assert block["attn2"]["to_k"]["kernel"].shape == (16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(channels=(8, 16, 16), attention=("none",) * 3, resample="resnet"),
            "not multiples of 4",
        ),
        (dict(attention=("none", "linear")), "unknown attention 'linear'; one of"),
        (dict(num_heads=(2, 2, 2)), "num_heads=.* for 2 levels"),
        (dict(attention=("none",)), "attention=.* for 2 levels"),
        (dict(num_heads=3), "width 8 does not split in 3 heads"),
        (dict(norm_groups=3), "8 channels do not split in 3 groups"),
        (dict(vector="identity"), "cond.vector is absent"),
        (dict(vector="sum"), "unknown vector 'sum'; one of"),
        (dict(resample="pool"), "unknown resample 'pool'; one of"),
        (dict(time_modulation="film"), "unknown time_modulation 'film'; one of"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        shape_of(STABLE_DIFFUSION.clone(**change), draw(1, 6, 6, 4))


def test_a_vector_without_a_route_is_an_error():
    with pytest.raises(ValueError, match="vector='none', but cond.vector is given"):
        shape_of(STABLE_DIFFUSION, draw(1, 4, 4, 4), Conditioning(vector=draw(1, 32)))


def dtypes_of_products(jaxpr):
    """The dtypes of what convolutions and matrix products multiply."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from (operand.aval.dtype for operand in eqn.invars)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from dtypes_of_products(inner)


@pytest.mark.parametrize("unet", [STABLE_DIFFUSION, UNCLIP], ids=["sd", "unclip"])
def test_in_bfloat16_nothing_is_multiplied_in_float32(unet):
    half = unet.clone(dtype="bfloat16")
    params = jax.tree.map(lambda p: p.astype("bfloat16"), parameters(unet))
    program = jax.make_jaxpr(half.apply)({"params": params}, *inputs(unet))
    assert set(dtypes_of_products(program.jaxpr)) == {jnp.dtype("bfloat16")}
