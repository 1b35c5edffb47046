"""DDIM (Song et al., 2021; arXiv:2010.02502) and ancestral sampling, its eta = 1.

For any alpha and sigma the posterior q(x_there | x_here, x0) has standard deviation
sigma_there * sqrt(1 - snr_here / snr_there) (Kingma et al., 2021, eq. 25).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.denoiser import Denoiser
from diffusion_jax.diffusion.process import NoiseLevel, Prediction, Real
from diffusion_jax.diffusion.samplers.integrate import Keys, integrate, normal_like
from diffusion_jax.diffusion.schedules import Schedule


def ddim(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    eta: Real | Float[Array, ""] = 0.0,
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """DDIM, eq. 12 and 16: eta = 0 is deterministic, eta = 1 is ancestral."""

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        renewed = eta**2 * renewed_share(here, there)  # of the variance of the noise
        kept = jnp.sqrt(kept_share(here, there, eta)) * pred.eps
        noise = kept + jnp.sqrt(renewed) * normal_like(key, x)
        return there.alpha * pred.x0 + there.sigma * noise, pred.x0

    return integrate(step, x, key, schedule(ts))


def ddpm(
    key: Keys,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *d"],
    ts: Float[Array, "steps_plus_1"],
    *,
    variance: str = "posterior",
) -> tuple[Float[Array, "B *d"], Float[Array, "steps B *d"]]:
    """Ancestral sampling (Ho et al., 2020, algorithm 2), the mean of eq. 7.

    `variance` is one of VARIANCES; posterior and beta are the two of section 3.2, with
    beta the variance of q(x_here | x_there), also where the grid skips steps. The
    learned ones need a denoiser made with learned_variance=True. A step to clean data
    adds no noise.
    """
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; one of {sorted(VARIANCES)}")

    def step(
        x: Float[Array, "B *d"], key: Keys, here: NoiseLevel, there: NoiseLevel
    ) -> tuple[Float[Array, "B *d"], Float[Array, "B *d"]]:
        pred = denoise(x, here)
        kept = _kept(here, there) * pred.eps
        std = jnp.where(there.sigma > 0, VARIANCES[variance](pred, here, there), 0.0)
        noise = std * normal_like(key, x)
        return there.alpha * pred.x0 + there.sigma * kept + noise, pred.x0

    return integrate(step, x, key, schedule(ts))


def renewed_share(here: NoiseLevel, there: NoiseLevel) -> Float[Array, "*b"]:
    """1 - snr_here / snr_there: how much of sigma_there**2 an ancestral step redraws."""
    kept = _kept(here, there)
    return (1 - kept) * (1 + kept)


def kept_share(
    here: NoiseLevel, there: NoiseLevel, eta: Real | Float[Array, ""] = 1.0
) -> Float[Array, "*b"]:
    """1 - eta**2 * renewed_share, which from near pure noise cancels in float32."""
    kept = (1 - eta) * (1 + eta) + (eta * _kept(here, there)) ** 2
    return jnp.maximum(kept, 0.0)


def _kept(here: NoiseLevel, there: NoiseLevel) -> Float[Array, "*b"]:
    return (here.alpha * there.sigma) / (there.alpha * here.sigma)


def renoise(
    x: Float[Array, "B *d"],
    noise: Float[Array, "B *d"],
    here: NoiseLevel,
    there: NoiseLevel,
) -> Float[Array, "B *d"]:
    """From x at `here` to a draw of q(x_there | x_here), where there is more noise.

    Kingma et al. (2021), appendix A.1; arXiv:2107.00630. Needs alpha > 0 at `here`.
    """
    ratio = there.alpha / here.alpha
    kept = ratio * here.sigma
    variance = (there.sigma - kept) * (there.sigma + kept)
    return ratio * x + jnp.sqrt(jnp.maximum(variance, 0.0)) * noise


# ---- the reverse variance: (prediction, here, there) -> standard deviation ----------


def posterior(pred: Prediction, here: NoiseLevel, there: NoiseLevel) -> Array:
    """That of q(x_there | x_here, x0), right if the data are one point; fixed_small."""
    return jnp.sqrt(renewed_share(here, there)) * there.sigma


def beta(pred: Prediction, here: NoiseLevel, there: NoiseLevel) -> Array:
    """That of q(x_here | x_there), right if the data are N(0, 1); fixed_large."""
    return jnp.sqrt(renewed_share(here, there)) * here.sigma


def learned_range(pred: Prediction, here: NoiseLevel, there: NoiseLevel) -> Array:
    """Between the two in the logarithm: the network says -1 for posterior, 1 for beta.

    Nichol and Dhariwal (2021), eq. 15; arXiv:2102.09672. The decoder of unCLIP.
    """
    share = (_learned(pred) + 1) / 2
    cleaner = jnp.where(there.sigma > 0, there.sigma, here.sigma)
    return posterior(pred, here, there) * (here.sigma / cleaner) ** share


def learned(pred: Prediction, here: NoiseLevel, there: NoiseLevel) -> Array:
    """The network's own: its extra channels are the variance."""
    return jnp.sqrt(jnp.maximum(_learned(pred), 0.0))


def learned_log(pred: Prediction, here: NoiseLevel, there: NoiseLevel) -> Array:
    """The network's own: its extra channels are the logarithm of the variance."""
    return jnp.exp(_learned(pred) / 2)


def _learned(pred: Prediction) -> Float[Array, "B *d"]:
    if pred.variance is None:
        raise ValueError(
            "a learned variance needs a denoiser whose prediction has one: "
            "make it with from_network(..., learned_variance=True)"
        )
    return pred.variance


VARIANCES = {
    "posterior": posterior,
    "beta": beta,
    "learned_range": learned_range,
    "learned": learned,
    "learned_log": learned_log,
}
