"""The autoencoder of the small Stable Diffusion, 32 px -> 8 x 8 x 4.

python -m diffusion_jax.train --config configs/small/shapes_vae.py --workdir runs/vae
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="autoencoder", distance="l2", kl_weight=1e-6)
    config.data = common.scenes()
    config.vae = dict(
        channels=(32, 48, 64), blocks_per_level=1, latent_channels=4, norm_groups=8
    )
    config.batch_size = 32
    config.num_steps = 1000
    return common.runlocal(config) if variant == "runlocal" else config
