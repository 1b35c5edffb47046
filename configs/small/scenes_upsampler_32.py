"""The first upsampler of a small DALL·E 2, 16 -> 32 px.

python -m diffusion_jax.train --config configs/small/scenes_upsampler_32.py \
    --workdir runs/scenes/upsampler_32

As in arXiv:2204.06125, section 2.1: no attention, no condition but the small image,
which is blurred in training. Crops are a half of the side, since a quarter is 8 px.
`python -m experiments.scenes_dalle2` found 38.0 dB, of bicubic enlargement 31.2 dB.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="upsampler")
    config.data = common.scenes()
    config.upsampler = dict(
        low_size=16,
        crop_fraction=0.5,
        degradation=dict(name="blur", probability=0.5, size=3, sigma=0.6),
    )
    config.unet = dict(
        channels=(24, 48),
        blocks_per_level=1,
        attention=("none", "none"),
        mid_attention="none",
        norm_groups=8,
    )
    config.schedule = dict(name="cosine", time_scale=1000.0)
    config.parameterization = dict(name="x0")  # 7 dB above v after as many steps
    config.weighting = dict(name="x0")
    config.times = dict(name="low_discrepancy")
    config.optimizer = common.muon(learning_rate=4e-3)
    config.batch_size = 32
    config.num_steps = 700
    config.sample_every = 350
    config.ema_decay = 0.99
    config.sampling = dict(
        sampler=dict(name="ddim"),
        grid=dict(name="trailing"),
        steps=27,
        guidance=1.0,  # it is told nothing that could be left out
        clip=dict(name="static"),
    )
    return common.runlocal(config) if variant == "runlocal" else config
