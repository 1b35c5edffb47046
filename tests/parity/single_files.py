"""Writes models of diffusers and transformers in the layout of the original code.

The inverse of what is tested, in closed form: block j of level i of a U-Net with b blocks
per level is input_blocks.(1 + i (b + 1) + j) going down and output_blocks.(i (b + 1) + j)
going up; a decoder's level i of n is up.(n - 1 - i).
"""

import re

import torch
from safetensors.torch import save_file

UNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
BUFFERS = {
    "betas": 1000,
    "alphas_cumprod": 1000,
    "sqrt_recipm1_alphas_cumprod": 1000,
    "model_ema.decay": (),
    "model_ema.num_updates": (),
}


def unet_key(key, config):
    num_blocks = config.layers_per_block
    for theirs, ours in UNET_ENDS.items():
        if key.startswith(theirs + "."):
            return ours + key[len(theirs) :]
    side, rest = key.split(".", 1)
    if side == "mid_block":
        kind, place, tail = rest.split(".", 2)
        number = 1 if kind == "attentions" else 2 * int(place)
        return f"middle_block.{number}.{_unet_tail(kind, tail)}"
    level, kind, place, tail = rest.split(".", 3)
    level, place = int(level), int(place)
    first = level * (num_blocks + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + num_blocks + 1}.0.op.{tail.split('.')[1]}"
    if kind == "upsamplers":
        has_attention = "CrossAttn" in config.up_block_types[level]
        return f"output_blocks.{first + num_blocks}.{1 + has_attention}.{tail}"
    part = {"resnets": 0, "attentions": 1}[kind]
    side = {"down_blocks": "input_blocks", "up_blocks": "output_blocks"}[side]
    number = first + place + (side == "input_blocks")
    return f"{side}.{number}.{part}.{_unet_tail(kind, tail)}"


def _unet_tail(kind, tail):
    part, end = tail.split(".", 1)
    return f"{UNET_PARTS[part]}.{end}" if kind == "resnets" else tail


def vae_key(key, num_levels):
    key = key.replace("conv_norm_out", "norm_out")
    key = key.replace("conv_shortcut", "nin_shortcut")
    key = re.sub(
        r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key
    )
    if "attentions" in key:
        for theirs, ours in {
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
            "group_norm": "norm",
        }.items():
            key = key.replace(f"attentions.0.{theirs}", f"attn_1.{ours}")
        key = key.replace("mid_block", "mid")
    key = key.replace("down_blocks", "down").replace("downsamplers.0", "downsample")
    key = key.replace("upsamplers.0", "upsample").replace("resnets", "block")
    return re.sub(
        r"up_blocks\.(\d+)", lambda m: f"up.{num_levels - 1 - int(m[1])}", key
    )


def vae_state(vae):
    state = {}
    for key, tensor in vae.state_dict().items():
        is_projection = "attentions" in key and key.endswith("weight")
        if is_projection and "norm" not in key:
            tensor = tensor[:, :, None, None]
        state[vae_key(key, len(vae.config.block_out_channels))] = tensor
    return state


def prefixed(state):
    """`text_model.` before every name but the projection's, as files have it."""
    return {
        key if key.startswith("text_") else f"text_model.{key}": tensor
        for key, tensor in state.items()
    }


def open_clip_state(state, spare_layer=False):
    """A text tower in OpenCLIP's naming; `spare_layer` adds one behind the last."""
    made = {}
    layers = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    state = prefixed(state)
    for key, tensor in state.items():
        if key in names:
            made[names[key]] = tensor
        elif key == "text_projection.weight":
            made["text_projection"] = tensor.T.contiguous()
        elif ".q_proj." in key:
            number, end = key.split(".")[3], key.rsplit(".", 1)[1]
            parts = [state[key.replace("q_proj", name)] for name in QKV]
            block = f"transformer.resblocks.{number}.attn.in_proj_{end}"
            made[block] = torch.cat(parts)
        elif "_proj." not in key or "out_proj" in key:
            _, _, _, number, tail = key.split(".", 4)
            part, end = tail.rsplit(".", 1)
            made[f"transformer.resblocks.{number}.{layers[part]}.{end}"] = tensor
    if spare_layer:
        last = max(int(key.split(".")[2]) for key in made if "resblocks" in key)
        for key in [key for key in made if f"resblocks.{last}." in key]:
            spare = key.replace(f".{last}.", f".{last + 1}.")
            made[spare] = torch.full_like(made[key], torch.nan)
        width = made["ln_final.weight"].shape[0]
        made["text_projection"] = made["ln_final.weight"].new_full((width, width), 9)
    return made | {"logit_scale": made["ln_final.weight"].new_full((), 4.6)}


QKV = ("q_proj", "k_proj", "v_proj")


def single_file_state(unet, vae, texts, *, ema=None):
    """The names and tensors of a single file; `texts` is by prefix.

    `ema` is another U-Net, whose weights become the moving average.
    """
    state = {}
    for key, tensor in unet.state_dict().items():
        state["model.diffusion_model." + unet_key(key, unet.config)] = tensor
    for key, tensor in ema.state_dict().items() if ema else ():
        dotless = unet_key(key, ema.config).replace(".", "")
        state["model_ema.diffusion_model" + dotless] = tensor
    for key, tensor in vae_state(vae).items():
        state["first_stage_model." + key] = tensor
    for prefix, text in texts.items():
        if ".model." in prefix:
            is_old = prefix == "cond_stage_model.model."
            inner = open_clip_state(text.state_dict(), spare_layer=is_old)
        else:
            inner = prefixed(text.state_dict())
            ids = torch.zeros(1, 77, dtype=torch.int64, device=tensor.device)
            inner["text_model.embeddings.position_ids"] = ids
        state |= {prefix + key: tensor for key, tensor in inner.items()}
    for key, shape in BUFFERS.items():
        state[key] = torch.zeros(shape, device=tensor.device)
    return state


def write(path, *parts, metadata=None, **options):
    state = single_file_state(*parts, **options)
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata=metadata)
