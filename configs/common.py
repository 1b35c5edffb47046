"""What every run needs, with the values that most runs share."""

from ml_collections import ConfigDict

SCENE_PROMPTS = (
    "a small red circle above a large blue square",
    "a large yellow cross",
    "a small white triangle to the left of a large black ring",
    "a large green square below a small purple circle",
)


def run_config() -> ConfigDict:
    """A run without its task, data and networks."""
    return ConfigDict(
        dict(
            seed=0,
            batch_size=64,
            num_steps=1000,
            accumulate=1,  # micro-batches per step
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                schedule="cosine",
                warmup_steps=50,
                weight_decay=0.01,
                b1=0.9,
                b2=0.99,
                clip_norm=1.0,
            ),
            ema_decay=0.999,
            mesh=dict(data=-1, fsdp=1),
            sharding=((".*", "replicate"),),
            log_every=50,
            checkpoint_every=500,
            keep=2,
            sample_every=500,
            num_workers=0,  # data processes; 0 decodes in threads
        )
    )


def muon(learning_rate: float, weight_decay: float = 0.01) -> ConfigDict:
    """Muon on matrices, AdamW on the rest: fewer steps than AdamW alone."""
    return ConfigDict(
        dict(
            name="muon",
            learning_rate=learning_rate,
            schedule="cosine",
            warmup_steps=40,
            weight_decay=weight_decay,
            b1=0.95,
            b2=0.98,
            clip_norm=1.0,
        )
    )


def scenes(image_size: int = 32) -> ConfigDict:
    """The embedded captioned scenes."""
    return ConfigDict(
        dict(
            source=dict(name="scenes", image_size=image_size, data_dir=""),
            train_split="train",
            eval_split="validation",
            test_split="test",
            image_size=image_size,
            crop="center",
            flip=False,  # "left of" would no longer hold
        )
    )


def tar_shards(train: str, test: str, image_size: int = 32) -> ConfigDict:
    """Tar shards of image and text files; the splits are patterns of paths."""
    return ConfigDict(
        dict(
            source=dict(name="tar_shards"),
            train_split=train,
            eval_split=test,
            test_split=test,
            image_size=image_size,
            crop="center",
            flip=False,
        )
    )


def runlocal(config: ConfigDict) -> ConfigDict:
    """The same run cut down to a minute on a CPU, to see that it works."""
    config.batch_size = 16
    config.num_steps = 20
    config.log_every = 5
    config.checkpoint_every = 10
    config.sample_every = 10
    config.optimizer.warmup_steps = 5
    return config
