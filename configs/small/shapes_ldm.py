"""A small Stable Diffusion on the embedded captioned scenes, 32 px.

python -m diffusion_jax.train --config configs/small/shapes_ldm.py --workdir runs/ldm

Its frozen towers come from earlier runs; the quickstart leaves them where they are
looked for.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="latent_diffusion", caption_dropout=0.1)
    config.data = common.scenes()
    config.towers = dict(clip="runs/quickstart/clip", vae="runs/quickstart/vae")
    config.cache_latents = True  # and the text tower's outputs: 60 to 300 MB of disk
    config.unet = dict(
        channels=(96,),
        blocks_per_level=1,
        attention=("transformer",),
        num_heads=(3,),
        norm_groups=16,
        vector="add_embedding",  # the pooled caption, as in Stable Diffusion XL
    )
    config.schedule = dict(name="cosine", time_scale=1000.0)
    config.parameterization = dict(name="v")
    config.weighting = dict(name="v")
    config.times = dict(name="low_discrepancy")
    config.optimizer = common.muon(learning_rate=4e-3)
    config.batch_size = 32
    config.num_steps = 1500
    config.ema_decay = 0.995
    config.sampling = dict(
        sampler=dict(name="dpmpp_2m"),
        grid=dict(name="trailing"),
        steps=20,
        guidance=2.0,
        prompts=common.SCENE_PROMPTS,
    )
    return common.runlocal(config) if variant == "runlocal" else config
