"""The autoencoder computes what diffusers computes, on the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusion_jax.models import tiling
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.weights.convert import load_torch

FIELDS = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")


@pytest.mark.parametrize("without", [(), FIELDS[:1], FIELDS[1:]])
def test_autoencoder_agrees_with_diffusers(without):
    fields = dict.fromkeys(without, False)
    torch.manual_seed(0)
    reference = diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=8,
        **fields,
    )
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    z = np.random.default_rng(1).standard_normal((2, 4, 6, 4)).astype(np.float32)

    vae = AutoencoderKL(channels=(16, 32, 32), norm_groups=8, **fields)
    like = jax.eval_shape(vae.init, jax.random.key(0), x)["params"]
    tensors = {name: t.numpy() for name, t in reference.state_dict().items()}
    variables = {"params": load_torch(tensors, like)}
    apply = jax.jit(vae.apply, static_argnames="method")
    mean, logvar = apply(variables, jnp.asarray(x), method="encode")
    image = apply(variables, jnp.asarray(z), method="decode")

    with torch.no_grad():
        posterior = reference.encode(torch.tensor(x).permute(0, 3, 1, 2)).latent_dist
        decoded = reference.decode(torch.tensor(z).permute(0, 3, 1, 2)).sample
    pairs = {
        "mean": (mean, posterior.mean),
        "logvar": (logvar, posterior.logvar),
        "image": (image, decoded),
    }
    for name, (value, expected) in pairs.items():
        expected = expected.permute(0, 2, 3, 1).numpy()
        difference = np.abs(np.asarray(value) - expected).max()
        print(f"autoencoder {name}: {difference:.1e}")
        assert difference < 1e-4
        assert np.abs(expected).max() > 0.1


def test_tiles_agree_with_those_of_diffusers():
    """Same size, overlap and ramp: the same image, but for two sorts of places.

    Where four tiles meet, diffusers blends with tiles that it has blended before; and
    behind the last whole tile it adds a smaller one, where ours ends with the image.
    """
    torch.manual_seed(0)
    reference = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    reference.enable_tiling()
    x = np.random.default_rng(0).uniform(-1, 1, (1, 28, 28, 3)).astype(np.float32)
    z = np.random.default_rng(1).standard_normal((1, 14, 14, 4)).astype(np.float32)
    vae = AutoencoderKL(channels=(8, 16), blocks_per_level=1, norm_groups=4)
    like = jax.eval_shape(vae.init, jax.random.key(0), x)["params"]
    tensors = {name: t.numpy() for name, t in reference.state_dict().items()}
    params = load_torch(tensors, like)
    with torch.no_grad():
        posterior = reference.encode(torch.tensor(x).permute(0, 3, 1, 2)).latent_dist
        decoded = reference.decode(torch.tensor(z).permute(0, 3, 1, 2)).sample
    tiles = dict(size=8, overlap=2)
    mean, _ = tiling.encode(vae, params, jnp.asarray(x), **tiles)
    image = tiling.decode(vae, params, jnp.asarray(z), **tiles)
    pairs = {"mean": (mean, posterior.mean), "image": (image, decoded)}
    for name, (value, expected) in pairs.items():
        expected = expected.permute(0, 2, 3, 1).numpy()
        scale = expected.shape[1] // 14
        difference = np.abs(np.asarray(value) - expected).max((0, 3))
        both = slice(6 * scale, 8 * scale)  # covered by two tiles
        meeting = difference[both, both].copy()
        difference[both, both] = 0
        assert difference[: 12 * scale, : 12 * scale].max() < 1e-4, name
        assert meeting.max() > 1e-3, name
