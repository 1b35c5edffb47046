"""A low-rank adaptation of a published Stable Diffusion (arXiv:2106.09685).

    python -m diffusion_jax.train --config configs/sd/lora.py:tar_shards \
        --config.weights models/stable-diffusion-v1-5 --workdir runs/lora \
        --config.data.train_split 'data/train-*.tar' --config.data.eval_split 'data/test-*.tar'

Trains the factors of the attention layers alone; the U-Net itself is frozen.
"""

from ml_collections import ConfigDict

from configs.sd import finetune


def get_config(variant: str = "") -> ConfigDict:
    config = finetune.get_config(variant)
    config.lora = dict(rank=16)
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.ema_decay = 0.0
    if variant != "runlocal":
        config.num_steps = 2000
    return config
