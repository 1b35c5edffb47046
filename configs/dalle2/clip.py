"""The CLIP of DALL·E 2: ViT-H/16 at 256 px and a text tower of 24 blocks.

    python -m diffusion_jax.train --config configs/dalle2/clip.py --workdir runs/dalle2/clip \
        --config.data.train_split 'data/train-*.tar' --config.data.eval_split 'data/test-*.tar'

Ramesh et al. (2022, arXiv:2204.06125, appendix C); what that leaves out is of Radford et
al. (2021, arXiv:2103.00020, table 18). With `:runlocal` small, on the embedded scenes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    config = common.run_config()
    # 512 replicas; fewer devices read them in turn with task.num_parts.
    config.task = dict(name="clip", num_parts=1, sam_rho=0.1, samples_per_replica=64)
    config.data = common.tar_shards("", "", image_size=256)
    config.data.crop = "random"
    # As many tokens as the text encoders of priors and decoder read (table 3).
    config.tokenizer = dict(directory="", vocab_size=49408, context_length=256)
    config.clip = dict(
        projection_dim=1024,
        text=dict(
            width=1024, num_layers=24, num_heads=16, mlp_width=4096, dtype="bfloat16"
        ),
        vision=dict(
            width=1280,
            num_layers=32,
            num_heads=16,  # of ViT-H (arXiv:2010.11929, table 1)
            mlp_width=5120,
            patch_size=16,
            dtype="bfloat16",
        ),
    )
    config.optimizer = dict(
        name="adamw",
        learning_rate=3e-4,
        schedule="cosine",
        warmup_steps=2000,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
    )
    config.batch_size = 32768
    config.num_steps = 635_000  # 32 epochs of 650 million pairs
    config.ema_decay = 0.0  # no average is kept: the weights are those of the last step
    config.mesh = dict(data=-1, fsdp=8)
    config.sharding = ((".*", "fsdp"),)
    config.checkpoint_every = 5000
    config.sample_every = 5000
    config.num_workers = 16
    return _runlocal(config) if variant == "runlocal" else config


def _runlocal(config: ConfigDict) -> ConfigDict:
    """Scenes at 32 px, and towers of some hundred thousand parameters."""
    config.data = common.scenes()
    config.tokenizer.update(dict(vocab_size=640, context_length=20))
    small = dict(width=64, num_layers=2, num_heads=2, mlp_width=128, dtype="float32")
    config.clip.projection_dim = 64
    config.clip.text.update(small)
    config.clip.vision.update(small | dict(patch_size=8))
    config.task.samples_per_replica = 8
    config.mesh = dict(data=-1, fsdp=1)
    config.num_workers = 0
    return common.runlocal(config)
