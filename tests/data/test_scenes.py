"""Scenes: determinism, distances, hold-out, and what rendering preserves."""

import functools

import numpy as np
import pytest

from diffusion_jax.data import scene_captions, scenes

KINDS = (False, True)


@functools.cache
def draw(num, *, seed=0, held_out=False):
    rng = np.random.default_rng(seed)
    return [scenes.sample(rng, held_out=held_out) for _ in range(num)]


def box(thing):
    """Left, top, right, bottom in thirty-seconds."""
    left, top, right, bottom = scenes.extent(thing.shape, thing.radius, thing.angle)
    corners = thing.x - left, thing.y - top, thing.x + right, thing.y + bottom
    return 32 * np.array(corners)


def test_there_are_six_shapes_eight_colours_and_two_sizes():
    assert len(scenes.SHAPES) >= 6
    assert len(scenes.COLOURS) >= 8
    assert len(scenes.SIZES) == 2


def test_the_same_seed_gives_the_same_scenes_and_pixels():
    first, second = draw(20, seed=3), draw.__wrapped__(20, seed=3)
    assert first == second and first is not second
    np.testing.assert_array_equal(
        scenes.render(first, image_size=32), scenes.render(second, image_size=32)
    )
    assert first != draw(20, seed=4)


def test_a_scene_renders_the_same_alone_and_among_others():
    batch = draw(12)
    together = scenes.render(batch, image_size=32)
    alone = [scenes.render([scene], image_size=32)[0] for scene in batch]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("held_out", KINDS)
def test_objects_keep_their_distance_from_the_border_and_each_other(held_out):
    for scene in draw(2000, held_out=held_out):
        boxes = [box(thing) for thing in scene.objects]
        for left, top, right, bottom in boxes:
            assert min(left, top, 32 - right, 32 - bottom) > scenes.MARGIN - 0.01
        if len(boxes) == 2:
            axis = scenes.RELATIONS.index(scene.relation)
            assert boxes[1][axis] - boxes[0][2 + axis] > scenes.GAP - 0.01


def test_the_offset_along_the_relation_dominates():
    for scene in draw(2000):
        if scene.relation:
            first, second = scene.objects
            offset = np.array([second.x - first.x, second.y - first.y])
            axis = scenes.RELATIONS.index(scene.relation)
            assert offset[axis] > 2 * abs(offset[1 - axis])


def test_a_named_position_fits():
    """Within the jitter of its cell; the margin may push large objects in by a little."""
    for scene in draw(2000):
        if scene.position:
            (thing,) = scene.objects
            offsets = 32 * np.array([thing.x - 0.5, thing.y - 0.5])
            for offset, cell in zip(offsets, scenes.POSITIONS[scene.position]):
                assert abs(offset - scenes.CELL * cell) <= scenes.JITTER + 0.5


def test_held_out_pairs_never_occur_in_training_and_always_in_the_test():
    for scene in draw(2000):
        assert not scene_captions.is_held_out(scene_captions.claims_of(scene))
    for scene in draw(2000, held_out=True):
        assert scene_captions.is_held_out(scene_captions.claims_of(scene))


def test_training_shows_every_pair_that_is_not_held_out():
    seen = {(o.colour, o.shape) for scene in draw(2000) for o in scene.objects}
    every = {(colour, shape) for colour in scenes.COLOURS for shape in scenes.SHAPES}
    assert seen == every - scenes.HELD_OUT


def test_each_colour_and_each_shape_is_mostly_seen():
    for place, words in ((0, scenes.COLOURS), (1, tuple(scenes.SHAPES))):
        for word in words:
            assert 1 <= sum(pair[place] == word for pair in scenes.HELD_OUT) <= 2


def test_half_of_the_scenes_have_one_object_and_half_of_those_a_position():
    drawn = draw(2000)
    single = [scene for scene in drawn if len(scene.objects) == 1]
    assert abs(len(single) / len(drawn) - 0.5) < 0.04
    assert abs(np.mean([bool(s.position) for s in single]) - 0.5) < 0.06


def test_two_objects_are_never_described_alike():
    for scene in draw(2000):
        assert len({thing[:3] for thing in scene.objects}) == len(scene.objects)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_every_shape_is_centred_on_its_area(shape):
    columns, rows = scenes.pixel_centres(256)
    placement = np.array([[0.5, 0.5, 0.3, 0.0, 1 / 256]])
    alpha = scenes.coverage(shape, placement, (columns, rows))[0]
    centre = [(alpha * axis).sum() / alpha.sum() for axis in (columns, rows)]
    np.testing.assert_allclose(centre, 0.5, atol=0.002)


@pytest.mark.parametrize("angle", [0.0, 0.1, -0.7])
@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_the_extent_is_the_box_around_the_pixels(shape, angle):
    columns, rows = scenes.pixel_centres(256)
    placement = np.array([[0.5, 0.5, 0.3, angle, 1 / 256]])
    inside = scenes.coverage(shape, placement, (columns, rows))[0] > 0.5
    x, y = columns[0, inside.any(0)], rows[inside.any(1), 0]
    box = 0.5 - x.min(), 0.5 - y.min(), x.max() - 0.5, y.max() - 0.5
    np.testing.assert_allclose(box, scenes.extent(shape, 0.3, angle), atol=0.014)


def test_positive_angles_turn_clockwise():
    columns, rows = scenes.pixel_centres(64)
    placement = np.array([[0.5, 0.5, 0.3, 0.4, 1 / 64]])
    alpha = scenes.coverage("triangle", placement, (columns, rows))[0]
    apex = alpha[rows[:, 0] < 0.25]
    assert (apex * (columns - 0.5)).sum() > 0


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_anti_aliasing_conserves_area_at_any_resolution(shape):
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, y = rng.uniform(0.4, 0.6, 2)
        angle = rng.uniform(-0.1, 0.1)
        areas = []
        for size in (32, 512):
            placement = np.array([[x, y, 6 / 32, angle, 1 / size]])
            alpha = scenes.coverage(shape, placement, scenes.pixel_centres(size))
            areas.append(alpha.mean())
        assert abs(areas[0] / areas[1] - 1) < 0.05


def test_a_larger_rendering_averages_to_the_smaller():
    batch = draw(50)
    small = scenes.render(batch, image_size=32).astype(float)
    large = scenes.render(batch, image_size=64).astype(float)
    means = large.reshape(50, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(means - small).mean() < 1.0  # of 255
    assert np.sqrt(((means - small) ** 2).mean()) < 4.0


def test_objects_stand_out_from_the_background():
    batch = draw(300)
    images = scenes.render(batch, image_size=32) / 255
    for scene, image in zip(batch, images):
        corner_box = image[0].mean(0)
        for thing in scene.objects:
            if thing.shape in ("circle", "square", "triangle", "cross"):
                inside = image[int(32 * thing.y), int(32 * thing.x)]
                np.testing.assert_allclose(inside, thing.rgb, atol=0.01)
                assert np.linalg.norm(inside - corner_box) > 0.3
