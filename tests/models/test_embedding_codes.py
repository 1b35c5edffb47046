"""Codes of embeddings: what the round trip loses, and that nothing else is lost."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import embedding_codes

RNG = np.random.default_rng(0)
WIDTH, RANK = 20, 6
# Six directions carry nearly everything, as in a CLIP that was trained with SAM.
SPREAD = np.array([1.0, 0.7, 0.5, 0.3, 0.2, 0.1] + [0.005] * (WIDTH - RANK))
TURN, _ = np.linalg.qr(RNG.standard_normal((WIDTH, WIDTH)))
IMAGE = ((RNG.standard_normal((4000, WIDTH)) * SPREAD) @ TURN.T + 0.3).astype("float32")
TEXT = RNG.standard_normal((4000, WIDTH)).astype("float32")
VARIANCE = np.square(IMAGE - IMAGE.mean(axis=0)).sum(axis=1).mean()


def fit(**options):
    return embedding_codes.fit(IMAGE, TEXT, **options)


def lost(codes):
    """The share of the variance that the round trip loses."""
    back = embedding_codes.decode(codes, encode(codes, IMAGE))
    return np.square(np.asarray(back) - IMAGE).sum(axis=1).mean() / VARIANCE


def encode(codes, z):
    return embedding_codes.encode(codes, jnp.asarray(z))


def project(codes, z):
    return np.asarray(embedding_codes.project(codes, jnp.asarray(z)), np.float64)


@pytest.mark.parametrize("explained", [0.9, 0.99])
def test_no_more_is_lost_than_was_allowed_and_one_less_would_lose_more(explained):
    codes = fit(explained=explained)
    num_dims = embedding_codes.num_dims(codes)
    assert 1 < num_dims <= RANK
    assert lost(codes) < 1 - explained
    assert lost(fit(num_dims=num_dims - 1)) > 1 - explained


def test_with_all_components_only_the_buckets_lose():
    """Uniform within a bucket: a twelfth of its width squared for every component."""
    coarse = lost(fit(num_dims=WIDTH, num_buckets=16))
    fine = lost(fit(num_dims=WIDTH, num_buckets=32))
    widths = np.asarray(
        embedding_codes.bucket_width(fit(num_dims=WIDTH, num_buckets=32))
    )
    assert fine == pytest.approx(np.sum(widths**2) / 12 / VARIANCE, rel=0.05)
    assert coarse / fine == pytest.approx(4, rel=0.1)
    assert lost(fit(num_dims=WIDTH)) < 1e-5


def test_components_are_uncorrelated_and_ordered_by_their_variance():
    codes = fit(num_dims=RANK)
    values = project(codes, IMAGE)
    covariance = np.cov(values.T)
    np.testing.assert_allclose(
        covariance - np.diag(np.diag(covariance)), 0, atol=1e-5 * covariance[0, 0]
    )
    assert (np.diff(np.diag(covariance)) < 0).all()


def test_no_component_of_the_data_is_off_by_more_than_half_a_bucket():
    codes = fit(num_dims=RANK, num_buckets=64)
    values = project(codes, IMAGE)
    back = embedding_codes.decode(codes, encode(codes, IMAGE))
    off = np.abs(project(codes, back) - values)
    width = np.asarray(embedding_codes.bucket_width(codes))
    assert (off <= 0.5001 * width + 1e-5).all()
    assert (off.max(axis=0) > 0.45 * width).all()


def test_the_first_and_the_last_bucket_are_those_of_the_extremes_and_beyond():
    codes = fit(num_dims=RANK, num_buckets=64)
    buckets = np.asarray(encode(codes, IMAGE))
    np.testing.assert_array_equal(buckets.min(axis=0), 0)
    np.testing.assert_array_equal(buckets.max(axis=0), 63)
    far = np.asarray(
        encode(codes, IMAGE.mean(axis=0) + 100 * (IMAGE - IMAGE.mean(axis=0)))
    )
    assert far.min() == 0 and far.max() == 63


def test_decoded_codes_are_encoded_to_themselves():
    codes = fit(num_dims=RANK, num_buckets=64)
    buckets = RNG.integers(0, 64, (100, RANK)).astype(np.int32)
    np.testing.assert_array_equal(
        encode(codes, embedding_codes.decode(codes, jnp.asarray(buckets))), buckets
    )


def test_buckets_of_the_dot_product_have_equal_mass_and_its_order():
    codes = fit(num_dot_buckets=10)
    buckets = np.asarray(
        embedding_codes.dot_bucket(codes, jnp.asarray(IMAGE), jnp.asarray(TEXT))
    )
    counts = np.bincount(buckets, minlength=10)
    np.testing.assert_allclose(counts, len(IMAGE) / 10, atol=2)
    order = np.argsort(np.sum(IMAGE * TEXT, axis=1))
    assert (np.diff(buckets[order]) >= 0).all()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (dict(num_dims=21), "num_dims=21 of embeddings of 20"),
        (dict(num_dims=0), "num_dims=0"),
        (dict(explained=1.5), "explained=1.5"),
        (dict(num_buckets=1), "num_buckets=1, .*; 2 and 1 at least"),
        (dict(num_dot_buckets=0), "num_dot_buckets=0; 2 and 1 at least"),
    ],
)
def test_impossible_codes_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        fit(**options)


def test_what_does_not_fit_is_refused():
    codes = fit(num_dims=RANK, num_buckets=64)
    with pytest.raises(ValueError, match="pairs"):
        embedding_codes.fit(IMAGE, TEXT[:5])
    with pytest.raises(ValueError, match="width 3; the codes are of 20"):
        encode(codes, IMAGE[:, :3])
    with pytest.raises(ValueError, match="codes of 6 components, 64 buckets"):
        embedding_codes.check(codes, 6, 1024, 100)
    embedding_codes.check(codes, 6, 64, 100)
