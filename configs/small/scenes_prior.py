"""The diffusion prior of a small DALL·E 2: captions -> CLIP image embeddings.

python -m diffusion_jax.train --config configs/small/scenes_prior.py --workdir runs/scenes/prior

Ramesh et al. (2022, arXiv:2204.06125, section 2.2) in small: 4 layers in place of 24.
`python -m experiments.scenes_dalle2` found a cosine of 0.97 to the true embeddings.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="diffusion_prior", caption_dropout=0.1)
    config.data = common.scenes()
    config.towers = dict(clip="runs/scenes/clip")
    config.cache_embeddings = True
    config.prior = dict(num_layers=4, num_heads=4, head_width=32)
    config.embedding_scale = dict(name="statistics")
    config.schedule = dict(name="cosine", time_scale=1000.0)
    config.parameterization = dict(name="x0")
    config.weighting = dict(name="x0")
    config.times = dict(name="low_discrepancy")
    config.optimizer = common.muon(learning_rate=3e-3)
    config.batch_size = 128
    config.num_steps = 600
    config.ema_decay = 0.995
    config.sampling = dict(
        sampler=dict(name="ddim", eta=1.0),
        grid=dict(name="trailing"),
        steps=25,
        guidance=2.0,
        candidates=2,
        prompts=common.SCENE_PROMPTS,
    )
    return common.runlocal(config) if variant == "runlocal" else config
