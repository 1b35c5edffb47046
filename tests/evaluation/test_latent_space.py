"""Principal components obey their laws; neighbourhoods and pictures show attributes."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation import latent_space


def points(count=50, width=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + 3


def test_all_components_reconstruct_every_point():
    for x in (points(), points(count=5, width=8)):
        pca = latent_space.fit_pca(x)
        back = latent_space.reconstruct(pca, latent_space.project(pca, x))
        np.testing.assert_allclose(back, x, atol=1e-10)


def test_components_are_orthonormal_and_coordinates_uncorrelated():
    x = points()
    pca = latent_space.fit_pca(x)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(8), atol=1e-12)
    covariance = np.cov(latent_space.project(pca, x).T)
    np.testing.assert_allclose(covariance, np.diag(pca.variance), atol=1e-10)
    assert (np.diff(pca.variance) <= 0).all()
    assert pca.explained.sum() == pytest.approx(1)
    assert pca.variance.sum() == pytest.approx(x.var(axis=0, ddof=1).sum())


def test_what_is_left_after_k_components_is_the_variance_of_the_rest():
    x = points()
    variance = latent_space.fit_pca(x).variance
    for k in range(1, 9):
        pca = latent_space.fit_pca(x, num_components=k)
        rest = x - latent_space.reconstruct(pca, latent_space.project(pca, x))
        np.testing.assert_allclose(
            (rest**2).sum() / (len(x) - 1), variance[k:].sum(), atol=1e-9
        )


def test_projecting_twice_is_projecting_once():
    x = points()
    pca = latent_space.fit_pca(x, num_components=3)
    z = latent_space.project(pca, x)
    again = latent_space.project(pca, latent_space.reconstruct(pca, z))
    np.testing.assert_allclose(again, z, atol=1e-12)


def test_components_do_not_depend_on_order_sign_or_place_of_the_points():
    x = points()
    pca = latent_space.fit_pca(x)
    order = np.random.default_rng(1).permutation(len(x))
    for other in (x[order], x + 100, 2 * x.mean(axis=0) - x):
        found = latent_space.fit_pca(other)
        np.testing.assert_allclose(found.components, pca.components, atol=1e-9)
    largest = np.abs(pca.components).argmax(axis=1)
    assert (pca.components[np.arange(8), largest] > 0).all()


def test_points_on_a_line_have_one_component():
    direction = np.array([3.0, 0.0, -4.0]) / 5
    x = np.linspace(-2, 5, 20)[:, None] * direction
    pca = latent_space.fit_pca(x)
    np.testing.assert_allclose(pca.components[0], -direction, atol=1e-12)
    np.testing.assert_allclose(pca.explained, [1, 0, 0], atol=1e-12)


def test_too_many_components_are_refused():
    with pytest.raises(ValueError, match="1 to 8 components, not 9"):
        latent_space.fit_pca(points(), num_components=9)


def clusters(per_cluster=20, width=16, gap=8.0, seed=0):
    """Images and texts of three attributes, on either side of a gap."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(3), per_cluster)
    centres = 3 * np.eye(3, width)[kinds]
    aside = gap * np.eye(width)[-1]
    noise = 0.3 * rng.normal(size=(2, len(kinds), width))
    attributes = [["circle", "square", "star"][kind] for kind in kinds]
    return centres + aside + noise[0], centres - aside + noise[1], attributes


def test_the_joint_view_shows_attributes_not_the_gap_between_modalities():
    images, texts, _ = clusters()
    centred = latent_space.joint_view(images, texts)
    np.testing.assert_allclose(centred.images.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(centred.texts.mean(axis=0), 0, atol=1e-9)
    assert centred.explained.sum() > 0.8  # three clusters span a plane
    raw = latent_space.joint_view(images, texts, center_each=False)
    assert raw.explained[0] > 0.8  # the gap is the first component
    assert abs(raw.images[:, 0].mean() - raw.texts[:, 0].mean()) > 1


def test_agreement_is_full_for_clusters_and_chance_for_noise():
    images, _, attributes = clusters()
    found = latent_space.attribute_agreement(images, attributes)
    assert found.neighbours == 1
    assert found.distance_within < found.distance_between
    assert found.chance == pytest.approx(19 / 59)
    noise = np.random.default_rng(0).normal(size=(600, 16))
    random = latent_space.attribute_agreement(noise, attributes * 10)
    assert random.neighbours == pytest.approx(random.chance, abs=0.08)
    assert random.distance_within == pytest.approx(random.distance_between, abs=0.02)


def test_distances_of_orthogonal_groups_are_zero_and_one():
    x = np.repeat(np.eye(3), 4, axis=0)
    found = latent_space.attribute_agreement(x, list("aaaabbbbcccc"))
    assert found == pytest.approx((1, 3 / 11, 0, 1))


def test_equal_captions_do_not_vouch_for_each_other():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(100, 16)), 2, axis=0)  # every caption twice
    captions = [str(i // 2) for i in range(200)]
    attributes = ["ab"[(i // 2) % 2] for i in range(200)]
    assert latent_space.attribute_agreement(x, attributes).neighbours == 1
    found = latent_space.attribute_agreement(x, attributes, captions=captions)
    assert found.neighbours == pytest.approx(0.5, abs=0.2)
    assert found.chance == pytest.approx(98 / 198)


def test_one_attribute_alone_is_refused():
    with pytest.raises(ValueError, match="pairs that do not"):
        latent_space.attribute_agreement(points(), ["red"] * 50)


@pytest.fixture
def scene():
    images, texts, attributes = clusters(per_cluster=6)
    captions = [
        f"a {name}, no. {i}, for $^$ {{x}}" for i, name in enumerate(attributes)
    ]
    return latent_space.joint_view(images, texts), captions, attributes


def test_the_same_figure_gives_the_same_bytes_and_carries_its_metadata(tmp_path, scene):
    for name in ("a.png", "b.png"):
        latent_space.plot_latent_space(
            *scene, tmp_path / name, metadata={"step": "7"}, num_labels=5
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["step"] == "7" and image.width >= 900


def test_thumbnails_show_the_images(tmp_path, scene):
    count = len(scene[1])
    thumbnails = np.tile(np.float32([1, -1, 1]), (count, 8, 8, 1))
    magenta = []
    for name, pictures in (("dots.png", None), ("pictures.png", thumbnails)):
        latent_space.plot_latent_space(*scene, tmp_path / name, thumbnails=pictures)
        with Image.open(tmp_path / name) as image:
            pixels = np.asarray(image)
        magenta.append((pixels == [255, 0, 255]).all(axis=-1).sum())
    assert magenta[0] == 0 and magenta[1] > 1000


def test_labels_cover_every_attribute_before_any_twice():
    rng = np.random.default_rng(0)
    attributes = ["a"] * 90 + ["b"] * 8 + ["c"] * 2
    captions = [str(i) for i in range(100)]
    chosen = latent_space._spread_over(
        rng.normal(size=(100, 2)), captions, attributes, 6
    )
    assert sorted(attributes[i] for i in chosen) == list("aabbcc")
    same = latent_space._spread_over(
        rng.normal(size=(100, 2)), ["x"] * 100, attributes, 6
    )
    assert len(same) == 1  # one label for one caption


def test_figures_leave_no_trace_in_matplotlib(tmp_path, scene):
    before = dict(matplotlib.rcParams), matplotlib.rcParams._get_backend_or_none()
    latent_space.plot_latent_space(*scene, tmp_path / "x.png")
    after = dict(matplotlib.rcParams), matplotlib.rcParams._get_backend_or_none()
    assert before == after
