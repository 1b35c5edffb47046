"""The only translator from ConfigDict to objects.

A config names each choice and its options, `dict(name="min_snr", gamma=5.0)`; the names
are the keys of the dicts beside the functions (SAMPLERS, SCHEDULES, ...). What is
unknown raises a ConfigError that names the nearest choice.
"""

from diffusion_jax.build import unclip, upsampler
from diffusion_jax.build.choices import (
    ConfigError,
    Spec,
    check_options,
    choose,
    construct,
    nearest,
)
from diffusion_jax.build.mathematics import (
    clip,
    guide,
    learns_variance,
    objective,
    parameterizer,
    schedule,
    times,
)
from diffusion_jax.build.networks import (
    autoencoder,
    clip_model,
    hears_pooled,
    latent_shape,
    merged,
    sampling_params,
    text_encoder,
    text_encoders,
    tower,
    towers,
    trained,
    unet,
)
from diffusion_jax.build.pipelines import (
    stable_diffusion,
    stage,
)
from diffusion_jax.build.training import (
    TASKS,
    check,
    image_text,
    loop_options,
    optimizer,
    source,
    stream,
    task,
)

__all__ = [
    "TASKS",
    "ConfigError",
    "Spec",
    "autoencoder",
    "check",
    "check_options",
    "choose",
    "clip",
    "clip_model",
    "construct",
    "guide",
    "hears_pooled",
    "image_text",
    "latent_shape",
    "learns_variance",
    "loop_options",
    "merged",
    "nearest",
    "objective",
    "optimizer",
    "parameterizer",
    "sampling_params",
    "schedule",
    "source",
    "stable_diffusion",
    "stage",
    "stream",
    "task",
    "text_encoder",
    "text_encoders",
    "times",
    "tower",
    "towers",
    "trained",
    "unclip",
    "unet",
    "upsampler",
]
