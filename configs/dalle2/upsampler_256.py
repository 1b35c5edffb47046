"""The first upsampler of DALL·E 2, 64 -> 256 px: 700 million parameters.

    python -m diffusion_jax.train --config configs/dalle2/upsampler_256.py \
        --workdir runs/dalle2/upsampler_256 \
        --config.data.train_split 'data/train-*.tar' --config.data.eval_split 'data/test-*.tar'

Ramesh et al. (2022, arXiv:2204.06125, table 3). Its batches are crops of 64 px.
With `:runlocal` small, on the embedded scenes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="upsampler")
    config.data = common.tar_shards("", "", image_size=256)
    config.upsampler = dict(
        low_size=64,
        crop_fraction=0.25,
        # How often is not in the paper; 1/2 is that of its open reproduction.
        degradation=dict(name="blur", probability=0.5, size=3, sigma=0.6),
    )
    # As in ADM, blocks change the resolution and time scales and shifts.
    config.unet = dict(
        channels=(320, 640, 960, 1280),
        blocks_per_level=3,
        attention=("none",) * 4,
        mid_attention="none",
        resample="resnet",
        time_modulation="scale_shift",
        dropout=0.1,
        dtype="bfloat16",
    )
    config.schedule = dict(name="discrete", betas="cosine")
    config.parameterization = dict(name="eps")
    config.weighting = dict(name="eps")
    config.times = dict(name="uniform")
    config.optimizer = dict(
        name="adamw",
        learning_rate=1.2e-4,
        schedule="constant",
        warmup_steps=0,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
    )
    config.batch_size = 1024
    config.num_steps = 1_000_000
    config.ema_decay = 0.9999
    config.checkpoint_every = 5000
    config.sample_every = 5000
    config.num_workers = 16
    config.sampling = dict(
        sampler=dict(name="ddim"),
        grid=dict(name="respaced"),
        steps=27,
        guidance=1.0,  # it is told nothing that could be left out
        clip=dict(name="static"),
    )
    return runlocal(config) if variant == "runlocal" else config


def runlocal(config: ConfigDict) -> ConfigDict:
    """Scenes from 16 to 64 px, and a network of some hundred thousand parameters."""
    config.data = common.scenes(image_size=64)
    config.upsampler.low_size = 16
    config.unet.channels = (32, 64)
    config.unet.blocks_per_level = 1
    config.unet.attention = ("none", "none")
    config.unet.update(dict(norm_groups=8, dtype="float32"))
    config.num_workers = 0
    return common.runlocal(config)
