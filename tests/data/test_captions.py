"""The tokenizer: transformers loads it as a published one, and text comes back."""

import json
import pickle

import numpy as np
import pytest
import transformers

from diffusion_jax.data import captions, scenes_builder

LENGTH = 24
TEXTS = [
    "a small red circle",
    "A  LARGE blue\tsquare",
    "naïve café, 漢字 & 🙂!",
    "it's 42 o'clock",
    "",
]


@pytest.fixture(scope="module")
def corpus():
    return [c for _, c in scenes_builder.generate("train", 300, image_size=32)]


@pytest.fixture(scope="module")
def directory(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    captions.train_tokenizer(corpus, path, vocab_size=620, context_length=LENGTH)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return captions.load_tokenizer(directory, context_length=LENGTH)


def test_transformers_gives_the_same_ids(directory, tokenizer, corpus):
    clip = transformers.CLIPTokenizer.from_pretrained(str(directory))
    texts = corpus[:50] + TEXTS
    expected = clip(texts, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(tokenizer(texts), expected)
    short = clip(texts, padding="max_length", truncation=True, max_length=6)
    cut = captions.load_tokenizer(directory, context_length=6)
    np.testing.assert_array_equal(cut(texts), short["input_ids"])
    assert len(clip) == tokenizer.vocab_size
    assert clip.model_max_length == LENGTH


def test_decoding_inverts_encoding(tokenizer, corpus):
    for text in corpus + [TEXTS[0], TEXTS[1], "漢字", ""]:
        normal = " ".join(text.lower().split())
        assert tokenizer.decode(tokenizer([text])[0]) == normal


def test_common_words_are_one_token(tokenizer):
    (ids,) = tokenizer(["a small red circle"])
    assert (ids != tokenizer.pad_id).sum() == 5  # start and four words; end is padding


def test_rows_begin_end_and_are_padded_as_in_stable_diffusion(tokenizer, corpus):
    ids = tokenizer(corpus)
    assert ids.shape == (len(corpus), LENGTH)
    assert ids.dtype == np.int32
    assert (ids[:, 0] == tokenizer.bos_id).all()
    assert (ids[:, -1] == tokenizer.eos_id).all()
    assert tokenizer.pad_id == tokenizer.eos_id
    # The end token has the highest id, and argmax finds its first occurrence.
    assert tokenizer.eos_id == tokenizer.vocab_size - 1
    ends = ids.argmax(1)
    for row, end in zip(ids, ends):
        assert (row[end:] == tokenizer.eos_id).all()
        assert (row[:end] != tokenizer.eos_id).all()


def test_long_texts_keep_their_end_and_say_how_much_was_cut(directory):
    short = captions.load_tokenizer(directory, context_length=5)
    texts = ["a small", "a small red", "a small red circle", "a small red ring a ring"]
    ids = short(texts)
    assert (ids[:, -1] == short.eos_id).all()
    np.testing.assert_array_equal(short.num_cut(texts), [0, 0, 1, 3])
    np.testing.assert_array_equal(ids[1], ids[2])


def test_the_vocabulary_is_laid_out_as_published(directory):
    vocab = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(vocab, key=vocab.get)
    assert list(vocab.values()) == list(range(len(vocab)))
    assert tokens[:2] == ["!", '"']
    assert tokens[256:258] == ["!</w>", '"</w>']
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    first, *merges = (directory / "merges.txt").read_text().split("\n")
    assert first.startswith("#version")
    merged = {"".join(merge.split()) for merge in merges if merge}
    assert merged == set(tokens[512:-2])


def test_vocabulary_size_is_a_bound(corpus, tmp_path):
    limit = captions.train_tokenizer(
        corpus, tmp_path / "a", vocab_size=540, context_length=8
    )
    assert limit.vocab_size == 540
    bytes_only = captions.train_tokenizer(
        corpus, tmp_path / "b", vocab_size=514, context_length=40
    )
    assert bytes_only.decode(bytes_only(["a ring"])[0]) == "a ring"
    with pytest.raises(ValueError, match="514"):
        captions.train_tokenizer(
            corpus, tmp_path / "c", vocab_size=100, context_length=8
        )


def test_training_is_deterministic(corpus, directory, tmp_path):
    captions.train_tokenizer(corpus, tmp_path, vocab_size=620, context_length=LENGTH)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()


def test_a_pickled_tokenizer_is_the_same(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(TEXTS), tokenizer(TEXTS))


def test_the_padding_token_of_the_directory_is_used(directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | {"pad_token": "!"})  # as Stable Diffusion 2 has it
    )
    padded = captions.load_tokenizer(tmp_path, context_length=LENGTH)
    assert padded.pad_id == 0
    (ids,) = padded(["a ring"])
    assert ids[3] == padded.eos_id
    assert (ids[4:] == 0).all()
    assert padded.decode(ids) == "a ring"


def test_a_vocabulary_other_than_that_of_the_file_is_refused(directory, monkeypatch):
    empty = transformers.CLIPTokenizer()  # what it makes of files it cannot find
    monkeypatch.setattr(
        transformers.CLIPTokenizer, "from_pretrained", lambda *_, **__: empty
    )
    with pytest.raises(ValueError, match="has 2 tokens, its vocabulary") as error:
        captions.load_tokenizer(directory, context_length=8)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


def copy(directory, to, names, **contents):
    """A directory of some of the files, and of others that have the given contents."""
    to.mkdir()
    for name in names:
        (to / name).write_bytes((directory / name).read_bytes())
    for stem, text in contents.items():
        (to / FILES[stem]).write_text(text)
    return to


FILES = dict(
    vocab="vocab.json",
    merges="merges.txt",
    config="tokenizer_config.json",
    special="special_tokens_map.json",
    whole="tokenizer.json",
)
TABLES = ("vocab.json", "merges.txt")


def added(content):
    """A token as published configs write it."""
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    return dict(content=content, special=True, **flags)


def test_published_forms_of_one_tokenizer_are_read_alike(directory, tmp_path):
    config = json.loads((directory / "tokenizer_config.json").read_text())
    names = dict(bos_token=captions.START, eos_token=captions.END)
    named = {key: added(token) for key, token in names.items()}
    both = json.dumps(named | dict(unk_token=captions.END, pad_token="!"))
    plain = captions.load_tokenizer(directory)
    last = plain.vocab_size - 1
    table = {"0": added("!"), str(last): added(captions.END)}
    forms = [
        # SD 2: the map decides; SD XL's second: the config does; one file for all
        copy(directory, tmp_path / "a", (*TABLES, FILES["config"]), special=both),
        copy(
            directory,
            tmp_path / "b",
            TABLES,
            config=json.dumps(config | dict(pad_token="!", added_tokens_decoder=table)),
            special=both,
        ),
    ]
    clip = transformers.CLIPTokenizer.from_pretrained(str(forms[0]))
    clip.save_pretrained(str(tmp_path / "c"))
    assert not (tmp_path / "c" / "vocab.json").exists()
    texts = [*TEXTS, "a ring!! two", "!"]
    expected = clip(texts, padding="max_length", truncation=True)["input_ids"]
    for form in [*forms, tmp_path / "c"]:
        tokenizer = captions.load_tokenizer(form)
        assert (tokenizer.pad_id, tokenizer.context_length) == (0, LENGTH)
        assert tokenizer.vocab_size == plain.vocab_size
        np.testing.assert_array_equal(tokenizer(texts), expected)
    assert plain.pad_id == last
    assert (plain(texts) != expected).any()


def test_the_length_of_the_context_is_that_of_the_directory_or_must_be_said(
    directory, tmp_path
):
    assert captions.load_tokenizer(directory).context_length == LENGTH
    unsaid = copy(directory, tmp_path / "unsaid", TABLES)
    with pytest.raises(ValueError, match="say context_length"):
        captions.load_tokenizer(unsaid)
    assert captions.load_tokenizer(unsaid, context_length=9).context_length == 9


SPECIAL = {captions.START: 0, captions.END: 1}


@pytest.mark.parametrize(
    ("kept", "contents", "message"),
    [
        (["merges.txt"], dict(vocab="<!doctype html>"), r"vocab\.json is not"),
        (["merges.txt"], dict(vocab=json.dumps(SPECIAL)), "is not a tokenizer"),
        ([], dict(vocab=json.dumps(SPECIAL), merges=""), "has only 2 tokens"),
        (["vocab.json"], dict(merges=""), "no merges"),
        (["vocab.json"], dict(merges="version https://x\noid sha256:a\n"), "is not a"),
        (["vocab.json"], {}, r"no merges\.txt"),
        ([], dict(whole="{}"), r"tokenizer\.json is not"),
        ([], {}, r"no vocab\.json and no tokenizer\.json"),
    ],
)
def test_broken_files_are_one_line_that_names_the_directory(
    directory, tmp_path, kept, contents, message
):
    broken = copy(directory, tmp_path / "broken", kept, **contents)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        captions.load_tokenizer(broken, context_length=8)
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


def test_content_is_all_ids_of_a_text_and_only_them(tokenizer, corpus):
    texts = [*TEXTS, *corpus[:20]]
    for ids, row in zip(tokenizer.content(texts), tokenizer(texts)):
        assert row[1:-1].tolist()[: len(ids)] == ids[: LENGTH - 2]
        assert set(row[1 + len(ids) :].tolist()) <= {tokenizer.eos_id}
    (ids,) = tokenizer.content(["a small red circle " * 30])
    assert len(ids) == 120


def test_missing_and_wrong_files_are_errors(directory, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        captions.load_tokenizer(tmp_path, context_length=8)
    with pytest.raises(ValueError, match="context_length 1"):
        captions.load_tokenizer(directory, context_length=1)
