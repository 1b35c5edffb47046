"""Captions: every template is inverted by the parser, every swap is one claim."""

import numpy as np
import pytest

from diffusion_jax.data import scene_captions, scenes


def claims_drawn(num, seed=0):
    rng = np.random.default_rng(seed)
    drawn = [scenes.sample(rng, held_out=bool(k % 2)) for k in range(num)]
    return rng, [scene_captions.claims_of(scene) for scene in drawn]


def test_parse_inverts_write():
    rng, every = claims_drawn(1500)
    for claims in every:
        assert scene_captions.parse(scene_captions.write(rng, claims)) == claims


def test_captions_name_everything_in_at_most_sixteen_words():
    rng, every = claims_drawn(1500)
    for claims in every:
        words = scene_captions.write(rng, claims).split()
        assert len(words) <= 16
        for thing in claims.things:
            assert set(thing) <= set(words)


def test_there_are_several_templates():
    rng = np.random.default_rng(0)
    one = scene_captions.parse("a small red circle in the top left")
    two = scene_captions.parse("a small red circle above a large blue square")
    assert len({scene_captions.write(rng, one) for _ in range(200)}) >= 4
    assert len({scene_captions.write(rng, two) for _ in range(400)}) >= 8


def test_both_orders_of_a_relation_say_the_same():
    same = (
        "a small red circle above a large blue square",
        "there is a large blue square below a small red circle",
        "a picture of a small red circle with a large blue square below it",
        "an image of a large blue square with a small red circle above it",
    )
    assert len({scene_captions.parse(caption) for caption in same}) == 1
    same = (
        "a small red circle left of a large blue square",
        "a large blue square to the right of a small red circle",
        "a large blue square with a small red circle to its left",
    )
    assert len({scene_captions.parse(caption) for caption in same}) == 1


@pytest.mark.parametrize(
    ("phrase", "column", "row"),  # where the first named is, seen from the other
    [
        ("left of", -1, 0),
        ("to the left of", -1, 0),
        ("right of", 1, 0),
        ("to the right of", 1, 0),
        ("above", 0, -1),
        ("below", 0, 1),
    ],
)
def test_relations_mean_what_they_say(phrase, column, row):
    claims = scene_captions.parse(f"a small red circle {phrase} a large blue square")
    assert claims.relation == ("above" if row else "left of")
    assert (claims.things[0].shape == "circle") == (column + row < 0)


@pytest.mark.parametrize(
    ("phrase", "column", "row"),  # where the second named is
    [
        ("to its left", -1, 0),
        ("to its right", 1, 0),
        ("above it", 0, -1),
        ("below it", 0, 1),
    ],
)
def test_relations_of_the_second_mean_what_they_say(phrase, column, row):
    claims = scene_captions.parse(
        f"a small red circle with a large blue square {phrase}"
    )
    assert claims.relation == ("above" if row else "left of")
    assert (claims.things[0].shape == "square") == (column + row < 0)


def test_a_swap_changes_exactly_one_claim():
    rng, every = claims_drawn(1500)
    for claims in every:
        swapped = scene_captions.swap_one(rng, claims)
        assert swapped != claims
        things = sum(
            before != after
            for old, new in zip(claims.things, swapped.things)
            for before, after in zip(old, new)
        )
        if (swapped.position, swapped.relation) != (claims.position, claims.relation):
            assert set(swapped.things) == set(claims.things)
        elif set(swapped.things) != set(claims.things):
            assert things == 1


def test_swaps_reach_every_kind_of_attribute():
    rng = np.random.default_rng(0)
    claims = scene_captions.parse("a small red circle above a large blue square")
    swaps = {scene_captions.swap_one(rng, claims) for _ in range(500)}
    # 2 sizes, 2 x 7 colours, 2 x 5 shapes and the 3 other relations.
    assert len(swaps) == 2 + 14 + 10 + 3


def test_swapped_captions_parse_and_differ():
    rng, every = claims_drawn(500)
    for claims in every:
        caption = scene_captions.write(rng, claims)
        swapped = scene_captions.swap_one_attribute(rng, caption)
        assert scene_captions.parse(swapped) != claims


def test_exchanging_twice_changes_nothing():
    for claims in claims_drawn(200)[1]:
        if len(claims.things) == 2:
            for field in (*scene_captions.Thing._fields, "place"):
                once = scene_captions.exchange(claims, field)
                assert scene_captions.exchange(once, field) == claims
                assert sorted(words_of(once)) == sorted(words_of(claims))


def words_of(claims):
    return [word for thing in claims.things for word in thing]


def test_a_confused_caption_is_false_and_of_much_the_same_words():
    rng, every = claims_drawn(400)
    num_pairs, num_same_words = 0, 0
    for claims in every:
        caption = scene_captions.write(rng, claims)
        other = scene_captions.parse(scene_captions.confuse(rng, caption))
        assert other != claims
        is_held_out = scene_captions.is_held_out
        assert is_held_out(claims) or not is_held_out(other)
        num_pairs += len(claims.things) == 2
        num_same_words += len(claims.things) == 2 and (
            sorted(words_of(other)) == sorted(words_of(claims))
        )
    assert num_same_words > 0.9 * num_pairs > 90


def test_case_and_spaces_do_not_matter():
    plain = scene_captions.parse("a small red circle at the top")
    assert scene_captions.parse("  A small  RED circle at the top ") == plain


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog",
        "a small red circle above",
        "a small red hexagon",
        "a small red circle above a large blue square at the top",
    ],
)
def test_other_text_is_refused_with_the_choices(caption):
    with pytest.raises(ValueError, match="crescent"):
        scene_captions.parse(caption)
