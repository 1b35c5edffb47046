"""Directories of published models: what is wrong with one is said before it is read."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_configs import TINY_TEXT, TINY_UNET, TINY_VAE, index_of, write
from safetensors.numpy import load_file, save_file

from diffusion_jax.weights import directory, published

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
PROJECTED = TINY_TEXT | dict(
    architectures=["CLIPTextModelWithProjection"], projection_dim=10
)
XL_TEXTS = {"text_encoder": TINY_TEXT, "text_encoder_2": PROJECTED}
XL_UNET = TINY_UNET | dict(
    cross_attention_dim=24,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=10 + 6 * 4,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    return write(path, TINY_UNET, TINY_VAE, {"text_encoder": TINY_TEXT})


@pytest.fixture
def tiny(written, tmp_path):
    return shutil.copytree(written, tmp_path / "tiny")


def change(path, **fields):
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "drop"}))


def message(path, kind=ValueError, **options):
    with pytest.raises(kind) as error:
        directory.read(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_directory_is_read(tiny):
    model = directory.read(tiny)
    assert model.unet["channels"] == (8, 16)
    assert model.texts["text_encoder"]["width"] == 12
    assert model.tokenizers == {"tokenizer": tiny / "tokenizer"}
    assert model.scheduler["_class_name"] == "DDIMScheduler"
    assert model.sample_size == 8
    assert not (model.num_size_ids or model.zero_empty or model.inpaints)


def test_every_tensor_is_used_and_has_its_bits(tiny):
    model = directory.read(tiny)
    params = published.load_params(model)
    assert params.keys() == {"unet", "vae", "text_encoder", "latent_scale"}
    kernel = params["unet"]["conv_in"]["kernel"]
    stored = load_file(tiny / UNET_FILE)["conv_in.weight"]
    np.testing.assert_array_equal(kernel, stored.transpose(2, 3, 1, 0))
    stored = load_file(tiny / "text_encoder/model.safetensors")
    tokens = params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    key = "embeddings.token_embedding.weight"
    np.testing.assert_array_equal(tokens, stored[key])
    assert params["latent_scale"] == jnp.float32(0.18215)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_parameters_are_of_the_wanted_type_and_placed_as_wanted(tiny):
    places = []

    def place(path, array):
        places.append(path)
        return jnp.asarray(array)

    params = published.load_params(directory.read(tiny), dtype="bfloat16", place=place)
    del params["latent_scale"]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    paths = [tuple(k.key for k in p) for p, _ in jax.tree.leaves_with_path(params)]
    assert sorted(places) == sorted(paths)
    assert {place[0] for place in places} == {"unet", "vae", "text_encoder"}


def test_one_error_lists_what_does_not_fit_in_all_modules(tiny):
    unet = load_file(tiny / UNET_FILE)
    del unet["conv_out.bias"]
    unet["extra"] = np.zeros(1, np.float32)
    save_file(unet, tiny / UNET_FILE)
    path = tiny / "vae/diffusion_pytorch_model.safetensors"
    vae = load_file(path)
    vae["quant_conv.weight"] = np.zeros((8, 8, 3, 3), np.float32)
    save_file(vae, path)
    with pytest.raises(ValueError) as error:
        published.load_params(directory.read(tiny))
    for part in (
        "missing: unet/conv_out.bias",
        "unused: unet/extra",
        "misshapen: vae/quant_conv.weight (8, 8, 3, 3) for (1, 1, 8, 8)",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dtype, fragile, expected",
    [
        ("float16", True, "float32"),
        ("float16", False, "float16"),
        ("bfloat16", True, "bfloat16"),
    ],
)
def test_the_autoencoder_is_spared_half_precision_unless_it_bears_it(
    tiny, dtype, fragile, expected
):
    change(tiny / "vae/config.json", force_upcast=fragile)
    made = published.modules(directory.read(tiny), dtype=dtype)
    assert made["vae"].dtype == expected
    assert made["unet"].dtype == made["text_encoder"].dtype == dtype


# ---- what is refused ----------------------------------------------------------------


def test_a_directory_of_something_else_is_named(tmp_path, tiny):
    assert "no directory" in message(tmp_path / "none", FileNotFoundError)
    (tmp_path / "model.safetensors").write_bytes(b"")
    text = message(tmp_path, FileNotFoundError)
    assert "no model_index.json" in text and "model.safetensors" in text
    (tiny / "model_index.json").write_text("<html>")
    assert "model_index.json is not JSON" in message(tiny)


@pytest.mark.parametrize(
    "kind", ["StableDiffusionControlNetPipeline", "FluxPipeline", ["mine", "Mine"]]
)
def test_other_pipelines_are_refused_by_name(tiny, kind):
    change(tiny / "model_index.json", _class_name=kind)
    text = message(tiny)
    assert str(kind) in text and "StableDiffusionXLPipeline" in text


@pytest.mark.parametrize(
    "name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"]
)
def test_a_missing_part_is_named(tiny, name):
    shutil.rmtree(tiny / name)
    assert f"lacks {name}/" in message(tiny, FileNotFoundError)
    change(tiny / "model_index.json", **{name: [None, None]})
    assert f"{name} is not given" in message(tiny)


def test_parts_that_images_do_not_need_are_ignored(tiny):
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    change(
        tiny / "model_index.json",
        safety_checker=checker,
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        requires_safety_checker=True,
    )
    assert directory.read(tiny)


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("controlnet", ["diffusers", "ControlNetModel"], "controlnet is not known"),
        ("unet", ["diffusers", "UNet3DConditionModel"], "unet is a UNet3D"),
        ("vae", ["diffusers", "AsymmetricAutoencoderKL"], "vae is a Asymmetric"),
        ("text_encoder", ["transformers", "T5EncoderModel"], "only CLIPTextModel or"),
        (
            "text_encoder_2",
            ["transformers", "CLIPTextModel"],
            "text_encoder_2 is of XL",
        ),
    ],
)
def test_parts_of_other_models_are_refused_by_name(tiny, name, value, reason):
    change(tiny / "model_index.json", **{name: value})
    (tiny / name).mkdir(exist_ok=True)
    assert reason in message(tiny)


@pytest.mark.parametrize(
    "here, there, reason",
    [
        ("vae", "unet", "unet/config.json is not of a UNet2D.*: AutoencoderKL"),
        ("unet", "vae", "vae/config.json is not of a AutoencoderKL: UNet2D"),
        ("text_encoder", "vae", "vae/config.json is not of a .*: clip_text_model"),
        ("unet", "text_encoder", "text_encoder/config.json: .* unknown field"),
    ],
)
def test_a_model_in_the_wrong_place_is_named(tiny, here, there, reason):
    shutil.rmtree(tiny / there)
    shutil.copytree(tiny / here, tiny / there)
    with pytest.raises(ValueError, match=reason):
        directory.read(tiny)


def test_weights_in_the_wrong_place_are_listed(tiny):
    shutil.copy(tiny / "vae/diffusion_pytorch_model.safetensors", tiny / "unet")
    with pytest.raises(ValueError, match="missing: unet/.*unused: unet/") as error:
        published.load_params(directory.read(tiny))
    assert len(str(error.value)) < 6000


def test_fields_of_all_configs_are_refused_at_once(tiny):
    change(tiny / "unet/config.json", time_cond_proj_dim=256, center_input_sample=True)
    change(tiny / "vae/config.json", latents_mean=[0, 0, 0, 0])
    change(tiny / "text_encoder/config.json", hidden_act="silu")
    text = message(tiny)
    for name in ("time_cond_proj_dim", "center_input", "latents_mean", "hidden_act"):
        assert name in text


def test_modules_that_do_not_fit_one_another_are_named(tiny):
    change(tiny / "unet/config.json", cross_attention_dim=16)
    assert "cross_attention_dim = 16, but the text encoders' width is 12" in message(
        tiny
    )
    change(tiny / "unet/config.json", cross_attention_dim=12, in_channels=9)
    assert "in_channels = 9, but conv_in.weight has 4" in message(tiny)


def test_a_tensor_file_that_is_none_is_named(tiny):
    (tiny / UNET_FILE).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert f"{tiny / UNET_FILE} is a git-lfs pointer" in message(tiny)
    (tiny / UNET_FILE).unlink()
    assert "unet has no diffusion_pytorch_model" in message(tiny, FileNotFoundError)


def test_a_variant_is_chosen_where_there_is_one(tiny):
    file = tiny / UNET_FILE
    half = file.with_name("diffusion_pytorch_model.fp16.safetensors")
    save_file({k: v.astype(np.float16) for k, v in load_file(file).items()}, half)
    types = {
        name: tensors[next(iter(tensors))].dtype
        for name, tensors in directory.read(tiny, variant="fp16").tensors.items()
    }
    assert types == dict(unet=np.float16, vae=np.float32, text_encoder=np.float32)
    assert directory.read(tiny).tensors["unet"]["conv_in.weight"].dtype == np.float32
    assert "no variant 'bf16'; one of ['fp16']" in message(tiny, variant="bf16")
    file.unlink()
    assert "choose variant='fp16'" in message(tiny)


# ---- XL -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """Only its headers are of use: its U-Net is that of another."""
    path = tmp_path_factory.mktemp("models") / "xl"
    texts = {"text_encoder": TINY_TEXT}
    write(path, TINY_UNET, TINY_VAE, texts)
    (path / "unet/config.json").write_text(json.dumps(XL_UNET))
    index = index_of(XL_TEXTS, "StableDiffusionXLPipeline")
    (path / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(path / "text_encoder", path / "text_encoder_2")
    (path / "text_encoder_2/config.json").write_text(json.dumps(PROJECTED))
    (path / "tokenizer_2").mkdir()
    return path


@pytest.fixture
def tiny_xl(xl, tmp_path):
    return shutil.copytree(xl, tmp_path / "xl")


def test_xl_reads_before_the_last_layer_and_hears_six_sizes(tiny_xl):
    model = directory.read(tiny_xl)
    assert list(model.texts) == ["text_encoder", "text_encoder_2"]
    for fields in model.texts.values():
        assert (fields["skip_layers"], fields["norm_hidden"]) == (1, False)
    assert "projection_dim" not in model.texts["text_encoder"]
    assert model.texts["text_encoder_2"]["projection_dim"] == 10
    assert (model.num_size_ids, model.size_id_width) == (6, 4)
    assert model.zero_empty
    change(tiny_xl / "model_index.json", force_zeros_for_empty_prompt=False)
    assert not directory.read(tiny_xl).zero_empty


def test_the_refiner_has_the_second_tower_and_hears_five_numbers(tiny_xl):
    change(
        tiny_xl / "model_index.json",
        _class_name="StableDiffusionXLImg2ImgPipeline",
        text_encoder=[None, None],
        tokenizer=[None, None],
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )
    change(
        tiny_xl / "unet/config.json",
        cross_attention_dim=12,
        projection_class_embeddings_input_dim=10 + 5 * 4,
    )
    model = directory.read(tiny_xl)
    assert list(model.texts) == ["text_encoder_2"]
    assert list(model.tokenizers) == ["tokenizer_2"]
    assert (model.num_size_ids, model.zero_empty) == (5, False)


def test_xl_and_its_unet_must_agree_on_what_is_heard(tiny_xl, tiny):
    change(tiny_xl / "model_index.json", requires_aesthetics_score=True)
    assert "projection_class_embeddings_input_dim = 34, but" in message(tiny_xl)
    change(tiny_xl / "unet/config.json", addition_embed_type=None)
    assert "addition_embed_type = null in a StableDiffusionXL" in message(tiny_xl)
    for name in ("addition_embed_type", "addition_time_embed_dim"):
        change(tiny / "unet/config.json", **{name: XL_UNET[name]})
    change(tiny / "unet/config.json", projection_class_embeddings_input_dim=34)
    assert "addition_embed_type = text_time in a StableDiffusionP" in message(tiny)


def test_the_second_tower_of_xl_must_project(tiny_xl):
    kind = "CLIPTextModel"
    change(tiny_xl / "model_index.json", text_encoder_2=["transformers", kind])
    assert "text_encoder_2 is a CLIPTextModel (only CLIPTextModelWith" in message(
        tiny_xl
    )
