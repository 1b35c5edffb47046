"""The decoder of a small DALL·E 2: CLIP image embeddings and captions -> 16 px.

python -m diffusion_jax.train --config configs/small/scenes_decoder.py --workdir runs/scenes/decoder

Ramesh et al. (2022, arXiv:2204.06125, section 2.1) in small: two attention heads at
every level, and the hidden states of CLIP as the encoded caption, as in Karlo.
With prior and upsamplers 82 % of held-in captions were shown, and 70 % of held-out ones
(`python -m experiments.scenes_dalle2`).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="decoder", image_dropout=0.1, text_dropout=0.5)
    config.data = common.scenes()  # at the size that CLIP sees
    config.decoder_size = 16
    config.towers = dict(clip="runs/scenes/clip")
    config.cache_embeddings = True
    config.unet = dict(
        channels=(32, 64, 128),
        blocks_per_level=1,
        attention=("none", "added_kv", "added_kv"),
        mid_attention="added_kv",
        num_heads=2,
        time_modulation="scale_shift",
        vector="identity",
        norm_groups=16,
    )
    config.projection = dict(context_width=96, num_tokens=4, null="learned")
    config.schedule = dict(name="discrete", betas="cosine")
    config.parameterization = dict(name="x0")
    config.weighting = dict(name="x0")
    config.times = dict(name="low_discrepancy")
    config.loss = dict(name="hybrid", variance="learned_range", vlb_weight=1e-4)
    config.optimizer = common.muon(learning_rate=4e-3)
    config.batch_size = 32
    config.num_steps = 5000
    config.sample_every = 1000
    config.ema_decay = 0.998
    config.sampling = dict(
        sampler=dict(name="dpmpp_2m"),
        grid=dict(name="trailing"),
        steps=25,
        guidance=2.0,
        clip=dict(name="static"),
        prompts=common.SCENE_PROMPTS,
    )
    return common.runlocal(config) if variant == "runlocal" else config
