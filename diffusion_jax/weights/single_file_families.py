"""The published families of single-file checkpoints, and what their files do not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Tower(NamedTuple):
    """A text encoder: where it is in the file, and in which of the two namings."""

    prefix: str
    is_open_clip: bool = False
    drops_last: bool = False  # reads the states before the last layer, then norms them
    skip_layers: int = 0
    norm_hidden: bool = True
    is_projected: bool = False


class Family(NamedTuple):
    """A kind of model, with the values of its published configs."""

    name: str
    towers: dict[str, Tower]
    scheduler: dict[str, Any]
    num_heads: int | None = None  # None: heads of width 64
    latent_scale: float = 0.18215
    sample_size: int = 64
    num_size_ids: int = 0
    zero_empty: bool = False


_BETAS = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    trained_betas=None,
    steps_offset=1,
)
PNDM = dict(
    _class_name="PNDMScheduler",
    **_BETAS,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    prediction_type="epsilon",
)
DDIM = dict(
    _class_name="DDIMScheduler",
    **_BETAS,
    set_alpha_to_one=False,
    clip_sample=False,
    prediction_type="epsilon",
)
EULER = dict(
    _class_name="EulerDiscreteScheduler",
    **_BETAS,
    timestep_spacing="leading",
    interpolation_type="linear",
    use_karras_sigmas=False,
    prediction_type="epsilon",
)
_OF_XL = dict(is_open_clip=True, skip_layers=1, norm_hidden=False, is_projected=True)
_XL = dict(latent_scale=0.13025, sample_size=128)
FAMILIES = (
    Family(
        "Stable Diffusion 1",
        {"text_encoder": Tower("cond_stage_model.transformer.")},
        PNDM,
        num_heads=8,
    ),
    Family(
        "Stable Diffusion 2",
        {"text_encoder": Tower("cond_stage_model.model.", True, drops_last=True)},
        DDIM,
    ),
    Family(
        "Stable Diffusion XL",
        {
            "text_encoder": Tower(
                "conditioner.embedders.0.transformer.", skip_layers=1, norm_hidden=False
            ),
            "text_encoder_2": Tower("conditioner.embedders.1.model.", **_OF_XL),
        },
        EULER,
        num_size_ids=6,
        zero_empty=True,
        **_XL,
    ),
    Family(
        "Stable Diffusion XL refiner",
        {"text_encoder_2": Tower("conditioner.embedders.0.model.", **_OF_XL)},
        EULER,
        num_size_ids=5,
        **_XL,
    ),
)

_SCHEDULE = {
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped"),
    *("posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights"),
    *("logvar", "scale_factor", "denoiser.sigmas"),
}
_COUNTERS = {"model_ema.decay", "model_ema.num_updates"}
_UNUSED = {  # of a text encoder: constants, and what only contrastive training needs
    False: (
        *("text_model.embeddings.position_ids", "embeddings.position_ids"),
        *("text_projection.weight", "logit_scale"),
    ),
    True: ("logit_scale", "attn_mask"),
}
LAYERS_WITHOUT_LAST = 23  # of OpenCLIP-H, in files from which it was taken
# Empty tensors by which trainers say what the network predicts.
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"


def family(keys: Mapping[str, Any]) -> Family | None:
    """The family all of whose text encoders the file has."""
    for candidate in reversed(FAMILIES):
        prefixes = [tower.prefix for tower in candidate.towers.values()]
        if all(any(key.startswith(prefix) for key in keys) for prefix in prefixes):
            return candidate
    return None


def ignored(kind: Family) -> set[str]:
    """The keys of a file of this family that no module needs, each by its whole name."""
    names = _SCHEDULE | _COUNTERS | {V_MARKER, ZERO_SNR_MARKER}
    return names.union(*map(unused, kind.towers.values()))


def unused(tower: Tower) -> set[str]:
    """The keys of a text encoder that sampling does not need."""
    names = [tower.prefix + name for name in _UNUSED[tower.is_open_clip]]
    if tower.is_open_clip and not tower.is_projected:
        names.append(tower.prefix + "text_projection")
    return {*names, tower.prefix.rsplit(".", 2)[0] + ".logit_scale"}
