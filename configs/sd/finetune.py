"""A published Stable Diffusion 1, 2 or XL, fine-tuned: every parameter of its U-Net.

    python -m diffusion_jax.train --config configs/sd/finetune.py:tar_shards \
        --config.weights models/stable-diffusion-v1-5 --workdir runs/finetune \
        --config.data.train_split 'data/train-*.tar' --config.data.eval_split 'data/test-*.tar'

Networks, text encoders, schedule and what is predicted are those of the weights.
Without `:tar_shards` it learns the embedded scenes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.weights = ""  # a directory, a .safetensors file or a hub id
    config.task = dict(name="latent_diffusion", caption_dropout=0.1)
    config.tokenizer = dict(context_length=77, directory="")
    config.data = common.scenes(image_size=512)
    if variant == "tar_shards":
        config.data = common.tar_shards("", "", image_size=512)
    config.cache_latents = False
    config.unet = dict(dtype="bfloat16")
    config.weighting = dict(name="min_snr", gamma=5.0)
    config.times = dict(name="low_discrepancy")
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "constant"
    config.batch_size = 4
    config.num_steps = 10_000
    config.ema_decay = 0.9999
    config.sampling = dict(
        sampler=dict(name="dpmpp_2m"),
        grid=dict(name="leading"),
        steps=25,
        guidance=7.5,
        prompts=common.SCENE_PROMPTS,
    )
    return common.runlocal(config) if variant == "runlocal" else config
