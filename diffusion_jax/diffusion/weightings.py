"""Weightings: snr -> weight of the squared x0 error, whatever the network predicts.

Papers weight the error of what their network outputs. With x = alpha * x0 + sigma * eps,
an error e of x0 is, at the same x,

    snr * e**2               in eps,
    (snr + 1) * e**2         in v, where alpha**2 + sigma**2 = 1,
    (sqrt(snr) + 1)**2 * e**2    in eps - x0, where alpha + sigma = 1,

so that a published factor is multiplied by what stands before e**2 (Kingma and Gao, 2023,
arXiv:2303.00848). Some papers give the weight as a density over logsnr: the loss then
also depends on how often each logsnr is drawn (see `time_samplers.drawn`, over="logsnr").
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.diffusion.process import Real

Weighting = Callable[[Float[Array, "*b"]], Float[Array, "*b"]]


# ---- mean squared errors ------------------------------------------------------------


def x0(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean squared error of x0."""
    return jnp.ones_like(snr)


def eps(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean squared error of eps: L_simple of Ho et al. (2020), eq. 14."""
    return snr


def v(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean squared error of v (Salimans and Ho, 2022, section 4; arXiv:2202.00512)."""
    return snr + 1


def flow(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean squared error of eps - x0 on a rectified flow, where sigma = 1 - alpha."""
    return (jnp.sqrt(snr) + 1) ** 2


def edm(snr: Float[Array, "*b"], *, sigma_data: Real = 0.5) -> Float[Array, "*b"]:
    """snr + 1 / sigma_data**2 (Karras et al., 2022, table 1, arXiv:2206.00364).

    The mean squared error of what the network outputs behind their c_skip and c_out.
    """
    return snr + 1 / sigma_data**2


# ---- truncated at one end -----------------------------------------------------------


def truncated_snr(snr: Float[Array, "*b"], *, floor: Real = 1.0) -> Float[Array, "*b"]:
    """max(snr, 1) of the x0 error (Salimans and Ho, 2022, section 4; arXiv:2202.00512).

    Hang et al. (2023) call it max-SNR.
    """
    return jnp.maximum(snr, floor)


def min_snr(snr: Float[Array, "*b"], *, gamma: Real = 5.0) -> Float[Array, "*b"]:
    """min(snr, gamma) of the x0 error (Hang et al., 2023, section 3.4; arXiv:2303.09556).

    For eps it is their min(snr, gamma) / snr, for v min(snr, gamma) / (snr + 1).
    """
    return jnp.minimum(snr, gamma)


def soft_min_snr(snr: Float[Array, "*b"], *, gamma: Real = 4.0) -> Float[Array, "*b"]:
    """snr * gamma / (snr + gamma) of the x0 error (Crowson et al., 2024; arXiv:2401.11605).

    Half the harmonic mean, where `min_snr` has the minimum. With gamma = 1 /
    sigma_data**2, the 4 of the default, it is 1 / (sigma**2 + sigma_data**2) for alpha = 1.
    """
    return snr * (gamma / (snr + gamma))


def sigmoid(snr: Float[Array, "*b"], *, bias: Real = -3.0) -> Float[Array, "*b"]:
    """sigmoid(bias - logsnr) of the eps error (Kingma and Gao, 2023; arXiv:2303.00848).

    They and Hoogeboom et al. (2024, arXiv:2410.19324), who tune the bias to the
    resolution, integrate it over logsnr: draw the times over="logsnr" for their loss, but
    for a factor 1/2. Of the x0 error it is exp(bias) * sigmoid(logsnr - bias), the soft
    min-SNR weight of gamma = exp(bias).
    """
    return soft_min_snr(snr, gamma=math.exp(bias))


# ---- other factors of the eps error -------------------------------------------------


def p2(
    snr: Float[Array, "*b"], *, gamma: Real = 1.0, k: Real = 1.0
) -> Float[Array, "*b"]:
    """1 / (k + snr)**gamma of the eps error (Choi et al., 2022; arXiv:2204.00227)."""
    return snr * (k + snr) ** -gamma


def debiased(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1 / sqrt(snr) of the eps error (Yu et al., 2023; arXiv:2310.08442)."""
    return jnp.sqrt(snr)


# ---- other factors of the flow's error ----------------------------------------------


def cosmap(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """2 / (pi * (alpha**2 + sigma**2)) of the flow's error (Esser et al., 2024, eq. 21).

    The density of `time_samplers.cosmap`, as a weight for uniform times; on a flow
    alpha**2 + sigma**2 = (snr + 1) / (sqrt(snr) + 1)**2. arXiv:2403.03206.
    """
    return 2 / math.pi * flow(snr) * (flow(snr) / (snr + 1))


def sigma_sqrt(snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1 / sigma**2 of the flow's error, as diffusers' scripts for SD3 name it."""
    return flow(snr) ** 2


WEIGHTINGS = {
    "x0": x0,
    "uniform": x0,  # as the same weight is also called
    "eps": eps,
    "snr": eps,
    "v": v,
    "flow": flow,
    "edm": edm,
    "truncated_snr": truncated_snr,
    "max_snr": truncated_snr,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "sigmoid": sigmoid,
    "p2": p2,
    "debiased": debiased,
    "cosmap": cosmap,
    "sigma_sqrt": sigma_sqrt,
}
