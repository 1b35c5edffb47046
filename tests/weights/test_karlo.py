"""Karlo's directories: one or two of them, strictly, or an error of one line."""

import math
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.weights import karlo, published_unclip
from tests import tiny_karlo
from tests.tiny_karlo import change_json

BOTH = {*karlo.SHARED} & {*karlo.MODULES}
RESNETS = dict(
    down_block_types=[tiny_karlo.RESNET_DOWN] * 4,
    up_block_types=[tiny_karlo.RESNET_UP] * 4,
)
PUBLISHED_LEVELS = dict(
    layers_per_block=3, block_out_channels=[320, 640, 960, 1280], norm_num_groups=32
)
PUBLISHED = {
    "prior": dict(_class_name="PriorTransformer"),
    "text_proj": dict(time_embed_dim=1280, cross_attention_dim=1536),
    "decoder": tiny_karlo.CONFIGS["decoder"]
    | PUBLISHED_LEVELS
    | dict(
        sample_size=64,
        down_block_types=[tiny_karlo.RESNET_DOWN] + ["SimpleCrossAttnDownBlock2D"] * 3,
        up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + [tiny_karlo.RESNET_UP],
        attention_head_dim=64,
        cross_attention_dim=1536,
    ),
    "super_res_first": tiny_karlo.UPSAMPLER | PUBLISHED_LEVELS | RESNETS,
    "super_res_last": tiny_karlo.UPSAMPLER | PUBLISHED_LEVELS | RESNETS,
    "text_encoder": dict(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        projection_dim=768,
    ),
    "image_encoder": dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=24,
        projection_dim=768,
        patch_size=14,
    ),
}
NUM_PARAMETERS = {
    "prior": 1_022_030_080 - 2 * 768,  # clip_mean and clip_std apart
    "embedding": 2 * 768,
    "decoder": 885_439_686,
    "text_proj": 7_878_400,
    "super_res_first": 691_579_523,
    "super_res_last": 691_579_523,
    "text_encoder": 123_650_304,
    "image_encoder": 303_966_208,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both directories, which no test changes."""
    root = tmp_path_factory.mktemp("karlo")
    tiny_karlo.write(root / "text")
    tiny_karlo.write(root / "variation", kind=karlo.VARIATION, seed=1)
    return root


@pytest.fixture
def text(written, tmp_path):
    return shutil.copytree(written / "text", tmp_path / "text")


@pytest.fixture
def variation(written, tmp_path):
    return shutil.copytree(written / "variation", tmp_path / "variation")


def message(*paths, **options):
    """The one line of the error of reading and loading."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        published_unclip.load_params(karlo.read(*paths, **options))
    assert "\n" not in str(error.value)
    return str(error.value)


def equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_the_published_sizes_have_as_many_parameters_as_published():
    shapes = published_unclip.shapes(tiny_karlo.describe(PUBLISHED))
    counts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for name, part in shapes.items()
    }
    assert counts == NUM_PARAMETERS


def test_one_directory_lends_the_other_what_it_lacks(text, variation):
    alone = published_unclip.load_params(karlo.read(text))
    varied = published_unclip.load_params(karlo.read(variation))
    assert set(alone) == BOTH | {"prior", "embedding"}
    assert set(varied) == BOTH | {"image_encoder"}
    assert not equal(alone["decoder"], varied["decoder"])
    first = published_unclip.load_params(karlo.read(text, image_directory=variation))
    assert equal(first, alone | {"image_encoder": varied["image_encoder"]})
    second = published_unclip.load_params(karlo.read(variation, image_directory=text))
    parts = {name: alone[name] for name in ("prior", "embedding")}
    assert equal(second, varied | parts)


def test_what_lends_a_part_may_lack_the_others_and_the_variant(text, variation):
    both = published_unclip.load_params(karlo.read(text, image_directory=variation))
    for name in {*karlo.SHARED} - {"text_encoder"}:
        shutil.rmtree(variation / name)
    (variation / "text_encoder" / "model.safetensors").unlink()
    decoder = text / "decoder" / "diffusion_pytorch_model.safetensors"
    shutil.copy(decoder, decoder.with_suffix(".fp16.safetensors"))
    for variant in (None, "fp16"):
        found = karlo.read(text, image_directory=variation, variant=variant)
        assert equal(published_unclip.load_params(found), both)
    assert "no variant 'fp32'" in message(text, variant="fp32")


def test_the_scale_of_embeddings_stays_in_full_precision(text):
    params = published_unclip.load_params(karlo.read(text), dtype="bfloat16")
    stored = load_file(text / "prior" / "diffusion_pytorch_model.safetensors")
    for name in ("mean", "std"):
        assert params["embedding"][name].dtype == np.float32
        np.testing.assert_array_equal(
            params["embedding"][name], stored[f"clip_{name}"][0]
        )
    assert params["prior"]["proj_in"]["kernel"].dtype == "bfloat16"


def test_preprocessing_is_that_of_the_file(variation):
    found = karlo.read(variation)
    assert list(found.image_mean) == tiny_karlo.FEATURES["image_mean"]
    assert list(found.image_std) == tiny_karlo.FEATURES["image_std"]


def test_a_pipeline_of_another_kind_is_refused(text):
    change_json(text / "model_index.json", _class_name="StableDiffusionPipeline")
    assert "is of a StableDiffusionPipeline" in message(text)


def test_two_directories_are_of_two_kinds_and_one_clip(text, variation):
    assert "are both of a UnCLIPPipeline" in message(text, image_directory=text)
    change_json(variation / "text_encoder" / "config.json", hidden_act="gelu")
    assert "variation is of another CLIP" in message(text, image_directory=variation)


@pytest.mark.parametrize("name", [*karlo.SHARED, *karlo.OWN[karlo.TEXT_TO_IMAGE]])
def test_a_missing_part_is_named(name, text):
    (text / name).rename(text / "away")
    assert f"lacks {name}/" in message(text)
    change_json(text / "model_index.json", **{name: None})
    assert f"{name} is not given" in message(text)


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        ("prior", dict(embedding_dim=12), "prior.*embedding_dim = 12.*is 8"),
        ("prior", dict(num_embeddings=7), "num_embeddings = 7.*is 77"),
        ("prior", dict(added_emb_type="no"), "added_emb_type"),
        ("prior", dict(clip_embed_dim=3), "clip_embed_dim = 3"),
        ("prior", dict(width=3), "prior.*unknown field width"),
        ("text_proj", dict(clip_embeddings_dim=9), "projection_dim = 8.*is 9"),
        ("text_proj", dict(cross_attention_dim=9), "cross_attention_dim = 6.*is 9"),
        ("text_proj", dict(time_embed_dim=8), "block_out_channels.* = 32.*is 8"),
        ("text_proj", dict(time_embed_dim="8"), "time_embed_dim = 8 "),
        ("text_encoder", dict(projection_dim=4), "projection_dim = 4.*is 8"),
        ("text_encoder", dict(architectures=["Bert"]), "it is of a Bert"),
        ("decoder", dict(out_channels=3), "out_channels = 3 .only 6"),
        ("decoder", dict(in_channels=4), "in_channels = 4 .only 3"),
        ("decoder", dict(class_embed_type="timestep"), "class_embed_type"),
        ("decoder", dict(mid_block_type="UNetMidBlock2DCrossAttn"), "mid_block_type"),
        ("decoder", dict(attention_head_dim=[4, 8]), "attention_head_dim.*only equal"),
        ("decoder", dict(attention_head_dim=3), "attention_head_dim = 3 for 8"),
        ("decoder", dict(sample_size=5), "sample_size = 5"),
        ("decoder", dict(down_block_types=["DownBlock2D"] * 2), "has DownBlock2D"),
        ("super_res_first", dict(add_attention=True), "add_attention"),
        ("super_res_first", dict(in_channels=3), "in_channels = 3 .only 6"),
        ("super_res_first", dict(flip_sin_to_cos=False), "flip_sin_to_cos"),
        ("super_res_last", dict(sample_size=16), "sample_size = 16.*is 8"),
        ("super_res_last", dict(norm_num_groups=3), "norm_num_groups = 3 for 8"),
    ],
)
def test_a_config_that_does_not_fit_is_named(part, changes, expected, text):
    change_json(text / part / "config.json", **changes)
    for file in (text / part).glob("*.safetensors"):
        file.write_bytes(b"")  # no tensor is read before
    with pytest.raises(ValueError, match=expected) as error:
        karlo.read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(size=9), "size = 9 .only 8"),
        (dict(crop_size=dict(height=8, width=9)), "crop_size"),
        (dict(resample=2), "resample"),
        (dict(do_normalize=False), "do_normalize"),
        (dict(image_std=[1.0]), "image_std has 1"),
        (dict(image_std=[1.0, 0.0, 1.0]), "only above 0"),
        (dict(rescale_factor=1.0), "rescale_factor"),
        (dict(sharpness=1), "unknown field sharpness"),
    ],
)
def test_preprocessing_that_we_have_not_is_named(changes, expected, variation):
    change_json(variation / "feature_extractor" / "preprocessor_config.json", **changes)
    with pytest.raises(ValueError, match=expected) as error:
        karlo.read(variation)
    assert "\n" not in str(error.value)


def test_a_crop_that_is_not_made_may_have_any_size(variation):
    path = variation / "feature_extractor" / "preprocessor_config.json"
    change_json(path, do_center_crop=False, crop_size=3)
    assert karlo.read(variation).image["image_size"] == 8


@pytest.mark.parametrize(
    ("scheduler", "changes", "expected"),
    [
        ("prior", dict(variance_type="learned_range"), "only 'fixed_small_log'"),
        ("decoder", dict(variance_type="fixed_small_log"), "only 'learned_range'"),
        ("decoder", dict(prediction_type="flow"), "prediction_type"),
        ("super_res", dict(curve=2), "curve"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_named(scheduler, changes, expected, text):
    path = text / f"{scheduler}_scheduler" / "scheduler_config.json"
    change_json(path, **changes)
    assert str(path) in message(text)
    assert expected in message(text)


@pytest.mark.parametrize("change", ["lost", "more", "clip_std"])
def test_every_tensor_is_used_exactly_once(change, text):
    path = text / "prior" / "diffusion_pytorch_model.safetensors"
    stored = load_file(path)
    if change == "more":
        stored["extra.weight"] = np.zeros(3, np.float32)
    else:
        stored.pop("proj_in.bias" if change == "lost" else "clip_std")
    save_file(stored, path)
    expected = {
        "lost": "missing: prior/proj_in.bias",
        "more": "unused: prior/extra.weight",
        "clip_std": "has no clip_std",
    }
    assert expected[change] in message(text)
