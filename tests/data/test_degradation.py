"""Degradations: seeded, never moving a picture, and worse the stronger they are."""

import functools

import jax
import numpy as np
import pytest

from diffusion_jax.data import degradation, images, scenes

RNG = np.random.default_rng
COLOUR = np.array([0.7, -0.2, 0.1], np.float32)
SIDE, TIMES = 64, 4
QUIET = dict(noise=(0, 0), quality=(95, 95))
KINDS = {
    "none": degradation.none,
    "blur": functools.partial(degradation.blur, probability=1.0),
    "bsr": functools.partial(degradation.bsr, **QUIET),
}


def picture(seed=0, side=SIDE):
    scene = scenes.sample(RNG(seed))
    return images.to_float(scenes.render([scene], image_size=side)[0])


def ramp(side=SIDE):
    """Grey that rises by as much per pixel to the right as half of it downwards."""
    right, down = np.meshgrid(np.arange(side), np.arange(side))
    grey = (right + down / 2 - 0.75 * (side - 1)) / side
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)


def distance(first, second):
    return float(np.mean((first - second) ** 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [1, 2, 4])
def test_one_colour_is_left_as_it_is(kind, times):
    image = np.broadcast_to(COLOUR, (SIDE, SIDE, 3)).astype(np.float32)
    for seed in range(4):
        low = KINDS[kind](image, times, RNG(seed))
        assert low.shape == (SIDE // times, SIDE // times, 3)
        assert low.dtype == np.float32
        # JPEG's colours are whole 255ths, of brightness and two differences
        tolerance = 0.02 if kind == "bsr" else 1e-5
        np.testing.assert_allclose(
            low, np.broadcast_to(COLOUR, low.shape), atol=tolerance
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [2, 4])
def test_what_is_shown_stays_where_it_is(kind, times):
    """A ramp is its own blur, so an error anywhere inside would be a shift."""
    image = ramp(64 * times)
    straight = degradation.shrink(image, times)
    inner = slice(23, -23)  # where no border reaches
    slope = straight[8, 9, 0] - straight[8, 8, 0]
    for seed in range(6):
        low = KINDS[kind](image, times, RNG(seed))
        error = (low - straight)[inner, inner]
        assert abs(error.mean()) < 0.1 * slope, seed
        assert np.abs(error).max() < 0.2 * slope, seed


@pytest.mark.parametrize("name", sorted(degradation.DEGRADATIONS))
def test_the_generator_decides_everything(name):
    degrade = degradation.DEGRADATIONS[name]
    image = picture()
    before = image.copy()
    first, again = (degrade(image, TIMES, RNG(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, before)
    others = [degrade(image, TIMES, RNG(seed)) for seed in range(8)]
    assert any((first != other).any() for other in others) == (name != "none")


def test_bsr_takes_its_steps_in_any_order(monkeypatch):
    taken = []

    def watched(name):
        step = getattr(degradation, name)

        def watch(*args, **kwargs):
            taken[-1].append(name)
            return step(*args, **kwargs)

        return watch

    names = (
        "blur_isotropic",
        "blur_anisotropic",
        "downsample",
        "add_noise",
        "compress",
    )
    for name in names:
        monkeypatch.setattr(degradation, name, watched(name))
    for seed in range(40):
        taken.append([])
        low = degradation.bsr(picture(side=32), 4, RNG(seed))
        assert low.shape == (8, 8, 3)
    assert all(order[-1] == "compress" for order in taken)
    assert all(set(order) == set(names) for order in taken)
    halved = [order.count("downsample") == 2 for order in taken]
    assert 0 < sum(halved) < 20
    for name in names[:4]:
        places = {
            order.index(name) for order in taken if order.count("downsample") == 1
        }
        assert {0, 3} <= places


def test_blurs_as_often_as_asked():
    image = picture()
    sharp = degradation.none(image, TIMES, RNG(0))
    rng = RNG(0)
    for probability, counts in ((0.0, {0}), (0.5, range(60, 140)), (1.0, {200})):
        blur = functools.partial(degradation.blur, probability=probability)
        lows = [blur(image, TIMES, rng) for _ in range(200)]
        assert sum((low != sharp).any() for low in lows) in counts


def test_the_blur_is_the_separable_gaussian():
    edge = np.exp(-1 / (2 * 0.6**2))
    line = np.array([edge, 1, edge]) / (1 + 2 * edge)
    kernel = degradation.gaussian(3, 0.36 * np.eye(2))
    np.testing.assert_allclose(kernel, np.outer(line, line), rtol=1e-12)
    point = np.zeros((9, 9, 3), np.float32)
    point[4, 4] = 1
    spread = degradation.convolve(point, kernel)
    np.testing.assert_allclose(spread[3:6, 3:6, 0], kernel, atol=1e-6)
    assert abs(spread.sum() - 3) < 1e-5


def test_a_turned_gaussian_has_the_covariance_that_it_is_given():
    covariance = np.array([[2.0, 0.8], [0.8, 1.0]])
    kernel = degradation.gaussian(21, covariance)
    axis = np.arange(21) - 10
    right, down = np.meshgrid(axis, axis)
    moments = [[np.sum(kernel * a * b) for b in (right, down)] for a in (right, down)]
    np.testing.assert_allclose(moments, covariance, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        [dict(width=w, **QUIET) for w in (0.05, 0.5, 2.0)],
        [dict(noise=(n, n), width=0.05, quality=(95, 95)) for n in (0, 15, 60)],
        [dict(quality=(q, q), width=0.05, noise=(0, 0)) for q in (95, 30, 5)],
    ],
    ids=["width", "noise", "quality"],
)
def test_stronger_is_worse_on_average(options):
    pictures = [picture(seed) for seed in range(12)]
    errors = []
    for strength in options:
        pairs = [
            (
                degradation.bsr(image, 2, RNG(seed), **strength),
                degradation.shrink(image, 2),
            )
            for seed, image in enumerate(pictures)
        ]
        errors.append(np.mean([distance(*pair) for pair in pairs]))
    assert errors == sorted(errors)
    assert errors[-1] > 1.2 * errors[0]


def test_noise_has_the_level_and_the_kinds_of_the_paper():
    grey = np.zeros((48, 48, 3), np.float32)
    rng = RNG(0)
    stds, kinds = [], {"grey": 0, "independent": 0, "correlated": 0}
    for _ in range(200):
        noise = degradation.add_noise(grey, rng, levels=(10, 10)).reshape(-1, 3)
        if (noise[:, 0] == noise[:, 1]).all():
            kinds["grey"] += 1
            stds.append(noise[:, 0].std())
        elif np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.1 and (
            np.ptp(noise.std(axis=0)) < 0.08 * noise.std()
        ):
            kinds["independent"] += 1
            stds.append(noise.std())
        else:
            kinds["correlated"] += 1
            assert noise.std() < 10 / 127.5
    np.testing.assert_allclose(stds, 10 / 127.5, rtol=0.08)
    np.testing.assert_allclose(list(kinds.values()), (80, 80, 40), atol=25)


@pytest.mark.parametrize("times", [2, 3, 4])
def test_nearest_takes_the_centres(times):
    """Where a centre lies between pixels, a ramp shows that it is interpolated."""
    image = ramp(12 * times)
    blocks = image.reshape(12, times, 12, times, 3).mean((1, 3))
    np.testing.assert_allclose(degradation.nearest(image, times), blocks, atol=1e-6)
    if times == 3:
        np.testing.assert_array_equal(degradation.nearest(image, 3), image[1::3, 1::3])


@pytest.mark.parametrize("size", [(10, 14), (40, 56), (160, 224), (25, 30)])
def test_resizing_is_that_of_the_pipeline(size):
    image = RNG(0).uniform(-1, 1, (40, 56, 3)).astype(np.float32)
    other = jax.image.resize(image, (*size, 3), "cubic", antialias=True)
    np.testing.assert_allclose(images.resize(image, size), other, atol=1e-5)


def test_a_box_is_resized_as_the_whole_is():
    image = RNG(0).uniform(-1, 1, (12, 16, 3)).astype(np.float32)
    whole = images.resize(image, (48, 64))
    part = images.resize(image, (16, 24), box=(3, 2, 9, 6))
    np.testing.assert_allclose(part, whole[8:24, 12:36], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_sides_that_do_not_divide_are_refused_whatever_is_drawn(kind):
    image = picture(side=32)[:30, :30]
    for seed in range(8):
        with pytest.raises(ValueError, match="30 x 30 pixels do not shrink 4 times"):
            KINDS[kind](image, 4, RNG(seed))
