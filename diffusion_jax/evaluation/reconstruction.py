"""How near a reconstruction is to its original, for images in [-1, 1].

PSNR: 10 log10(peak^2 / mean squared error), where peak = 2 is the range of the values.
SSIM: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment:
from error visibility to structural similarity", IEEE TIP 13(4), 2004, eq. 13.

Both are means over images of the value per image, so that the mean over batches of equal
size is the value of the set. Neither clips: reconstructions that leave [-1, 1] and are
clipped when shown should be clipped first.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array | np.ndarray, "B H W C"]

WINDOW, WINDOW_STD = 11, 1.5  # pixels (section III-B)
K1, K2 = 0.01, 0.03


def psnr(originals: Images, reconstructions: Images) -> Float[Array, ""]:
    """Mean over images of the PSNR of each, in dB; infinite if any image is exact.

    Never less than the PSNR of the mean squared error over the set (Jensen).
    """
    return jnp.mean(psnr_of_each(originals, reconstructions))


def psnr_of_each(originals: Images, reconstructions: Images) -> Float[Array, "B"]:
    error = jnp.asarray(originals, jnp.float32) - jnp.asarray(
        reconstructions, jnp.float32
    )
    return 10 * jnp.log10(4 / jnp.mean(error**2, axis=(1, 2, 3)))


def ssim(originals: Images, reconstructions: Images) -> Float[Array, ""]:
    """Mean over images of SSIM, 1 for equal images.

    As in the paper: an 11 x 11 Gaussian window of standard deviation 1.5, only where it
    lies inside the image; every channel on its own, then their mean.
    """
    if min(originals.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM needs images of {WINDOW} pixels or more, got {originals.shape}"
        )
    # The luminance term divides by the mean, so values are counted from black: [0, 1].
    x = jnp.asarray(originals, jnp.float32) / 2 + 0.5
    y = jnp.asarray(reconstructions, jnp.float32) / 2 + 0.5
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _local_means(
        jnp.stack([x, y, x * x, y * y, x * y])
    )
    var_x, var_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * covariance + K2**2) / (var_x + var_y + K2**2)
    return jnp.mean(luminance * structure)


def _local_means(x: Float[Array, "N B H W C"]) -> Float[Array, "N B h w C"]:
    """The window is a product of two, so each is one banded matrix."""
    down, across = (jnp.asarray(_band(size)) for size in x.shape[2:4])
    # Not the reduced precision of some matrix units: variances are small differences.
    return jnp.einsum("hH,NBHWC,wW->NBhwC", down, x, across, precision="highest")


def _band(size: int) -> Float[np.ndarray, "positions size"]:
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-0.5 * (offsets / WINDOW_STD) ** 2)
    window = np.float32(window / window.sum())
    positions = range(size - WINDOW + 1)
    return np.stack([np.pad(window, (i, size - WINDOW - i)) for i in positions])
