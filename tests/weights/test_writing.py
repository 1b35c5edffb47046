"""What is written is read back bit for bit, whole or not at all."""

import json
import os

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from diffusion_jax.diffusion import schedules
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.unet import UNet
from diffusion_jax.weights import (
    autoencoder_config,
    convert,
    scheduler_config,
    text_config,
    unet_config,
    writing,
    writing_configs,
)
from diffusion_jax.weights.writing_scheduler import scheduler_config as written

DTYPES = [
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool"),
]


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def random_tensors():
    rng = np.random.default_rng(0)
    values = 100 * rng.standard_normal((3, 5))
    tensors = {name: values.astype(name) for name in DTYPES}
    tensors["bfloat16"] = values.astype(ml_dtypes.bfloat16)
    tensors |= {"scalar": np.float16(2.5), "empty": values[:0]}
    tensors |= {"transposed": values.T, "spaced": values[::2, 1::2]}
    return tensors


def test_a_file_is_read_back_bit_for_bit(tmp_path):
    tensors = random_tensors()
    path = tmp_path / "x.safetensors"
    writing.write_file(path, tensors)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].shape == tensor.shape and read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(bits(read[name]), bits(tensor), name)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_numbers_of_a_size_lie_on_multiples_of_it(tmp_path):
    path = tmp_path / "x.safetensors"
    writing.write_file(path, random_tensors())
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    sizes = {dtype: np.dtype(item).itemsize for item, dtype in writing.NAMES.items()}
    del header["__metadata__"]
    for entry in header.values():
        assert (8 + length + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0
    with pytest.raises(ValueError, match="w is complex64, which is not written"):
        writing.write_file(path, {"w": np.ones(2, np.complex64)})
    assert path.read_bytes() == content


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_hold_every_tensor_once_and_are_not_too_large(tmp_path, variant):
    tensors = {f"w{i}": np.full(10 * (i + 1), i, np.float32) for i in range(9)}
    options = dict(variant=variant, max_shard_size=800)
    writing.write_tensors(tmp_path, "model", tensors, **options)
    middle = f".{variant}" if variant else ""
    index = json.loads((tmp_path / f"model.safetensors.index{middle}.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = set(index["weight_map"].values())
    last = f"model{middle}-{len(files):05d}-of-{len(files):05d}.safetensors"
    assert len(files) > 1 and last in files
    read = {file: load_file(tmp_path / file) for file in files}
    assert {key: file for file, part in read.items() for key in part} == index[
        "weight_map"
    ]
    for part in read.values():
        assert sum(t.nbytes for t in part.values()) <= 800
        for key, tensor in part.items():
            np.testing.assert_array_equal(tensor, tensors[key])
    writing.write_tensors(tmp_path / "..", "whole", tensors, variant=variant)
    assert (tmp_path / ".." / f"whole{middle}.safetensors").exists()


def test_a_failure_leaves_what_was_there(tmp_path):
    class Broken:
        shape, dtype = (2,), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            raise OSError("the disk is gone")

    path = tmp_path / "x.safetensors"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"):
        writing.write_file(path, {"a": np.ones(2), "z": Broken()})
    assert path.read_text() == "old"
    with (
        pytest.raises(OSError, match="disk"),
        writing.appearing_directory(tmp_path / "new") as root,
    ):
        assert not (tmp_path / "new").exists()
        writing.write_file(root / "y.safetensors", {"a": Broken()})
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_directory_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("full", "full/file"):
        with (
            pytest.raises(ValueError, match="nothing is overwritten"),
            writing.appearing_directory(tmp_path / name),
        ):
            raise AssertionError("unreachable")
    with writing.appearing_directory(tmp_path / "empty") as root:
        (root / "file").write_text("new")
    assert (tmp_path / "empty" / "file").read_text() == "new"
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["empty", "full"]


def test_the_lazy_state_dict_is_the_eager_one():
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": rng.random((3, 3, 2, 5)), "bias": rng.random(5)},
        "dense": {"kernel": jnp.asarray(rng.random((4, 6)))},
        "norm": {"scale": rng.random(7)},
        "embed": {"embedding": rng.random((8, 9))},
        "logit": rng.random(()),
    }
    eager = convert.save_torch(params, prefix="x.")
    lazy = writing.state_dict(params, prefix="x.")
    assert lazy.keys() == eager.keys()
    for key, tensor in lazy.items():
        assert tensor.shape == eager[key].shape and tensor.dtype == eager[key].dtype
        np.testing.assert_array_equal(np.asarray(tensor), eager[key])
    half = writing.state_dict(params, dtype="float16")
    assert {np.asarray(t).dtype for t in half.values()} == {np.dtype(np.float16)}
    assert {t.dtype for t in half.values()} == {np.dtype(np.float16)}


WRITTEN = {
    "published": schedules.Discrete(),
    "linear": schedules.Discrete("linear", 1e-4, 0.02),
    "zero snr": schedules.ZeroTerminalSNR(schedules.Discrete()),
    "shifted": schedules.ShiftedSNR(schedules.Discrete(), shift=-1.0),
    "trained": schedules.Discrete(
        trained_betas=tuple(np.linspace(0.01, 0.2, 40)), num_steps=40
    ),
    "cosine": schedules.Cosine(time_scale=1000.0),
    "sigmoid": schedules.Sigmoid(time_scale=1000.0),
    "variance preserving": schedules.VariancePreserving(),
    "flow": schedules.RectifiedFlow(time_scale=1000.0),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_schedule_is_heard_at_the_same_noise(name):
    """At every number that the network may hear, alpha and sigma are as trained."""
    schedule = WRITTEN[name]
    kind = "flow" if name == "flow" else "v"
    config = json.loads(json.dumps(written(schedule, kind)))
    recipe = scheduler_config.read(config)
    assert recipe.unused == ()
    if name == "flow":
        t = jnp.arange(10.0, 1000.0, 10.0) / 1000  # diffusers rounds the others
        found, expected = recipe.schedule(t), schedule(t)
    else:
        heard = jnp.arange(1.0, config["num_train_timesteps"])
        found = recipe.schedule(heard + 1)
        t = heard + 1 if schedule.num_steps else heard / schedule.time_scale
        expected = schedule(t)
    for ours, theirs in zip(expected, found):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "schedule, kind",
    [
        (schedules.Cosine(), "v"),  # heard in [0, 1]
        (schedules.VarianceExploding(), "eps"),
        (schedules.SubVariancePreserving(), "v"),
        (schedules.Discrete(), "flow"),
        (schedules.Discrete(), "edm"),
        (schedules.RectifiedFlow(time_scale=1000.0), "v"),
        (schedules.RectifiedFlow(), "flow"),
    ],
)
def test_what_diffusers_cannot_say_is_an_error(schedule, kind):
    with pytest.raises(ValueError, match="diffusers") as raised:
        written(schedule, kind)
    assert "\n" not in str(raised.value)


XL = dict(
    channels=(16, 32, 32),
    attention=("none", "transformer", "transformer"),
    transformer_depth=(1, 2, 10),
    num_heads=(1, 2, 4),
    linear_projection=True,
)
UNETS = {
    "sd 1": {},
    "sd 2": dict(
        num_heads=(5, 10, 20, 20), linear_projection=True, upcast_attention=True
    ),
    "others": dict(
        channels=(8, 16),
        attention=("transformer", "none"),
        blocks_per_level=(1, 3),
        norm_groups=4,
        norm_eps=1e-4,
        dropout=0.1,
        out_channels=8,
        time_modulation="scale_shift",
    ),
    "xl": XL | dict(vector="add_embedding"),
}


def per_level(module):
    """The fields, with one value for every level where there may be one for all."""
    fields = {name: getattr(module, name) for name in module.__dataclass_fields__}
    for name in ("num_heads", "transformer_depth", "blocks_per_level"):
        if isinstance(fields[name], int):
            fields[name] = (fields[name],) * len(module.channels)
    return fields


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_s_written_config_is_read_as_its_fields(name):
    module = UNet(**UNETS[name])
    outside = writing_configs.Outside(9, 20, 32)
    if "vector" in UNETS[name]:
        outside = outside._replace(vector_width=70, size_id_width=8)
    config = json.loads(json.dumps(writing_configs.unet(module, outside)))
    read = unet_config.read(config)
    assert per_level(UNet(**read.fields)) == per_level(module)
    assert (read.in_channels, read.context_width, read.sample_size) == (9, 20, 32)
    assert (read.vector_width, read.size_id_width) == outside[3:]


@pytest.mark.parametrize(
    "field, value",
    [
        ("mid_attention", "none"),
        ("attention", ("added_kv",) * 4),
        ("resample", "resnet"),
        ("vector", "table"),
        ("vector", "add_embedding"),  # without sizes
        ("num_heads", (1, 2)),
    ],
)
def test_fields_that_are_not_written_are_named(field, value):
    outside = writing_configs.Outside(4, 20, 32, vector_width=70)
    with pytest.raises(ValueError, match=field):
        writing_configs.unet(UNet(**{field: value}), outside)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(
            channels=(8, 16),
            blocks_per_level=1,
            latent_channels=16,
            image_channels=1,
            norm_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
    ],
)
def test_an_autoencoder_s_written_config_is_read_as_its_fields(fields):
    module = AutoencoderKL(**fields)
    options = dict(latent_scale=0.3, latent_shift=0.1, force_upcast=bool(fields))
    config = writing_configs.autoencoder(module, **options)
    read = autoencoder_config.read(json.loads(json.dumps(config)))
    assert AutoencoderKL(**read.fields) == module
    assert read[1:] == (0.3, 0.1, bool(fields))


@pytest.mark.parametrize("projection_dim", [None, 20])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(
            vocab_size=50,
            context_length=9,
            width=12,
            num_layers=2,
            num_heads=3,
            mlp_width=20,
            activation="gelu",
            eos_id=2,
            norm_eps=1e-6,
        ),
    ],
)
def test_a_text_encoder_s_written_config_is_read_as_its_fields(fields, projection_dim):
    config = writing_configs.text(CLIPText(**fields), projection_dim=projection_dim)
    read = text_config.read(
        json.loads(json.dumps(config)), projected=projection_dim is not None
    )
    assert read.pop("projection_dim", None) == projection_dim
    assert CLIPText(**read) == CLIPText(**fields)
