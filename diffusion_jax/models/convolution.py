"""Convolutions of NHWC maps with HWIO kernels, each in the form that is fast.

Every form is the same function; which is chosen depends on shapes and on the platform.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FEW_PIXELS = 4  # at most so many: XLA's convolution on a CPU is slow, products are not


def platform() -> str:
    """What programs are traced for: "cpu", "gpu" or "tpu"."""
    device = jax.config.jax_default_device
    name = getattr(device, "platform", device) or jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def convolve(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "N N C O"],
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
) -> Float[Array, "B P Q O"]:
    """A convolution, as a matrix product where patches do not overlap."""
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    if padding == (0, 0) and stride == size:
        return tiles(x, size) @ flat(kernel)
    few = height * width <= FEW_PIXELS and platform() == "cpu"
    if few and stride == 1 and sum(padding) == size - 1:
        return patches(x, size, padding) @ flat(kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def flat(kernel: Float[Array, "N N C O"]) -> Float[Array, "K O"]:
    """The kernel as the matrix that multiplies a patch."""
    return kernel.reshape(-1, kernel.shape[-1])


def tiles(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B P Q K"]:
    """Patches side by side; rows and columns that fill no patch are left out."""
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size]
    x = x.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
    return x.reshape(batch, rows, columns, size * size * channels)


def patches(
    x: Float[Array, "B H W C"], size: int, padding: tuple[int, int]
) -> Float[Array, "B H W K"]:
    """The patch around every pixel."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    shifts = [
        x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)
    ]
    return jnp.concatenate(shifts, axis=-1)


def repeat_pixels(x: Float[Array, "B H W C"]) -> Float[Array, "B P Q C"]:
    """Every pixel as a 2x2 square."""
    batch, height, width, channels = x.shape
    square = (batch, height, 2, width, 2, channels)
    x = jnp.broadcast_to(x[:, :, None, :, None, :], square)
    return x.reshape(batch, 2 * height, 2 * width, channels)


def repeat_and_convolve(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "3 3 C O"],
    size: tuple[int, int] | None = None,
) -> Float[Array, "B P Q O"]:
    """`convolve(repeat_pixels(x), kernel)`, computed in x's dtype.

    `size` cuts the repeated map first, by a pixel where the map to match is odd.

    The three rows of a patch see only two rows of x, so that each of the four places
    in a square is a 2x2 convolution of x: 16 products per pixel of x instead of 36.
    """
    batch, height, width, _ = x.shape
    doubled = (2 * height, 2 * width)
    size = doubled if size is None else size
    if platform() != "cpu" or size != doubled:
        cut = repeat_pixels(x)[:, : size[0], : size[1]]
        return convolve(cut, kernel.astype(x.dtype))
    rows = []
    for row, of_rows in enumerate(halves(kernel, 0)):
        places = []
        for column, small in enumerate(halves(of_rows, 1)):
            padding = ((1 - row, row), (1 - column, column))
            place = jax.lax.conv_general_dilated(
                x,
                small.astype(x.dtype),
                (1, 1),
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            places.append(place)
        rows.append(jnp.stack(places, axis=3))
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def halves(kernel: Array, axis: int) -> tuple[Array, Array]:
    """Along an axis, the kernels that the first and the second pixel of a pair see."""
    before, here, after = jnp.split(kernel, 3, axis)
    return (
        jnp.concatenate([before, here + after], axis),
        jnp.concatenate([before + here, after], axis),
    )


def check_halves(x: Float[Array, "B H W C"], times: int) -> None:
    """Raises unless both sides can be halved so many times."""
    height, width = x.shape[1:3]
    if height % 2**times or width % 2**times:
        raise ValueError(f"height {height}, width {width}: not multiples of {2**times}")
