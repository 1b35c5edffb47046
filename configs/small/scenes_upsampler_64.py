"""The second upsampler of a small DALL·E 2, 32 -> 64 px.

python -m diffusion_jax.train --config configs/small/scenes_upsampler_64.py \
    --workdir runs/scenes/upsampler_64

As in arXiv:2204.06125, section 2.1: the small image is degraded by blur, noise, JPEG
and resizing in random order (BSR); trained on crops of a quarter of the side.
`python -m experiments.scenes_dalle2` found 30.8 dB of images so degraded, of bicubic
enlargement 26.5 dB.
"""

from ml_collections import ConfigDict

from configs import common
from configs.small import scenes_upsampler_32


def get_config(variant: str = "") -> ConfigDict:
    config = scenes_upsampler_32.get_config()
    config.data = common.scenes(image_size=64)
    # The milder ranges of latent diffusion: the full ones hide shapes of 32 px.
    milder = dict(width=0.25, noise=(2, 8), quality=(80, 95))
    config.upsampler = dict(
        low_size=32, crop_fraction=0.25, degradation=dict(name="bsr", **milder)
    )
    config.schedule = dict(
        name="discrete", betas="linear", beta_start=1e-4, beta_end=0.02
    )
    config.sampling.steps = 15
    return common.runlocal(config) if variant == "runlocal" else config
