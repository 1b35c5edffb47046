"""Every published tensor is used exactly once, every parameter filled, bit for bit."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.clip import CLIP, CLIPText, CLIPVision
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights.convert import load_torch, save_torch, torch_key

RNG = np.random.default_rng(0)
PARAMS = {
    "conv_in": {"kernel": RNG.standard_normal((3, 2, 4, 5), "float32")},
    "to_out.0": {"kernel": RNG.standard_normal((4, 6), "float32"), "bias": np.ones(6)},
    "norm": {"scale": RNG.standard_normal(4, "float32"), "bias": np.zeros(4)},
    "token": {"embedding": RNG.standard_normal((7, 4), "float32")},
    "proj_in": {"kernel": RNG.standard_normal((1, 1, 4, 5), "float32")},
    "logit_scale": np.float32(4.6),
}
LIKE = jax.tree.map(lambda p: jax.ShapeDtypeStruct(np.shape(p), np.float32), PARAMS)
KEYS = {
    "conv_in.weight": (5, 4, 3, 2),
    "to_out.0.weight": (6, 4),
    "to_out.0.bias": (6,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "token.weight": (7, 4),
    "proj_in.weight": (5, 4, 1, 1),
    "logit_scale": (),
}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_keys_and_layouts_are_those_of_torch():
    saved = save_torch(PARAMS)
    assert {key: tensor.shape for key, tensor in saved.items()} == KEYS
    np.testing.assert_array_equal(
        saved["conv_in.weight"][4, 3, 2, 1], PARAMS["conv_in"]["kernel"][2, 1, 3, 4]
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_saving_and_loading_give_the_same_bits(prefix):
    tensors = save_torch(PARAMS, prefix=prefix)
    loaded = load_torch(tensors, LIKE, prefix=prefix)
    assert_same(loaded, PARAMS)
    for value in jax.tree.leaves(loaded):
        assert value.dtype == np.float32 and value.flags.c_contiguous
    assert_same(save_torch(loaded, prefix=prefix), tensors)


def test_half_precision_weights_fill_float32_parameters():
    half = {k: v.astype(jnp.bfloat16) for k, v in save_torch(PARAMS).items()}
    loaded = load_torch(half, LIKE)
    rounded = jax.tree.map(lambda p: np.float32(np.asarray(p, jnp.bfloat16)), PARAMS)
    assert_same(loaded, rounded)


def test_a_linear_layer_may_be_stored_as_a_convolution_and_the_reverse():
    tensors = save_torch(PARAMS)
    linear, conv = tensors["to_out.0.weight"], tensors["proj_in.weight"]
    for swapped in (linear[:, :, None], linear[:, :, None, None]):
        assert_same(load_torch(tensors | {"to_out.0.weight": swapped}, LIKE), PARAMS)
    flat = {"proj_in.weight": conv[:, :, 0, 0]}
    assert_same(load_torch(tensors | flat, LIKE), PARAMS)


def test_everything_that_does_not_fit_is_listed_at_once():
    tensors = save_torch(PARAMS)
    del tensors["norm.bias"], tensors["token.weight"]
    tensors["extra.weight"] = np.zeros(2)
    tensors["norm.weight"] = np.zeros(5)
    tensors["to_out.0.weight"] = tensors["to_out.0.weight"].T
    tensors["proj_in.weight"] = np.zeros((5, 4, 3, 3))
    with pytest.raises(ValueError) as error:
        load_torch(tensors, LIKE)
    for part in (
        "missing: norm.bias, token.weight",
        "unused: extra.weight",
        "norm.weight (5,) for (4,)",
        "to_out.0.weight (4, 6) for (4, 6)",
        "proj_in.weight (5, 4, 3, 3) for (1, 1, 4, 5)",
    ):
        assert part in str(error.value)


def test_keys_behind_another_prefix_are_left_alone():
    tensors = save_torch(PARAMS, prefix="unet.") | {"vae.weight": np.zeros(3)}
    assert_same(load_torch(tensors, LIKE, prefix="unet."), PARAMS)
    with pytest.raises(ValueError, match="missing: conv_in.weight"):
        load_torch(tensors, LIKE, prefix="other.")


def test_keys_are_renamed_in_turn_and_dropped_when_empty():
    tensors = save_torch(PARAMS)
    tensors["proj_attn.0.weight"] = tensors.pop("to_out.0.weight")
    tensors["embeddings.position_ids"] = np.arange(7)
    rename = ((r"^proj_attn\b", "to_out"), (r"^.*\.position_ids$", ""))
    assert_same(load_torch(tensors, LIKE, rename=rename), PARAMS)
    with pytest.raises(ValueError, match="both renamed to norm.weight"):
        load_torch(tensors, LIKE, rename=((r"^token\.", "norm."),))


def test_no_two_parameters_share_a_key():
    unet = UNet(channels=(32, 32), attention=("transformer", "none"), num_heads=4)
    clip = CLIP(CLIPText(), CLIPVision())
    key, image = jax.random.key(0), jnp.zeros((1, 224, 224, 3))
    cond = Conditioning(tokens=jnp.zeros((1, 77, 8)))
    inputs = {
        unet: (jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), cond),
        clip: (image, jnp.zeros((1, 77), jnp.int32)),
    }
    for module, args in inputs.items():
        params = jax.eval_shape(module.init, key, *args)["params"]
        paths = jax.tree_util.tree_leaves_with_path(params)
        keys = [torch_key(tuple(part.key for part in path)) for path, _ in paths]
        assert len(set(keys)) == len(keys)


def test_keys_end_in_torch_names():
    assert torch_key(("to_out.0", "kernel")) == "to_out.0.weight"
    assert torch_key(("norm", "scale")) == "norm.weight"
    assert torch_key(("embeddings", "class_embedding")) == "embeddings.class_embedding"


class Lazy:
    """A tensor that counts how often it is read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.num_reads = 0

    def __array__(self, dtype=None, copy=None):
        self.num_reads += 1
        return np.array(self.array, dtype)


def test_nothing_is_read_unless_all_fits_and_then_everything_once():
    tensors = {key: Lazy(value) for key, value in save_torch(PARAMS).items()}
    assert_same(load_torch(tensors, LIKE), PARAMS)
    assert {tensor.num_reads for tensor in tensors.values()} == {1}
    tensors["extra"] = Lazy(np.zeros(2))
    with pytest.raises(ValueError, match="unused: extra"):
        load_torch(tensors, LIKE)
    assert sum(tensor.num_reads for tensor in tensors.values()) == len(KEYS)


def test_numbers_that_are_no_floats_do_not_fit():
    tensors = save_torch(PARAMS)
    tensors["norm.weight"] = np.zeros(4, np.int8)
    with pytest.raises(ValueError, match=r"misshapen: norm.weight int8 for float32"):
        load_torch(tensors, LIKE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parameters_have_the_wanted_type_and_the_nearest_values(dtype):
    like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), LIKE)
    loaded = load_torch(save_torch(PARAMS), like)
    assert_same(loaded, jax.tree.map(lambda p: np.asarray(p, dtype), PARAMS))
    assert {str(p.dtype) for p in jax.tree.leaves(loaded)} == {dtype}


def test_parameters_are_placed_one_after_another_in_order_of_the_model():
    placed = []

    def place(path, array):
        placed.append(path)
        return array + 1

    loaded = load_torch(save_torch(PARAMS), LIKE, place=place)
    assert_same(loaded, jax.tree.map(lambda p: p + 1, PARAMS))
    flat = jax.tree_util.tree_leaves_with_path(LIKE)
    assert sorted(placed) == sorted(tuple(p.key for p in path) for path, _ in flat)


def test_a_tensor_is_let_go_when_it_is_placed():
    """So that there are never two copies of a model: a few tensors are in flight."""
    names = [f"layer.{i}" for i in range(64)]
    shape = (256, 1024)  # 1 MiB each
    like = {n: {"kernel": jax.ShapeDtypeStruct(shape[::-1], np.float32)} for n in names}

    class Made:
        shape, dtype = (256, 1024), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            return np.ones(self.shape, np.float32)

    tensors = {f"{name}.weight": Made() for name in names}
    tracemalloc.start()
    loaded = load_torch(tensors, like, place=lambda path, array: float(array.sum()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {value for layer in loaded.values() for value in layer.values()} == {2.0**18}
    assert peak < 16 * 2**20
