"""The diffusion prior of DALL·E 2: captions -> CLIP image embeddings.

    python -m diffusion_jax.train --config configs/dalle2/diffusion_prior.py \
        --config.towers.clip runs/dalle2/clip --workdir runs/dalle2/diffusion_prior \
        --config.data.train_split 'data/train-*.tar' --config.data.eval_split 'data/test-*.tar'

Ramesh et al. (2022, arXiv:2204.06125, section 2.2 and table 3). The table gives this
prior one transformer, of 24 layers and width 2048: it is the decoder-only one, which
reads embedded tokens. That makes 1.2 billion parameters in its layers and 1.3 with its
tables and projections, where the table rounds to 1. `towers.clip` is a trained CLIP, of
configs/dalle2/clip.py. With `:runlocal` small, on the embedded scenes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="diffusion_prior", caption_dropout=0.1)
    config.data = common.tar_shards("", "", image_size=256)  # what CLIP sees
    config.towers = dict(clip="runs/dalle2/clip")
    config.cache_embeddings = False  # many hosts, many images
    config.prior = dict(
        num_layers=24,
        num_heads=32,
        head_width=64,
        num_tokens=256,
        norm_embedding=True,
        dtype="bfloat16",
    )
    # Tokens and their places alone: the prior itself is the transformer.
    config.text = dict(context_length=256, width=2048, num_layers=0)
    config.embedding_scale = dict(name="paper", factor=17.2)
    config.schedule = dict(name="discrete", betas="cosine")
    config.parameterization = dict(name="x0")
    config.weighting = dict(name="x0")
    config.times = dict(name="uniform")
    config.optimizer = dict(
        name="adamw",
        learning_rate=1.1e-4,
        schedule="constant",
        warmup_steps=0,
        b1=0.9,
        b2=0.96,
        eps=1e-6,
        weight_decay=6.0e-2,
    )
    config.batch_size = 4096
    config.num_steps = 600_000
    config.ema_decay = 0.9999
    config.mesh = dict(data=-1, fsdp=8)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint_every = 5000
    config.sample_every = 5000
    config.num_workers = 16
    config.sampling = dict(
        sampler=dict(name="analytic_dpm"),
        grid=dict(name="respaced"),  # the table's "strided"
        steps=64,
        guidance=1.0,  # more of it made worse images (section 5.2)
        candidates=2,
        prompts=common.SCENE_PROMPTS,
    )
    return _runlocal(config) if variant == "runlocal" else config


def _runlocal(config: ConfigDict) -> ConfigDict:
    """Scenes, and a network of some hundred thousand parameters."""
    config.data = common.scenes()
    config.towers.clip = "runs/scenes/clip"
    config.prior.update(dict(num_layers=2, num_heads=2, head_width=32, num_tokens=20))
    config.prior.dtype = "float32"
    config.text.update(dict(context_length=20, width=64))
    config.embedding_scale = dict(name="sqrt_dim")  # embeddings are narrower
    config.mesh = dict(data=-1, fsdp=1)
    config.sampling.steps = 10
    config.num_workers = 0
    return common.runlocal(config)
