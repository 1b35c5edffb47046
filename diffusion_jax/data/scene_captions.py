"""Scenes in words: claims about a scene, captions from templates, and back again.

`parse` inverts every template of `write`, so a caption is all that is needed to judge
an image. Claims are kept in one canonical form: of two objects the left or upper one
comes first, whichever the caption names first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from diffusion_jax.data import scenes


class Thing(NamedTuple):
    """An object as a caption tells it."""

    size: str
    colour: str
    shape: str


class Claims(NamedTuple):
    """What a caption says: one thing, maybe its position, or two and their relation."""

    things: tuple[Thing, ...]
    position: str | None = None  # a key of scenes.POSITIONS
    relation: str | None = None  # one of scenes.RELATIONS, of the first to the second


OPENINGS = ("", "there is ", "a picture of ", "an image of ")
ONE = ("{opening}{a}{position}", "{position} there is {a}")
TWO = ("{opening}{a}{between}{b}", "{opening}{a} with {b}{after}")

# The words for a relation of the first named to the second, and as (relation, is the
# first named the second of the claims).
BETWEEN = {
    " left of ": ("left of", False),
    " to the left of ": ("left of", False),
    " right of ": ("left of", True),
    " to the right of ": ("left of", True),
    " above ": ("above", False),
    " below ": ("above", True),
}
AFTER = {  # "a with b ...": the words tell where b is
    " to its right": ("left of", False),
    " to its left": ("left of", True),
    " below it": ("above", False),
    " above it": ("above", True),
}

_ATTRIBUTES = tuple(
    "(" + "|".join(words) + ")"
    for words in (scenes.SIZES, scenes.COLOURS, scenes.SHAPES)
)
_THING = "a {} {} {}".format(*_ATTRIBUTES)
_OPENING = "(?:" + "|".join(OPENINGS) + ")"


def _any_of(words) -> str:
    return "(" + "|".join(words) + ")"


_PATTERN_ONE = re.compile(f"{_OPENING}{_THING}(?: {_any_of(scenes.POSITIONS)})?")
_PATTERN_PLACE_FIRST = re.compile(f"{_any_of(scenes.POSITIONS)} there is {_THING}")
_PATTERN_BETWEEN = re.compile(f"{_OPENING}{_THING}{_any_of(BETWEEN)}{_THING}")
_PATTERN_AFTER = re.compile(f"{_OPENING}{_THING} with {_THING}{_any_of(AFTER)}")


def claims_of(scene: scenes.Scene) -> Claims:
    """All that a caption of this scene says."""
    things = tuple(Thing(*thing[:3]) for thing in scene.objects)
    return Claims(things, scene.position, scene.relation)


def _choose(rng: np.random.Generator, choices):
    return choices[int(rng.random() * len(choices))]


def _say(thing: Thing) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape}"


def write(rng: np.random.Generator, claims: Claims) -> str:
    """A caption from a random template; at most 15 words."""
    opening = _choose(rng, OPENINGS)
    if len(claims.things) == 1:
        (thing,) = claims.things
        if claims.position is None:
            return opening + _say(thing)
        if rng.random() < 0.25:
            return f"{claims.position} there is {_say(thing)}"
        return f"{opening}{_say(thing)} {claims.position}"
    words = BETWEEN if rng.random() < 0.75 else AFTER
    choices = [
        key for key, (relation, _) in words.items() if relation == claims.relation
    ]
    chosen = _choose(rng, choices)
    first, second = claims.things[::-1] if words[chosen][1] else claims.things
    if words is BETWEEN:
        return f"{opening}{_say(first)}{chosen}{_say(second)}"
    return f"{opening}{_say(first)} with {_say(second)}{chosen}"


def parse(caption: str) -> Claims:
    """The claims of a caption that `write` wrote; ValueError for any other text."""
    text = " ".join(caption.lower().split())
    if match := _PATTERN_ONE.fullmatch(text):
        *thing, position = match.groups()
        return Claims((Thing(*thing),), position)
    if match := _PATTERN_PLACE_FIRST.fullmatch(text):
        position, *thing = match.groups()
        return Claims((Thing(*thing),), position)
    if match := _PATTERN_BETWEEN.fullmatch(text):
        words = match.groups()
        first, between, second = words[:3], words[3], words[4:]
        relation, is_turned = BETWEEN[between]
    elif match := _PATTERN_AFTER.fullmatch(text):
        words = match.groups()
        first, second = words[:3], words[3:6]
        relation, is_turned = AFTER[words[6]]
    else:
        raise ValueError(
            f"not a scene caption: {caption!r}; expected e.g. 'a small red circle above"
            f" a large blue square', of sizes {', '.join(scenes.SIZES)}, colours"
            f" {', '.join(scenes.COLOURS)}, shapes {', '.join(scenes.SHAPES)}"
        )
    things = (Thing(*first), Thing(*second))
    return Claims(things[::-1] if is_turned else things, None, relation)


def is_held_out(claims: Claims) -> bool:
    """Whether a colour and shape are together that training never shows together."""
    return any(thing[1:] in scenes.HELD_OUT for thing in claims.things)


def _another(rng: np.random.Generator, choices, current):
    return _choose(rng, [choice for choice in choices if choice != current])


def swap_one(rng: np.random.Generator, claims: Claims) -> Claims:
    """The claims with exactly one attribute changed, so that they become false."""
    attributes = [
        (index, field) for index in range(len(claims.things)) for field in Thing._fields
    ]
    if claims.position or claims.relation:
        attributes.append((-1, "place"))
    index, field = _choose(rng, attributes)
    if field == "place" and claims.position:
        position = _another(rng, tuple(scenes.POSITIONS), claims.position)
        return claims._replace(position=position)
    if field == "place":
        other = _another(rng, scenes.RELATIONS, claims.relation)
        turned = claims.things[::-1]
        return _choose(
            rng,
            (
                claims._replace(things=turned),
                claims._replace(relation=other),
                Claims(turned, None, other),
            ),
        )
    words = {"size": scenes.SIZES, "colour": scenes.COLOURS, "shape": scenes.SHAPES}
    thing = claims.things[index]
    value = _another(rng, tuple(words[field]), getattr(thing, field))
    things = list(claims.things)
    things[index] = thing._replace(**{field: value})
    return claims._replace(things=tuple(things))


def exchange(claims: Claims, field: str) -> Claims:
    """Two things with each other's attribute of that name, or "place"."""
    first, second = claims.things
    if field == "place":
        return claims._replace(things=(second, first))
    values = getattr(first, field), getattr(second, field)
    things = first._replace(**{field: values[1]}), second._replace(**{field: values[0]})
    return claims._replace(things=things)


def confuse(rng: np.random.Generator, caption: str) -> str:
    """A false caption that says much the same: attributes of two things exchanged.

    Of one thing, or of two alike, another attribute. What training never shows together
    is never said to be false either, unless the caption says such a thing itself.
    """
    claims = parse(caption)
    made = [swap_one(rng, claims) for _ in range(8)]
    if len(claims.things) == 2:
        fields = [*Thing._fields, *["place"] * 3]  # the hardest to learn
        made[:0] = [exchange(claims, fields[i]) for i in rng.permutation(len(fields))]
    false = [one for one in made if one != claims]
    allowed = (one for one in false if is_held_out(claims) or not is_held_out(one))
    return write(rng, next(allowed, false[0]))


def swap_one_attribute(rng: np.random.Generator, caption: str) -> str:
    """A caption that is false of every image of which `caption` is true."""
    return write(rng, swap_one(rng, parse(caption)))
