"""The second upsampler of DALL·E 2, 256 -> 1024 px: 300 million parameters.

    python -m diffusion_jax.train --config configs/dalle2/upsampler_1024.py \
        --workdir runs/dalle2/upsampler_1024 \
        --config.data.train_split 'data/train-*.tar' --config.data.eval_split 'data/test-*.tar'

Ramesh et al. (2022, arXiv:2204.06125, table 3). Its batches are crops of 256 px.
With `:runlocal` small, on the embedded scenes. What is not said is of upsampler_256.py.
"""

from ml_collections import ConfigDict

from configs import common
from configs.dalle2 import upsampler_256


def get_config(variant: str = "") -> ConfigDict:
    config = upsampler_256.get_config()
    config.data = common.tar_shards("", "", image_size=1024)
    config.upsampler = dict(
        low_size=256,
        crop_fraction=0.25,
        degradation=dict(name="bsr"),
    )
    config.unet.update(
        dict(
            channels=(192, 192, 384, 384, 768, 768),
            blocks_per_level=2,
            attention=("none",) * 6,
            dropout=0.0,
        )
    )
    config.schedule = dict(
        name="discrete", betas="linear", beta_start=1e-4, beta_end=0.02
    )
    config.optimizer.learning_rate = 1e-4
    config.batch_size = 512
    config.sampling.steps = 15
    return upsampler_256.runlocal(config) if variant == "runlocal" else config
