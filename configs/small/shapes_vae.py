"""The autoencoder of the small Stable Diffusion, 32 px -> 4 x 4 x 16.

python -m diffusion_jax.train --config configs/small/shapes_vae.py --workdir runs/vae
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="autoencoder", distance="l2", kl_weight=3e-5)
    config.data = common.scenes()
    # 8 x 8 x 4 reaches 28 dB sooner, but shapes drawn from 4 x 4 x 16 hold together
    # after a third of the diffusion model's training.
    config.vae = dict(
        channels=(16, 32, 64, 128),
        blocks_per_level=1,
        latent_channels=16,
        norm_groups=8,
    )
    config.optimizer = common.muon(learning_rate=6e-3, weight_decay=0.0)
    config.batch_size = 32
    config.num_steps = 650
    config.ema_decay = 0.98
    return common.runlocal(config) if variant == "runlocal" else config
