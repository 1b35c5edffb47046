"""CLIP on the embedded captioned scenes, 32 px.

python -m diffusion_jax.train --config configs/small/shapes_clip.py --workdir runs/clip
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="clip")
    config.data = common.scenes()
    config.tokenizer = dict(directory="", vocab_size=640, context_length=20)
    config.clip = dict(
        projection_dim=64,
        text=dict(width=96, num_layers=2, num_heads=3, mlp_width=384),
        vision=dict(width=128, num_layers=3, num_heads=4, mlp_width=512, patch_size=8),
    )
    config.optimizer = common.muon(learning_rate=3e-3)
    config.batch_size = 128
    config.num_steps = 300
    config.sample_every = 100
    return common.runlocal(config) if variant == "runlocal" else config
