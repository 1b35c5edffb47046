"""The autoregressive prior of a small DALL·E 2: captions -> codes of image embeddings.

python -m diffusion_jax.train --config configs/small/scenes_codes_prior.py \
    --workdir runs/scenes/codes_prior

Ramesh et al. (2022, arXiv:2204.06125, section 2.2) in small.
`python -m experiments.scenes_dalle2` found a cosine of 0.95 to the true embeddings.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="autoregressive_prior", caption_dropout=0.1)
    config.data = common.scenes()
    config.towers = dict(clip="runs/scenes/clip")
    config.cache_embeddings = True
    config.codes = dict(explained=0.99, num_buckets=64, num_dot_buckets=20)
    config.prior = dict(num_layers=4, num_heads=4, head_width=32)
    config.optimizer = common.muon(learning_rate=3e-3)
    config.batch_size = 64
    config.num_steps = 500
    config.ema_decay = 0.995
    config.sampling = dict(candidates=2, prompts=common.SCENE_PROMPTS)
    return common.runlocal(config) if variant == "runlocal" else config
