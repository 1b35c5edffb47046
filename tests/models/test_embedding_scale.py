"""Every scale can be undone, and gives the spread that it promises."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import embedding_scale
from diffusion_jax.models.embedding_scale import EMBEDDING_SCALES

RNG = np.random.default_rng(0)
ANY = (RNG.standard_normal((500, 24)) * RNG.uniform(0.1, 3, 24) + 2).astype("float32")
UNIT = jnp.asarray(ANY / np.linalg.norm(ANY, axis=1, keepdims=True))
ANY = jnp.asarray(ANY)


@pytest.mark.parametrize("name", EMBEDDING_SCALES)
def test_restoring_undoes_standardizing(name):
    scale = EMBEDDING_SCALES[name](ANY)
    x = embedding_scale.standardize(scale, ANY)
    assert np.abs(np.asarray(x) - ANY).max() > 0.5
    np.testing.assert_allclose(embedding_scale.restore(scale, x), ANY, atol=1e-5)


def test_the_papers_factor_gives_unit_vectors_of_1024_the_spread_of_pixels():
    z = RNG.standard_normal((50, 1024)).astype("float32")
    z = jnp.asarray(z / np.linalg.norm(z, axis=1, keepdims=True))
    x = embedding_scale.standardize(EMBEDDING_SCALES["paper"](z), z)
    np.testing.assert_allclose(x, 17.2 * z, rtol=1e-5)
    # of uniform numbers in [-1, 1] it is 0.577, of natural images a little less
    assert np.std(x) == pytest.approx(0.54, abs=0.005)


def test_sqrt_dim_gives_unit_vectors_mean_square_one():
    x = embedding_scale.standardize(EMBEDDING_SCALES["sqrt_dim"](UNIT), UNIT)
    np.testing.assert_allclose(np.mean(np.asarray(x) ** 2, axis=1), 1, rtol=1e-5)


def test_statistics_are_those_of_every_number():
    x = embedding_scale.standardize(EMBEDDING_SCALES["statistics"](ANY), ANY)
    np.testing.assert_allclose(np.mean(x, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(x, axis=0), 1, rtol=1e-5)


def test_a_number_that_never_varies_stays_finite():
    still = ANY.at[:, 3].set(0.25)
    scale = EMBEDDING_SCALES["statistics"](still)
    x = np.asarray(embedding_scale.standardize(scale, still + 1e-4))
    assert np.isfinite(x).all() and np.abs(x[:, 3]).max() < 1


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="width 5; their scale is of 24"):
        embedding_scale.standardize(EMBEDDING_SCALES["paper"](ANY), ANY[:, :5])
    with pytest.raises(ValueError, match="statistics of 1 embeddings"):
        EMBEDDING_SCALES["statistics"](ANY[:1])
