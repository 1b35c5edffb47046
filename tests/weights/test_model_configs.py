"""Every field of a model's config is honoured, refused by name, or known to do nothing."""

import json
import math

import jax
import pytest
from published_configs import (
    CLIP_L,
    OPEN_CLIP_G,
    OPEN_CLIP_H,
    TEXTS,
    UNETS,
    VAE,
    without_tensors,
)

from diffusion_jax.weights import (
    autoencoder_config,
    config_fields,
    published,
    text_config,
    unet_config,
)

READERS = {
    "unet": (unet_config, UNETS["sd1"]),
    "vae": (autoencoder_config, VAE),
    "text": (text_config, CLIP_L),
}
# Values that change what is computed, in ways that we have not.
REFUSED = {
    "unet": dict(
        mid_block_type="UNetMidBlock2D",
        num_attention_heads=8,
        reverse_transformer_layers_per_block=[[1], [1], [1], [1]],
        addition_embed_type="image",
        act_fn="mish",
        center_input_sample=True,
        flip_sin_to_cos=False,
        freq_shift=1,
        only_cross_attention=[True, True, True, False],
        mid_block_only_cross_attention=True,
        dual_cross_attention=True,
        downsample_padding=0,
        mid_block_scale_factor=1.4,
        resnet_skip_time_act=True,
        resnet_out_scale_factor=2.0,
        encoder_hid_dim=64,
        encoder_hid_dim_type="text_proj",
        cross_attention_norm="group_norm",
        class_embed_type="projection",
        num_class_embeds=1000,
        class_embeddings_concat=True,
        time_embedding_type="fourier",
        time_embedding_dim=512,
        time_embedding_act_fn="silu",
        timestep_post_act="silu",
        time_cond_proj_dim=256,
        conv_in_kernel=1,
        conv_out_kernel=1,
        attention_type="gated",
        in_channels=8,
        norm_num_groups=None,
        resnet_time_scale_shift="spatial",
        transformer_layers_per_block=[[1, 1], 1, 1, 1],
        cross_attention_dim=[768, 768, 768, 1024],
        down_block_types=["SimpleCrossAttnDownBlock2D"] * 4,
        sample_size=[64, 96],
        layers_per_block=[2, 2],
    ),
    "vae": dict(
        act_fn="relu",
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        out_channels=6,
        down_block_types=["AttnDownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=[2, 2, 2, 2],
    ),
    "text": dict(
        hidden_act="gelu_new",
        attention_dropout=0.1,
        dropout=0.1,
        pruned_heads={"0": [1]},
        is_decoder=True,
        add_cross_attention=True,
        cross_attention_hidden_size=64,
        eos_token_id=[1, 2],
        num_attention_heads=7,
    ),
}
MODELS = ("depth-to-image", "the x4 upscaler", "InstructPix2Pix")


def message(reader, config):
    with pytest.raises(config_fields.Refused) as error:
        reader.read(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind, values in REFUSED.items() for name in values]
)
def test_a_value_that_we_have_not_is_refused_by_name(kind, name):
    reader, config = READERS[kind]
    reader.read(config)
    assert f"{name} " in message(reader, config | {name: REFUSED[kind][name]})


@pytest.mark.parametrize(
    "kind, name, value",
    [
        *(("unet", name, None) for name in ("norm_eps", "block_out_channels")),
        *(("unet", "norm_eps", value) for value in ("1e-5", [1e-5], True)),
        *(("unet", "block_out_channels", value) for value in (320, [], [320, "x"])),
        *(("unet", "down_block_types", value) for value in ("DownBlock2D", None)),
        *(("unet", "attention_head_dim", value) for value in (None, 8.0, [])),
        *(("unet", "cross_attention_dim", value) for value in (None, [])),
        *(("vae", name, None) for name in ("scaling_factor", "norm_num_groups")),
        ("vae", "use_quant_conv", "no"),
        *(("text", name, None) for name in ("hidden_size", "layer_norm_eps")),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(kind, name, value):
    reader, config = READERS[kind]
    assert f"{name} = {json.dumps(value)}" in message(reader, config | {name: value})


def test_a_whole_number_is_a_number_and_null_is_no():
    """Configs that diffusers converted say null where they mean false."""
    reader, config = READERS["unet"]
    changed = dict(norm_eps=1, dropout=0, upcast_attention=None)
    fields = reader.read(config | changed).fields
    assert fields["norm_eps"] == 1.0 and fields["upcast_attention"] is False


@pytest.mark.parametrize("kind", READERS)
def test_every_field_that_can_be_refused_is_in_that_test(kind):
    table = READERS[kind][0].TABLE
    restricted = {name for name, field in table.items() if field.accepted is not None}
    assert restricted <= set(REFUSED[kind])


@pytest.mark.parametrize("kind", READERS)
def test_all_that_is_wrong_is_said_at_once(kind):
    reader, config = READERS[kind]
    problems = dict(list(REFUSED[kind].items())[:3]) | dict(new_field=1)
    text = message(reader, config | problems)
    assert "unknown field new_field" in text
    assert all(name in text for name in problems)


@pytest.mark.parametrize("kind", READERS)
def test_a_field_left_out_is_what_its_class_assumes(kind):
    reader, config = READERS[kind]
    defaults = {name: field.default for name, field in reader.TABLE.items()}
    known = {name: value for name, value in defaults.items() if name not in config}
    assert reader.read(config) == reader.read(known | config)


@pytest.mark.parametrize("kind", READERS)
def test_fields_of_no_effect_have_none(kind):
    reader, config = READERS[kind]
    idle = {
        name: "x"
        for name, field in reader.TABLE.items()
        if not field.is_honoured and name not in config
    }
    idle.pop("_diffusers_version", None)
    assert idle
    assert reader.read(config) == reader.read(config | idle)


def test_table_of_fields():
    """`pytest -s` prints it."""
    for kind, (reader, _) in READERS.items():
        print(f"\n{kind + ' field':40} {'default':32} what becomes of it")
        for name, field in reader.TABLE.items():
            default = str(field.default)[:31]
            print(f"{name:40} {default:32} {field.status}; {field.note}".rstrip("; "))
            assert field.note or field.accepted is not None


@pytest.mark.parametrize("channels", [5, 7, 8])
def test_relatives_are_refused_by_what_they_are(channels):
    text = message(unet_config, UNETS["sd2"] | dict(in_channels=channels))
    assert f"in_channels = {channels} (only 4, or 9" in text
    assert any(f"({model})" in text for model in MODELS)


@pytest.mark.parametrize("family", UNETS)
def test_inpainting_sees_nine_channels(family):
    read = unet_config.read(UNETS[family] | dict(in_channels=9))
    assert read.in_channels == 9
    assert read.fields == unet_config.read(UNETS[family]).fields
    assert unet_config.read(dict(in_channels=17), latent_channels=8).in_channels == 17


def test_one_number_stands_for_every_level():
    lists = dict(
        layers_per_block=[2] * 4,
        attention_head_dim=[8] * 4,
        transformer_layers_per_block=[1] * 4,
        cross_attention_dim=[768] * 4,
        sample_size=[64, 64],
        only_cross_attention=False,
    )
    assert unet_config.read(UNETS["sd1"]) == unet_config.read(UNETS["sd1"] | lists)


def test_size_ids_follow_from_what_the_unet_hears():
    read = unet_config.read(UNETS["sdxl"])
    assert (read.vector_width, read.size_id_width) == (2816, 256)
    text = message(unet_config, UNETS["sdxl"] | dict(addition_time_embed_dim=None))
    assert "addition_time_embed_dim = null" in text


@pytest.mark.parametrize(
    "version, size, expected",
    [
        ("0.8.1", 32, 64),
        ("0.6.0", 96, 96),
        ("0.10.0", 32, 32),
        ("0.9.0", 32, 32),
        (None, 32, 32),
        (None, None, 64),
    ],
)
def test_the_first_configs_understate_their_size(version, size, expected):
    config = UNETS["sd1"] | dict(sample_size=size)
    config |= dict(_diffusers_version=version) if version else {}
    assert unet_config.read(config).sample_size == expected


def test_up_blocks_must_mirror_down_blocks():
    up = ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"]
    text = message(unet_config, UNETS["sd1"] | dict(up_block_types=up))
    assert "up_block_types do not mirror" in text


def test_the_autoencoder_says_how_latents_are_scaled():
    read = autoencoder_config.read(
        VAE | dict(scaling_factor=0.13025, shift_factor=0.25, force_upcast=False)
    )
    assert (read.latent_scale, read.latent_shift) == (0.13025, 0.25)
    assert not read.force_upcast
    plain = autoencoder_config.read(VAE)
    assert (plain.latent_scale, plain.latent_shift) == (0.18215, 0.0)
    assert plain.force_upcast


def test_a_config_of_text_and_images_holds_that_of_the_text():
    nested = dict(
        architectures=["CLIPModel"],
        model_type="clip",
        projection_dim=9,
        text_config=CLIP_L | dict(top_k=50, use_bfloat16=False, torch_dtype=None),
        vision_config=dict(hidden_size=3),
    )
    for projected in (False, True):
        assert text_config.read(nested, projected=projected) == text_config.read(
            CLIP_L, projected=projected
        )
    wrong = nested | dict(text_config=CLIP_L | dict(hidden_act="silu"))
    assert "hidden_act" in message(text_config, wrong)


@pytest.mark.parametrize(
    "said", [dict(architectures=["T5EncoderModel"]), dict(model_type="t5")]
)
def test_another_kind_of_text_encoder_is_refused(said):
    assert "it is of a " in message(text_config, CLIP_L | said)


# ---- the published sizes ------------------------------------------------------------

# family, module -> numbers, tensors
SIZES = {
    ("sd1", "unet"): (859_520_964, 686),
    ("sd1", "vae"): (83_653_863, 248),
    ("sd1", "text_encoder"): (123_060_480, 196),
    ("sd2", "unet"): (865_910_724, 686),
    ("sd2", "text_encoder"): (340_387_840, 372),
    ("sdxl", "unet"): (2_567_463_684, 1680),
    ("sdxl", "text_encoder_2"): (694_659_840, 517),
    ("refiner", "unet"): (2_259_526_660, 1220),
}


def check_size(like, num_parameters, num_tensors):
    leaves = jax.tree.leaves(like)
    assert sum(math.prod(p.shape) for p in leaves) == num_parameters
    assert len(leaves) == num_tensors


@pytest.mark.parametrize("family, name", SIZES)
def test_published_configs_make_the_published_parameters(family, name):
    num_size_ids = {"sdxl": 6, "refiner": 5}.get(family, 0)
    made = without_tensors(UNETS[family], VAE, TEXTS[family], num_size_ids=num_size_ids)
    check_size(published.shape(made, name), *SIZES[family, name])


def test_clip_l_with_its_projection_has_the_published_parameters():
    texts = {"text_encoder": CLIP_L | dict(architectures=[text_config.PROJECTED])}
    made = without_tensors(UNETS["sd1"], VAE, texts)
    check_size(published.shape(made, "text_encoder"), 123_650_304, 197)


def test_towers_of_open_clip_are_read():
    assert text_config.read(OPEN_CLIP_H)["num_layers"] == 23
    assert text_config.read(OPEN_CLIP_G, projected=True)["projection_dim"] == 1280
