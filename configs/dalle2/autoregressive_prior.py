"""The autoregressive prior of DALL·E 2: captions -> codes of CLIP image embeddings.

    python -m diffusion_jax.train --config configs/dalle2/autoregressive_prior.py \
        --config.towers.clip runs/dalle2/clip --workdir runs/dalle2/autoregressive_prior \
        --config.data.train_split 'data/train-*.tar' --config.data.eval_split 'data/test-*.tar'

Ramesh et al. (2022, arXiv:2204.06125, section 2.2 and table 3). The layers of the
table's text encoder have 1.2 billion parameters and those of its latent decoder 0.8,
where it rounds the prior to 1. Its context of 384 are 64 states of the caption, the text
embedding, the dot product, and the 318 codes that others follow; see
models/autoregressive_prior.py. With `:runlocal` small, on the embedded scenes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    config.task = dict(name="autoregressive_prior", caption_dropout=0.1)
    config.data = common.tar_shards("", "", image_size=256)  # what CLIP sees
    config.towers = dict(clip="runs/dalle2/clip")
    config.cache_embeddings = False  # many hosts, many images
    config.codes = dict(num_dims=319, num_buckets=1024, num_dot_buckets=100)
    config.prior = dict(
        num_layers=24,
        num_heads=26,
        head_width=64,
        num_tokens=64,
        norm_embedding=True,
        dtype="bfloat16",
    )
    config.text = dict(
        context_length=256, width=2048, num_layers=24, num_heads=32, dtype="bfloat16"
    )
    config.optimizer = dict(
        name="adamw",
        learning_rate=1.6e-4,
        schedule="constant",
        warmup_steps=0,
        b1=0.9,
        b2=0.91,
        eps=1e-10,
        weight_decay=4.0e-2,
    )
    config.batch_size = 4096
    config.num_steps = 1_000_000
    config.ema_decay = 0.999
    config.mesh = dict(data=-1, fsdp=8)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint_every = 5000
    config.sample_every = 5000
    config.num_workers = 16
    config.sampling = dict(
        candidates=2,
        top=0.5,  # the best of 0.5, 0.3, 0.15 and 0.05
        temperature=1.0,
        guidance=1.0,
        prompts=common.SCENE_PROMPTS,
    )
    return _runlocal(config) if variant == "runlocal" else config


def _runlocal(config: ConfigDict) -> ConfigDict:
    """Scenes, and networks of some hundred thousand parameters."""
    config.data = common.scenes()
    config.towers.clip = "runs/scenes/clip"
    config.codes = dict(explained=0.99, num_buckets=64, num_dot_buckets=20)
    config.prior.update(dict(num_layers=2, num_heads=2, head_width=32, num_tokens=12))
    config.prior.dtype = "float32"
    config.text = dict(context_length=20, width=64, num_layers=2, num_heads=2)
    config.mesh = dict(data=-1, fsdp=1)
    config.num_workers = 0
    return common.runlocal(config)
