"""The small image that an upsampler is told, against torch's antialiased bicubic."""

import jax
import numpy as np
import pytest

from diffusion_jax.models import layers

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [32, 24, 7, 5])
def test_resized_images_are_torch_s(size):
    images = np.asarray(jax.random.normal(jax.random.key(0), (2, 8, 8, 3)))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images.copy()).permute(0, 3, 1, 2),
        size=(size, size),
        mode="bicubic",
        antialias=True,
    )
    ours = np.asarray(layers.bicubic(jax.numpy.asarray(images), size))
    np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)
