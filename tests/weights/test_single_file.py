"""What a single-file checkpoint may hold, and what is refused in one line."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.weights import scheduler_config, single_file, tensors
from diffusion_jax.weights.single_file_families import FAMILIES

SIZES = dict(b=1, c=8)  # blocks per level, channels


def resnet(prefix, before, after):
    parts = {
        "in_layers.0": (before,),
        "in_layers.2": (after, before, 3, 3),
        "emb_layers.1": (after, 32),
        "out_layers.0": (after,),
        "out_layers.3": (after, after, 3, 3),
    }
    if before != after:
        parts["skip_connection"] = (after, before, 1, 1)
    return {f"{prefix}.{part}": shape for part, shape in parts.items()}


def transformer(prefix, width, context, is_linear):
    block = f"{prefix}.transformer_blocks.0"
    ends = () if is_linear else (1, 1)
    shapes = {f"{prefix}.norm": (width,), f"{prefix}.proj_in": (width, width, *ends)}
    shapes[f"{prefix}.proj_out"] = (width, width, *ends)
    for name, inner in (("attn1", width), ("attn2", context)):
        shapes[f"{block}.{name}.to_q"] = (width, width)
        shapes[f"{block}.{name}.to_k"] = shapes[f"{block}.{name}.to_v"] = (width, inner)
        shapes[f"{block}.{name}.to_out.0"] = (width, width)
    for i in (1, 2, 3):
        shapes[f"{block}.norm{i}"] = (width,)
    shapes[f"{block}.ff.net.0.proj"] = (8 * width, width)
    shapes[f"{block}.ff.net.2"] = (width, 4 * width)
    return shapes


def unet(context, is_linear, in_channels=4):
    """One level: convolution, a block down, the middle, two blocks up."""
    shapes = {
        "time_embed.0": (32, 8),
        "time_embed.2": (32, 32),
        "input_blocks.0.0": (8, in_channels, 3, 3),
        "out.0": (8,),
        "out.2": (4, 8, 3, 3),
    }
    for place, before in {
        "input_blocks.1": 8,
        "output_blocks.0": 16,
        "output_blocks.1": 16,
    }.items():
        shapes |= resnet(f"{place}.0", before, 8)
        shapes |= transformer(f"{place}.1", 8, context, is_linear)
    for i in (0, 2):
        shapes |= resnet(f"middle_block.{i}", 8, 8)
    shapes |= transformer("middle_block.1", 8, context, is_linear)
    return {f"model.diffusion_model.{key}.weight": s for key, s in shapes.items()}


def autoencoder():
    block = {"norm1": (4,), "conv1": (4, 4, 3, 3), "norm2": (4,), "conv2": (4, 4, 3, 3)}
    shapes = {"quant_conv": (8, 8, 1, 1), "post_quant_conv": (4, 4, 1, 1)}
    for half, level, first in (("encoder", "down", 3), ("decoder", "up", 4)):
        shapes[f"{half}.conv_in"] = (4, first, 3, 3)
        shapes[f"{half}.norm_out"] = (4,)
        shapes[f"{half}.conv_out"] = (8 if half == "encoder" else 3, 4, 3, 3)
        places = ["mid.block_1", "mid.block_2", f"{level}.0.block.0"]
        for place in places + ([f"{level}.0.block.1"] if level == "up" else []):
            shapes |= {f"{half}.{place}.{k}": shape for k, shape in block.items()}
        for name in ("q", "k", "v", "proj_out"):
            shapes[f"{half}.mid.attn_1.{name}"] = (4, 4, 1, 1)
        shapes[f"{half}.mid.attn_1.norm"] = (4,)
    return {f"first_stage_model.{key}.weight": shape for key, shape in shapes.items()}


def clip(prefix):
    layer = {"layer_norm1": (6,), "layer_norm2": (6,)}
    layer |= {f"self_attn.{name}_proj": (6, 6) for name in ("q", "k", "v", "out")}
    layer |= {"mlp.fc1": (24, 6), "mlp.fc2": (6, 24)}
    shapes = {
        "embeddings.token_embedding": (50, 6),
        "embeddings.position_embedding": (77, 6),
        "final_layer_norm": (6,),
    }
    shapes |= {f"encoder.layers.0.{key}": shape for key, shape in layer.items()}
    return {f"{prefix}{key}.weight": shape for key, shape in shapes.items()}


def open_clip(prefix, num_layers=2):
    shapes = {
        "positional_embedding": (77, 6),
        "token_embedding.weight": (50, 6),
        "ln_final.weight": (6,),
        "text_projection": (6, 5),
    }
    for i in range(num_layers):
        layer = {"ln_1.weight": (6,), "ln_2.weight": (6,)}
        layer |= {"attn.in_proj_weight": (18, 6), "attn.in_proj_bias": (18,)}
        layer |= {"attn.out_proj.weight": (6, 6)}
        layer |= {"mlp.c_fc.weight": (24, 6), "mlp.c_proj.weight": (6, 24)}
        shapes |= {f"transformer.resblocks.{i}.{key}": s for key, s in layer.items()}
    return {prefix + key: shape for key, shape in shapes.items()}


OLD_CLIP = "cond_stage_model.transformer.text_model."
SD1 = unet(6, False) | autoencoder() | clip(OLD_CLIP)
SD2 = unet(6, True) | autoencoder() | open_clip("cond_stage_model.model.")


def write(tmp_path, shapes, metadata=None):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    made = {key: rng.standard_normal(shape) for key, shape in shapes.items()}
    made = {key: np.asarray(value, np.float16) for key, value in made.items()}
    save_file(made, path, metadata=metadata)
    return path, made


def test_every_tensor_of_the_file_is_used_once(tmp_path):
    path, stored = write(tmp_path, SD1)
    model = single_file.read(path)
    found = [np.asarray(t) for part in model.tensors.values() for t in part.values()]
    assert len(found) == len(stored)
    assert sorted(array.tobytes() for array in found) == sorted(
        array.tobytes() for array in stored.values()
    )
    assert (model.unet["num_heads"], model.vae["channels"]) == (8, (4,))
    assert not model.unet["linear_projection"]


def test_fused_and_transposed_tensors_are_views(tmp_path):
    prefix = "conditioner.embedders.0.model."
    more = {
        "model.diffusion_model.label_emb.0.0.weight": (32, 5 + 5 * 4),
        "model.diffusion_model.label_emb.0.2.weight": (32, 32),
    }
    path, stored = write(
        tmp_path, unet(6, True) | autoencoder() | open_clip(prefix) | more
    )
    model = single_file.read(path)
    text = model.tensors["text_encoder_2"]
    for end in ("weight", "bias"):
        parts = [
            np.asarray(text[f"text_model.encoder.layers.1.self_attn.{name}.{end}"])
            for name in ("q_proj", "k_proj", "v_proj")
        ]
        fused = stored[f"{prefix}transformer.resblocks.1.attn.in_proj_{end}"]
        np.testing.assert_array_equal(np.concatenate(parts), fused)
    projection = text["text_projection.weight"]
    assert projection.shape == (5, 6)
    np.testing.assert_array_equal(projection, stored[prefix + "text_projection"].T)
    assert model.texts["text_encoder_2"]["num_layers"] == 2
    assert (model.num_size_ids, model.size_id_width) == (5, 4)


def test_the_last_layer_of_openclip_h_is_left_out(tmp_path):
    path, _ = write(tmp_path, SD2)
    model = single_file.read(path)
    assert model.texts["text_encoder"]["num_layers"] == 1
    text = model.tensors["text_encoder"]
    assert "text_projection.weight" not in text
    assert not any(".layers.1." in key for key in text)
    # unless the file has left it out already
    cut = unet(6, True) | autoencoder() | open_clip("cond_stage_model.model.", 23)
    path, _ = write(tmp_path, cut)
    assert single_file.read(path).texts["text_encoder"]["num_layers"] == 23


BUFFERS = {
    "betas": (3,),
    "alphas_cumprod": (3,),
    "posterior_mean_coef2": (3,),
    "model_ema.decay": (),
    "model_ema.num_updates": (),
    OLD_CLIP + "embeddings.position_ids": (1, 77),
    "cond_stage_model.logit_scale": (),
}


def test_constants_are_left_out_by_name_and_anything_else_is_an_error(tmp_path):
    path, _ = write(tmp_path, SD1)
    expected = {
        name: set(part) for name, part in single_file.read(path).tensors.items()
    }
    path, _ = write(tmp_path, SD1 | BUFFERS)
    found = {name: set(part) for name, part in single_file.read(path).tensors.items()}
    assert found == expected
    for key in (
        "edm_mean",
        "betas2",
        "model.diffusion_model.input_blocks.1.0.in_layers.1.weight",
        "model.diffusion_model.input_blocks.9.0.in_layers.0.weight",
        "model.diffusion_model.betas",
        "first_stage_model.loss.logvar",
        "conditioner.embedders.1.model.ln_final.weight",
        "model_ema.diffusion_modelout1weight",
    ):
        path, _ = write(tmp_path, SD1 | {key: (1,)})
        with pytest.raises(ValueError, match=f"has no {key}") as raised:
            single_file.read(path)
        assert "\n" not in str(raised.value)


def test_a_text_encoder_without_its_inner_prefix(tmp_path):
    old = unet(6, False) | autoencoder() | clip("cond_stage_model.transformer.")
    found = single_file.read(write(tmp_path, old)[0])
    expected = single_file.read(write(tmp_path, SD1)[0])
    assert (
        found.tensors["text_encoder"].keys() == expected.tensors["text_encoder"].keys()
    )


def test_a_moving_average_that_is_absent_or_has_holes(tmp_path):
    path, _ = write(tmp_path, SD1)
    with pytest.raises(ValueError, match="no moving average"):
        single_file.read(path, ema=True)
    average = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): shape
        for key, shape in SD1.items()
        if key.startswith("model.")
    }
    path, stored = write(tmp_path, SD1 | average)
    model = single_file.read(path, ema=True)
    np.testing.assert_array_equal(
        model.tensors["unet"]["conv_in.weight"],
        stored["model_ema.diffusion_modelinput_blocks00weight"],
    )
    average.pop("model_ema.diffusion_modelout2weight")
    path, _ = write(tmp_path, SD1 | average)
    with pytest.raises(ValueError, match=r"no moving average of .*\.out\.2\.weight"):
        single_file.read(path, ema=True)


@pytest.mark.parametrize(
    "changed, reason",
    [
        (unet(6, False, 5), "depth-to-image"),
        (unet(6, False, 7), "upscaler"),
        (unet(6, False, 8), "InstructPix2Pix"),
        (unet(6, False, 6), "6 input channels"),
        (
            {
                "model.diffusion_model.label_emb.0.0.weight": (32, 9),
                "model.diffusion_model.label_emb.0.2.weight": (32, 32),
            },
            "unCLIP",
        ),
        ({"model.diffusion_model.label_emb.weight": (9, 32)}, "label_emb.weight"),
    ],
)
def test_other_members_of_the_family_are_refused_by_name(tmp_path, changed, reason):
    path, _ = write(tmp_path, SD1 | changed)
    with pytest.raises(ValueError, match=reason):
        single_file.read(path)


@pytest.mark.parametrize(
    "keys, reason",
    [
        (["lora_unet_down.lora_up.weight"], "LoRA"),
        (["down_blocks.0.x", "conv_in.weight"], "diffusers layout"),
        (["double_blocks.0.x"], "it begins with double_blocks.0.x"),
        (list(unet(6, False)), "no text encoder"),
        ([*unet(6, False), *clip(OLD_CLIP)], "no autoencoder"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, keys, reason):
    shapes = {key: SD1.get(key, (1,)) for key in keys}
    path, _ = write(tmp_path, shapes)
    with pytest.raises(ValueError, match=reason) as raised:
        single_file.read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("hole", ["middle_block.1.proj_in", "out.2", "time_embed.0"])
def test_a_file_with_a_hole_is_no_model(tmp_path, hole):
    shapes = {key: shape for key, shape in SD1.items() if hole not in key}
    path, _ = write(tmp_path, shapes)
    if hole == "time_embed.0":  # no field depends on it: found when it is loaded
        found = single_file.read(path).tensors["unet"]
        assert "time_embedding.linear_1.weight" not in found
        return
    with pytest.raises(ValueError, match="missing or misshapen"):
        single_file.read(path)


def predicted(tmp_path, shapes, metadata=None, **options):
    path, _ = write(tmp_path, shapes, metadata)
    model = single_file.read(path, **options)
    return model.scheduler["prediction_type"], model


def test_what_the_network_predicts_is_given_said_or_usual(tmp_path):
    v, eps = "v_prediction", "epsilon"
    assert predicted(tmp_path, SD1)[0] == eps
    found, model = predicted(tmp_path, SD2)
    assert (found, model.sample_size, model.unet["upcast_attention"]) == (v, 96, True)
    found, model = predicted(tmp_path, SD2, prediction_type=eps)
    assert (found, model.sample_size) == (eps, 64)
    assert predicted(tmp_path, SD1, prediction_type=v)[0] == v
    assert predicted(tmp_path, SD2 | unet(6, True, 9))[0] == eps
    for said, expected in (("epsilon", eps), ("v", v)):
        metadata = {"modelspec.prediction_type": said}
        assert predicted(tmp_path, SD1, metadata)[0] == expected
        assert predicted(tmp_path, SD1, metadata, prediction_type=eps)[0] == eps
    metadata = {"modelspec.architecture": "stable-diffusion-v2-512"}
    assert predicted(tmp_path, SD2, metadata)[0] == eps
    assert predicted(tmp_path, SD1 | {"v_pred": (0,)})[0] == v
    given = {"_class_name": "DDPMScheduler", "prediction_type": "sample"}
    path, _ = write(tmp_path, SD1)
    assert single_file.read(path, scheduler=given).scheduler == given
    with pytest.raises(ValueError, match="not both"):
        single_file.read(path, scheduler=given, prediction_type=eps)
    with pytest.raises(ValueError, match="'eps'; one of"):
        single_file.read(path, prediction_type="eps")


def test_metadata_that_is_null_says_nothing(tmp_path):
    path = tmp_path / "null.safetensors"
    header = json.dumps({"__metadata__": None}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert tensors.read_metadata(path) == {}


def test_fields_that_shapes_do_not_tell_may_be_given(tmp_path):
    path, _ = write(tmp_path, SD1)
    tokenizers = {"tokenizer": tmp_path}
    fields = {"unet": dict(norm_groups=4), "text_encoder": dict(num_heads=3)}
    model = single_file.read(path, fields=fields, tokenizers=tokenizers)
    plain = single_file.read(path)
    assert model.unet == plain.unet | fields["unet"]
    assert model.texts["text_encoder"] == plain.texts["text_encoder"] | dict(
        num_heads=3
    )
    assert model.tokenizers == tokenizers and plain.tokenizers == {}


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
def test_the_usual_schedulers_are_recipes(kind):
    recipe = scheduler_config.read(kind.scheduler)
    assert recipe.schedule.num_steps == 1000
    assert recipe.unused in ((), ("clip_sample",))
