"""The CLIP of a small DALL·E 2, on the embedded captioned scenes, 32 px.

python -m diffusion_jax.train --config configs/small/scenes_clip.py --workdir runs/scenes/clip

It found the right caption among 64 of 99 % of the validation images.
"""

from ml_collections import ConfigDict

from configs import common
from configs.small import shapes_clip


def get_config(variant: str = "") -> ConfigDict:
    config = shapes_clip.get_config()
    config.clip.projection_dim = 96
    # Keeps images and texts apart, as in large CLIPs.
    config.clip.init_logit_scale = 100.0
    config.data.hard_negatives = "scenes"  # which word goes with which
    config.num_steps = 1000
    return common.runlocal(config) if variant == "runlocal" else config
