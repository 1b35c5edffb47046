"""Prompts: the grammar of emphasis, and chunks that are what the tokenizer makes."""

import dataclasses
import itertools
import json
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from diffusion_jax.data import captions, prompts, scenes_builder

LENGTH = 12
ROOM = LENGTH - 2
given = hypothesis.given
often = hypothesis.settings(
    max_examples=150, deadline=None, derandomize=True, database=None
)
seldom = hypothesis.settings(often, max_examples=40)

LEAVES = st.text("ab ,:()[]\\é🙂\n", min_size=1, max_size=6)
NUMBERS = st.sampled_from(["1.3", " 0.5", "2", ".25 ", "1.", "-1.5", "+1.1", "0"])
TREES = st.recursive(
    LEAVES,
    lambda children: st.tuples(
        st.sampled_from("(["), st.lists(children, max_size=3), st.none() | NUMBERS
    ),
    max_leaves=8,
)


def escape(text):
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def written(tree):
    """A tree as a user writes it."""
    if isinstance(tree, str):
        return escape(tree)
    bracket, children, number = tree
    inside = "".join(map(written, children))
    if bracket == "[":
        return f"[{inside}]"
    return f"({inside})" if number is None else f"({inside}:{number})"


def characters(tree, weight=1.0):
    """Every character of a tree with its weight."""
    if isinstance(tree, str):
        return [(character, weight) for character in tree]
    bracket, children, number = tree
    factor = float(number) if number is not None else 1.1
    weight = weight / 1.1 if bracket == "[" else weight * factor
    return [pair for child in children for pair in characters(child, weight)]


@given(st.lists(TREES, max_size=4))
@often
def test_weights_are_the_products_of_the_brackets_around(trees):
    pieces = prompts.parse("".join(map(written, trees)))
    expected = [pair for tree in trees for pair in characters(tree)]
    got = [(character, w) for text, w in pieces for character in text]
    assert [c for c, _ in got] == [c for c, _ in expected]
    np.testing.assert_allclose([w for _, w in got], [w for _, w in expected], 1e-12)


@given(st.text())
@often
def test_any_escaped_text_is_itself(text):
    hypothesis.assume("BREAK" not in text)
    assert prompts.parse(escape(text)) == ([(text, 1.0)] if text else [])


@given(st.text("()[]\\:.1 aBREK", max_size=60))
@often
def test_any_text_is_parsed_and_neighbours_differ(text):
    pieces = prompts.parse(text)
    remaining = iter(text)
    assert all(character in remaining for piece, _ in pieces for character in piece)
    assert all(np.isfinite(weight) for _, weight in pieces)
    plain = [piece for piece in pieces if piece[0] != prompts.BREAK]
    if plain == pieces:
        assert all(a[1] != b[1] for a, b in itertools.pairwise(pieces))


@given(st.sampled_from(["a)[ :1", "a](:1 "]).flatmap(st.text))
@often
def test_brackets_without_a_partner_are_text(text):
    assert prompts.parse(text) == ([(text, 1.0)] if text else [])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("(a[b)c", [("a[b", 1.1), ("c", 1.0)]),
        ("((a)", [("(", 1.0), ("a", 1.1)]),
        ("[a)]", [("a)", 1 / 1.1)]),
        (":) :(", [(":) :(", 1.0)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:x)", [("a:x", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("(a:1e3)", [("a:1e3", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(a:٣)", [("a:٣", 1.1)]),
        (f"(a:{'9' * 400})", [(f"a:{'9' * 400}", 1.1)]),
        ("[a:2]", [("a:2", 1 / 1.1)]),
        ("(a:1) b", [("a b", 1.0)]),
        ("\\", [("\\", 1.0)]),
        (r"\a\(", [(r"\a(", 1.0)]),
        ("", []),
        ("()", []),
        ("a BREAK b", [("a ", 1.0), ("BREAK", 1.0), (" b", 1.0)]),
        ("(a BREAK b)", [("a ", 1.1), ("BREAK", 1.0), (" b", 1.1)]),
        ("BREAKS break", [("BREAKS break", 1.0)]),
    ],
)
def test_the_grammar_at_its_edges(text, pieces):
    assert prompts.parse(text) == pieces


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two that read the same words; the second pads with "!", as SD 2 and XL do."""
    corpus = [c for _, c in scenes_builder.generate("train", 100, image_size=32)]
    directory = tmp_path_factory.mktemp("tokenizer")
    first = captions.train_tokenizer(
        [*corpus, *["wow!! a ring!!"] * 50],
        directory,
        vocab_size=600,
        context_length=LENGTH,
    )
    config = directory / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"pad_token": "!"}
    config.write_text(json.dumps(settings))
    return first, captions.load_tokenizer(directory)


def contents(prompt, tokenizers, b, t):
    """The (id, weight) pairs of a text's chunks, once their frames are checked."""
    tokenizer, pairs = tokenizers[t], []
    for ids, weights in zip(prompt.tokens[b, t], prompt.weights[b, t]):
        rest = ids[1:].tolist()
        while len(rest) > 1 and rest[-1] == tokenizer.pad_id != tokenizer.eos_id:
            rest.pop()
        if tokenizer.pad_id == tokenizer.eos_id:
            rest = rest[: rest.index(tokenizer.eos_id) + 1]
        assert ids[0] == tokenizer.bos_id
        assert rest[-1] == tokenizer.eos_id
        assert weights[0] == 1 and (weights[len(rest) :] == 1).all()
        pairs += list(zip(rest[:-1], weights[1 : len(rest)].tolist()))
    return pairs


WORDS = st.lists(
    st.sampled_from(["a", "red", "ring", "wow!!", "漢字", "🙂", "é", "\n", "x.y", " "]),
    max_size=24,
).map(" ".join)


@given(st.lists(st.text(max_size=30) | WORDS, min_size=1, max_size=3))
@seldom
def test_the_first_chunk_is_what_the_tokenizer_makes(tokenizers, texts):
    one = prompts.make_prompts(texts, tokenizers, weighted=False, max_chunks=1)
    all_chunks = prompts.make_prompts(texts, tokenizers, weighted=False)
    assert one.tokens.shape == (len(texts), 2, 1, LENGTH)
    assert (one.tokens.dtype, one.weights.dtype) == (np.int32, np.float32)
    for t, tokenizer in enumerate(tokenizers):
        np.testing.assert_array_equal(one.tokens[:, t, 0], tokenizer(texts))
        np.testing.assert_array_equal(all_chunks.tokens[:, t, 0], tokenizer(texts))
    assert (one.weights == 1).all()
    assert one.is_empty.tolist() == [text == "" for text in texts]


@given(st.lists(WORDS, min_size=1, max_size=3))
@seldom
def test_chunks_lose_nothing_and_num_cut_is_what_max_chunks_loses(tokenizers, texts):
    whole = prompts.make_prompts(texts, tokenizers)
    cut = prompts.make_prompts(texts, tokenizers, max_chunks=2)
    num_cut = prompts.num_cut(texts, tokenizers, max_chunks=2)
    assert cut.tokens.shape[2] <= 2
    for b, text in enumerate(texts):
        lost = []
        for t, tokenizer in enumerate(tokenizers):
            (ids,) = tokenizer.content([text])
            assert [i for i, _ in contents(whole, tokenizers, b, t)] == ids
            kept = [i for i, _ in contents(cut, tokenizers, b, t)]
            assert kept == ids[: 2 * ROOM]
            lost.append(len(ids) - len(kept))
        assert num_cut[b] == max(lost)
        reverse = prompts.num_cut(texts, tokenizers[::-1], max_chunks=2)
        assert reverse[b] == max(lost)
    lengths = [len(ids) for t in tokenizers for ids in t.content(texts)]
    assert whole.tokens.shape[2] == max(1, *(-(-n // ROOM) for n in lengths))


@given(st.lists(st.tuples(WORDS, st.sampled_from([1.0, 1.3, 0.5])), max_size=4))
@seldom
def test_every_token_has_the_weight_of_its_piece(tokenizers, pieces):
    text = "".join(f"({escape(words)}:{weight})" for words, weight in pieces)
    prompt = prompts.make_prompts([text], tokenizers)
    for t, tokenizer in enumerate(tokenizers):
        expected = [
            (i, np.float32(weight))
            for words, weight in prompts.parse(text)
            for i in tokenizer.content([words])[0]
        ]
        assert contents(prompt, tokenizers, 0, t) == expected


def test_tokenizers_that_split_differently_keep_their_own_weights(tokenizers):
    prompt = prompts.make_prompts(["wow!! (ring:1.5)"], tokenizers)
    first, second = (contents(prompt, tokenizers, 0, t) for t in range(2))
    assert len(second) == len(first) + 1  # "!" and "!", not "!!"
    assert first[-1] == second[-1] and first[-1][1] == 1.5
    assert {w for _, w in first[:-1]} == {w for _, w in second[:-1]} == {1.0}


def test_a_break_starts_a_chunk_and_an_empty_one_is_left_out(tokenizers):
    def tokens(text, **options):
        return prompts.make_prompts([text], tokenizers, **options).tokens[0]

    parts = [tokens("a red ring"), tokens("a ring")]
    joined = np.concatenate(parts, axis=1)
    for text in (
        "a red ring BREAK a ring",
        "BREAK a red ringBREAK BREAK\na ring BREAK",
    ):
        spaced = text.replace("ringBREAK", "ring BREAK")
        np.testing.assert_array_equal(tokens(spaced), joined)
    assert tokens("a BREAK b", weighted=False).shape[1] == 1
    np.testing.assert_array_equal(
        tokens("BREAK", weighted=False)[0, 0], tokenizers[0](["BREAK"])[0]
    )
    np.testing.assert_array_equal(
        prompts.num_cut(["a red ring BREAK a ring", "a"], tokenizers), [2, 0]
    )


def test_all_texts_have_as_many_chunks_and_more_are_padded(tokenizers):
    long, short = "a ring " * ROOM, "a ring"
    prompt = prompts.make_prompts([long, short], tokenizers)
    assert prompt.tokens.shape == (2, 2, 2, LENGTH)
    padded = prompts.make_prompts([short], tokenizers, num_chunks=2)
    np.testing.assert_array_equal(prompt.tokens[1], padded.tokens[0])
    empty = prompts.make_prompts([""], tokenizers)
    np.testing.assert_array_equal(padded.tokens[0, :, 1:], empty.tokens[0])
    with pytest.raises(ValueError, match="num_chunks=1, the texts need 2"):
        prompts.make_prompts([long], tokenizers, num_chunks=1)
    with pytest.raises(ValueError, match="num_chunks=0"):
        prompts.make_prompts([short], tokenizers, num_chunks=0)
    cut = prompts.make_prompts([long], tokenizers, num_chunks=1, max_chunks=1)
    assert cut.tokens.shape[2] == 1


def test_what_cannot_be_a_prompt_is_an_error(tokenizers):
    shorter = dataclasses.replace(tokenizers[0], context_length=8)
    with pytest.raises(ValueError, match=r"context lengths \[12, 8\]"):
        prompts.make_prompts(["a"], [tokenizers[0], shorter])
    tiny = dataclasses.replace(tokenizers[0], context_length=2)
    with pytest.raises(ValueError, match=r"context lengths \[2\]"):
        prompts.num_cut(["a"], [tiny])
    with pytest.raises(ValueError, match=r"emphasis of 2000 in '\(a:2000\)'"):
        prompts.make_prompts(["(a:2000)"], tokenizers)


@pytest.mark.parametrize(
    "text",
    [
        "a ring, " * 1250,
        "🙂" * 10_000,
        "(a" * 20 + "\\" * 9_960,
        "(" * 10_000,
        "(" * 5_000 + ")" * 5_000,
        "[a" * 2_500 + ")" * 5_000,
        " \t\n" * 3_333,
        "BREAK " * 1_600,
        "a\ud800\0b",
    ],
    ids=lambda text: repr(text[:6]),
)
def test_long_and_strange_prompts_are_read(tokenizers, text):
    prompt = prompts.make_prompts([text], tokenizers)
    for t, tokenizer in enumerate(tokenizers):
        ids = [i for i, _ in contents(prompt, tokenizers, 0, t)]
        pieces = [p for p, _ in prompts.parse(text) if p != prompts.BREAK]
        pieces = [p.replace("\ud800", "?") for p in pieces]
        assert ids == [i for row in tokenizer.content(pieces) for i in row]
