"""The 64 px decoder of DALL·E 2: 3.5 billion parameters with its text encoder.

    python -m diffusion_jax.train --config configs/dalle2/decoder.py \
        --config.towers.clip runs/dalle2/clip --workdir runs/dalle2/decoder \
        --config.data.train_split 'data/train-*.tar' --config.data.eval_split 'data/test-*.tar'

Ramesh et al. (2022, arXiv:2204.06125, table 3). `towers.clip` is a trained CLIP, of
configs/dalle2/clip.py. With `:runlocal` small, on the embedded scenes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="decoder", image_dropout=0.1, text_dropout=0.5)
    config.data = common.tar_shards("", "", image_size=256)  # what CLIP sees
    config.decoder_size = 64
    config.towers = dict(clip="runs/dalle2/clip")
    # As in ADM, blocks change the resolution and time scales and shifts.
    config.unet = dict(
        channels=(512, 1024, 1536, 2048),
        blocks_per_level=3,
        attention=("none", "added_kv", "added_kv", "added_kv"),  # at 32, 16, 8 px
        mid_attention="added_kv",
        num_heads=(8, 16, 24, 32),  # of 64 channels
        resample="resnet",
        time_modulation="scale_shift",
        vector="identity",
        dropout=0.1,
        dtype="bfloat16",
    )
    config.text = dict(
        context_length=256, width=2048, num_layers=24, num_heads=32, dtype="bfloat16"
    )
    config.projection = dict(context_width=2048, num_tokens=4, null="learned")
    config.schedule = dict(name="discrete", betas="cosine")
    config.parameterization = dict(name="eps")
    config.weighting = dict(name="eps")
    config.times = dict(name="uniform")
    config.loss = dict(name="hybrid", variance="learned_range")
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
    config.batch_size = 2048
    config.num_steps = 800_000
    config.num_workers = 16
    config.ema_decay = 0.9999
    config.mesh = dict(data=-1, fsdp=8)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint_every = 5000
    config.sample_every = 5000
    config.sampling = dict(
        sampler=dict(name="ddpm", variance="learned_range"),
        grid=dict(name="respaced"),
        steps=250,
        guidance=1.25,  # that of the best FID (table 2)
        clip=dict(name="static"),
        prompts=common.SCENE_PROMPTS,
    )
    return _runlocal(config) if variant == "runlocal" else config


def _runlocal(config: ConfigDict) -> ConfigDict:
    """Scenes at 16 px, and networks of some hundred thousand parameters."""
    config.data = common.scenes()
    config.decoder_size = 16
    config.unet.update(
        dict(channels=(32, 64), blocks_per_level=1, norm_groups=8, dtype="float32")
    )
    config.unet.attention = ("none", "added_kv")
    config.unet.num_heads = (1, 2)
    config.text = dict(context_length=20, width=64, num_layers=2, num_heads=2)
    config.projection.context_width = 64
    config.mesh = dict(data=-1, fsdp=1)
    config.num_workers = 0
    config.sampling.steps = 10
    return common.runlocal(config)
