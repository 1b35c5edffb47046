"""Tables of betas against those of diffusers' schedulers, which keep them in float32."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.schedulers import scheduling_ddpm

from diffusion_jax.diffusion import schedules

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
WHOLE = jnp.arange(1, 1001.0)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("sigmoid", "sigmoid"), ("laplace", "laplace"), ("cosine", "squaredcos_cap_v2")],
)
def test_betas(name, theirs):
    ends = dict(beta_start=0.0001, beta_end=0.02)
    scheduler = diffusers.DDPMScheduler(beta_schedule=theirs, **ends)
    alpha2 = scheduler.alphas_cumprod.numpy()
    level = schedules.Discrete(name, **ends)(WHOLE)
    assert_allclose(level.alpha**2, alpha2, rtol=2e-4, atol=1e-9)


def test_exponential_and_trained_betas():
    betas = scheduling_ddpm.betas_for_alpha_bar(1000, alpha_transform_type="exp")
    scheduler = diffusers.DDPMScheduler(trained_betas=betas.numpy())
    alpha2 = scheduler.alphas_cumprod.numpy()
    trained = schedules.Discrete(trained_betas=tuple(betas.tolist()))
    for schedule in (schedules.Discrete("exp"), trained):
        level = schedule(WHOLE)
        assert_allclose(level.alpha**2, alpha2, rtol=2e-4)


def test_cogvideox():
    scheduler = diffusers.CogVideoXDDIMScheduler(
        snr_shift_scale=3.0, rescale_betas_zero_snr=True
    )
    bare = schedules.Discrete(beta_start=0.00085, beta_end=0.012)
    shifted = schedules.ShiftedSNR(bare, shift=-float(np.log(3)))
    level = schedules.ZeroTerminalSNR(shifted)(WHOLE)
    alpha2 = scheduler.alphas_cumprod.numpy()
    assert_allclose(level.alpha**2, alpha2, rtol=1e-3, atol=1e-9)
