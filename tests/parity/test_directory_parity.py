"""Directories that diffusers and transformers write compute what their modules compute."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file

from diffusion_jax.weights import directory, published
from tests.parity import published_dirs
from tests.parity.module_checks import check_text, check_unet, check_vae, normal

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
OLD_VAE = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
}


def check_model(path, pipeline, *, variant=None, only=None):
    """Every module of the directory computes what the pipeline's computes."""
    model = directory.read(path, variant=variant)
    modules, params = published.modules(model), published.load_params(model)
    for name, module in modules.items():
        if only is not None and name not in only:
            continue
        theirs = getattr(pipeline, name).float()
        if name == "unet":
            check_unet(model, module, params[name], theirs)
        elif name == "vae":
            check_vae(module, params[name], theirs)
        else:
            check_text(name, model.texts[name], module, params[name], theirs)
    return model


TEXTS = ("unet", "text_encoder", "text_encoder_2")  # autoencoders are all the same
FAMILIES = {
    **published_dirs.FAMILIES,
    "inpaint sd2": lambda path: published_dirs.write_inpaint(path, "sd2"),
    "inpaint sdxl": lambda path: published_dirs.write_inpaint(path, "sdxl"),
}


@pytest.mark.slow  # test_pipeline_parity.py compares whole images of them
@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_of_a_directory_agrees(tmp_path, family):
    pipeline = FAMILIES[family](tmp_path)
    only = {"sd1": None, "sd2": TEXTS, "sdxl": TEXTS, "refiner": TEXTS}
    only = only.get(family, ("unet",))
    model = check_model(tmp_path, pipeline, only=only)
    assert model.inpaints == ("inpaint" in family)
    sizes = {"sdxl": 6, "refiner": 5, "inpaint sdxl": 6}.get(family, 0)
    assert model.num_size_ids == sizes
    assert model.latent_scale == pipeline.vae.config.scaling_factor
    assert model.scheduler["_class_name"] == type(pipeline.scheduler).__name__


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    path = tmp_path_factory.mktemp("xl")
    return path, published_dirs.write_sdxl(path)


def test_both_text_towers_of_a_directory_agree(xl):
    check_model(*xl, only=("text_encoder", "text_encoder_2"))


# ---- ways of storing the same -------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    pipeline = published_dirs.write_sd1(path)
    return path, pipeline, published.load_params(directory.read(path))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def loaded(path, **options):
    return published.load_params(directory.read(path, **options))


def test_shards_hold_the_same(plain, tmp_path):
    _, pipeline, params = plain
    pipeline.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 2
    assert len(list((tmp_path / "text_encoder").glob("*-of-*.safetensors"))) > 1
    assert_same(loaded(tmp_path), params)


@pytest.mark.parametrize(
    "dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_a_half_precision_variant_holds_the_same_rounded(plain, tmp_path, dtype):
    path, _, params = plain
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    half = published_dirs.write_sd1(tmp_path / "other").to(getattr(torch, dtype))
    size = {"float16": "30KB", "bfloat16": "10GB"}[dtype]
    half.save_pretrained(tmp_path, variant="half", max_shard_size=size)
    rounded = jax.tree.map(lambda p: jnp.float32(p.astype(dtype)), params)
    rounded["latent_scale"] = params["latent_scale"]
    assert_same(loaded(tmp_path, variant="half"), rounded)
    assert_same(loaded(tmp_path), params)


def rewrite(file, rename):
    tensors = load_file(file)
    renamed = {rename(key): value for key, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file, metadata={"format": "pt"})


def old_vae(key):
    for new, old in OLD_VAE.items():
        key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return key


def test_old_names_of_the_autoencoder_are_known(plain, tmp_path):
    path, _, params = plain
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path / VAE_FILE, old_vae)
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in load_file(
        tmp_path / VAE_FILE
    )
    assert_same(loaded(tmp_path), params)


def test_text_towers_may_have_their_prefix_or_not(xl, tmp_path):
    shutil.copytree(xl[0], tmp_path, dirs_exist_ok=True)
    params = loaded(tmp_path)
    for file in tmp_path.glob("text_encoder*/model.safetensors"):
        tensors = load_file(file)
        has_prefix = any(key.startswith("text_model.") for key in tensors)
        ids = np.arange(77, dtype=np.int64)[None]
        changed = {}
        for key, value in tensors.items():
            if not key.startswith("text_projection"):
                bare = key.removeprefix("text_model.")
                key = bare if has_prefix else f"text_model.{bare}"
            changed[key] = value
        prefix = "" if has_prefix else "text_model."
        changed[f"{prefix}embeddings.position_ids"] = ids
        save_file(changed, file, metadata={"format": "pt"})
    assert_same(loaded(tmp_path), params)


def test_a_config_of_text_and_images_is_read_as_transformers_reads_it(plain, tmp_path):
    source, pipeline, _ = plain
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "text_encoder/config.json"
    text = json.loads(path.read_text())
    nested = dict(model_type="clip", architectures=["CLIPModel"], text_config=text)
    path.write_text(json.dumps(nested))
    theirs = transformers.CLIPTextConfig.from_pretrained(path.parent)
    assert theirs.hidden_size == pipeline.text_encoder.config.hidden_size
    check_model(tmp_path, pipeline, only=("text_encoder",))


def test_every_tensor_is_used_once_or_one_error_lists_them(plain, tmp_path):
    path, *_ = plain
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    unet, vae = load_file(tmp_path / UNET_FILE), load_file(tmp_path / VAE_FILE)
    del unet["mid_block.resnets.0.conv1.bias"]
    unet["mid_block.resnets.7.conv1.bias"] = normal(3)
    vae["encoder.conv_in.weight"] = vae["encoder.conv_in.weight"][:, :2].copy()
    save_file(unet, tmp_path / UNET_FILE)
    save_file(vae, tmp_path / VAE_FILE)
    with pytest.raises(ValueError) as error:
        loaded(tmp_path)
    for part in (
        "missing: unet/mid_block.resnets.0.conv1.bias;",
        "unused: unet/mid_block.resnets.7.conv1.bias;",
        "misshapen: vae/encoder.conv_in.weight (8, 2, 3, 3) for (3, 3, 3, 8)",
    ):
        assert part in str(error.value)
