"""Tiny published models, written by diffusers and transformers: random, but of fixed seeds.

`write_sd1(directory)` and its siblings write a directory as it would be downloaded and
return the diffusers pipeline that they wrote. Each has what is particular of its family:
heads, projections, text towers, padding tokens, size ids, scheduler.
"""

import json
import pathlib
import shutil
import tempfile

import diffusers
import torch
import transformers

from diffusion_jax.data import captions

NUM_TOKENS, LENGTH = 600, 77
WORDS = ("a red circle above a blue square", "two green triangles, on white", "cat dog")
UNET = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    norm_num_groups=8,
    attention_head_dim=2,  # the number of heads
)
LINEAR = dict(use_linear_projection=True, attention_head_dim=(2, 4))
XL = LINEAR | dict(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2),
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
)
VAE = dict(
    sample_size=32,
    block_out_channels=(8, 16, 16),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=4,
)
TEXT = dict(
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=2,
    num_hidden_layers=3,
    max_position_embeddings=LENGTH,
    projection_dim=20,
)
OPEN = TEXT | dict(hidden_size=24, num_attention_heads=3, hidden_act="gelu")
OLD_IDS = dict(bos_token_id=0, pad_token_id=1, eos_token_id=2)  # as in old configs
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
PADDING = "!"  # of OpenCLIP; of CLIP it is the end of the text


def write_sd1(directory, *, unet=(), vae=(), text=(), seed=0, **saving):
    """Stable Diffusion 1; `saving` goes to save_pretrained: variant, max_shard_size."""
    torch.manual_seed(seed)
    scheduler = diffusers.PNDMScheduler(
        **BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    )
    pipeline = diffusers.StableDiffusionPipeline(
        **_sd_parts(directory, dict(unet), vae, TEXT | dict(text)),
        scheduler=scheduler,
    )
    scheduler.register_to_config(clip_sample=False)  # which the published file has
    return _save(pipeline, directory, saving)


def write_sd2(directory, *, unet=(), vae=(), text=(), seed=0, **saving):
    """Stable Diffusion 2: v-prediction, linear projections, OpenCLIP."""
    torch.manual_seed(seed)
    unet = LINEAR | dict(upcast_attention=True) | dict(unet)
    scheduler = diffusers.DDIMScheduler(
        **BETAS,
        set_alpha_to_one=False,
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    pipeline = diffusers.StableDiffusionPipeline(
        **_sd_parts(directory, unet, vae, OPEN | dict(text), pad=PADDING),
        scheduler=scheduler,
    )
    return _save(pipeline, directory, saving)


def write_sdxl(directory, *, unet=(), vae=(), text=(), seed=0, **saving):
    """Stable Diffusion XL: two text towers, pooled text and six size ids."""
    torch.manual_seed(seed)
    pipeline = diffusers.StableDiffusionXLPipeline(
        **_xl_parts(directory, dict(unet), vae, text)
    )
    return _save(pipeline, directory, saving)


def write_refiner(directory, *, unet=(), vae=(), text=(), seed=0, **saving):
    """The refiner of XL: only the second tower, five ids."""
    torch.manual_seed(seed)
    parts = _xl_parts(directory, dict(unet), vae, text, num_ids=5)
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False
    )
    return _save(pipeline, directory, saving)


def write_inpaint(directory, family="sd1", *, seed=0, **saving):
    """A U-Net of nine channels: latents, mask, masked latents; "sd1", "sd2", "sdxl"."""
    write = {"sd1": write_sd1, "sd2": write_sd2, "sdxl": write_sdxl}[family]
    with tempfile.TemporaryDirectory() as elsewhere:
        parts = write(elsewhere, unet=dict(in_channels=9), seed=seed).components
        for name in ("tokenizer", "tokenizer_2"):
            if name in parts:  # learning one again may break ties otherwise
                source = pathlib.Path(elsewhere, name)
                shutil.copytree(source, pathlib.Path(directory, name))
    if family == "sdxl":
        pipeline = diffusers.StableDiffusionXLInpaintPipeline(**parts)
    else:
        pipeline = diffusers.StableDiffusionInpaintPipeline(
            **parts, requires_safety_checker=False
        )
    return _save(pipeline, directory, saving)


FAMILIES = {
    "sd1": write_sd1,
    "sd2": write_sd2,
    "sdxl": write_sdxl,
    "refiner": write_refiner,
    "inpaint": write_inpaint,
}


def make_tokenizer(directory, pad=captions.END):
    """A tokenizer directory as it is published, and transformers' object."""
    captions.train_tokenizer(
        WORDS, directory, vocab_size=NUM_TOKENS, context_length=LENGTH
    )
    path = pathlib.Path(directory) / captions.CONFIG_FILE
    settings = json.loads(path.read_text()) | dict(pad_token=pad)
    path.write_text(json.dumps(settings, indent=2))
    return transformers.CLIPTokenizer.from_pretrained(str(directory))


def make_text(fields, tokenizer, *, projected=False):
    """A text tower for a tokenizer."""
    config = transformers.CLIPTextConfig(
        **OLD_IDS | dict(vocab_size=len(tokenizer)) | fields
    )
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return draw(getattr(transformers, name)(config))


def make_unet(fields):
    """A tiny U-Net."""
    return draw(diffusers.UNet2DConditionModel(**UNET | fields))


def make_vae(fields=()):
    """A tiny autoencoder."""
    return draw(diffusers.AutoencoderKL(**VAE | dict(fields)))


def draw(module):
    """The module with no parameter at 0 or 1, where mistakes would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return module.eval()


def _sd_parts(directory, unet, vae, text, *, pad=captions.END):
    tokenizer = make_tokenizer(pathlib.Path(directory) / "tokenizer", pad)
    return dict(
        unet=make_unet(dict(cross_attention_dim=text["hidden_size"]) | unet),
        vae=make_vae(vae),
        text_encoder=make_text(text, tokenizer),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
    )


def _xl_parts(directory, unet, vae, text, *, num_ids=6):
    directory = pathlib.Path(directory)
    texts = {1: TEXT | dict(text), 2: OPEN | dict(text)}
    second = make_tokenizer(directory / "tokenizer_2", PADDING)
    parts = dict(
        text_encoder_2=make_text(texts[2], second, projected=True),
        tokenizer_2=second,
        text_encoder=None,
        tokenizer=None,
    )
    cross = texts[2]["hidden_size"]
    if num_ids == 6:
        first = make_tokenizer(directory / "tokenizer")
        parts |= dict(text_encoder=make_text(texts[1], first), tokenizer=first)
        cross += texts[1]["hidden_size"]
    unet = XL | dict(cross_attention_dim=cross) | unet
    heard = texts[2]["projection_dim"] + num_ids * unet["addition_time_embed_dim"]
    unet = dict(projection_class_embeddings_input_dim=heard) | unet
    vae = dict(scaling_factor=0.13025, force_upcast=True) | dict(vae)
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS, timestep_spacing="leading", steps_offset=1
    )
    scheduler.register_to_config(clip_sample=False)  # which the published file has
    return parts | dict(
        unet=make_unet(unet),
        vae=make_vae(vae),
        scheduler=scheduler,
        add_watermarker=False,
    )


def _save(pipeline, directory, saving):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(str(directory), **saving)
    return pipeline
