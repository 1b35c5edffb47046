"""`python -m diffusion_jax.rank`: captions and images in the order of CLIP's cosines."""

import json

import entry_points
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from diffusion_jax import rank
from diffusion_jax.data import captions
from diffusion_jax.evaluation import grids
from tests.weights.test_clip_checkpoint import original

WORDS = ("a red circle above a blue square", "two green triangles", "cat dog")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file of OpenAI's names, and the directory of a tokenizer."""
    directory = tmp_path_factory.mktemp("clip")
    words = captions.train_tokenizer(
        WORDS, directory / "words", vocab_size=560, context_length=12
    )
    state = original(vocab=words.vocab_size, length=12)
    state["logit_scale"] = np.array(2.0, np.float16)
    state["input_resolution"] = np.array(8)
    save_file(state, directory / "clip.safetensors")
    rng = np.random.default_rng(1)
    for i in range(3):
        pixels = rng.integers(0, 256, (10, 12, 3), np.uint8)
        grids.save_png(Image.fromarray(pixels), directory / f"{i}.png", metadata={})
    return directory


def words_for(model, images, texts):
    words = ["--weights", model / "clip.safetensors", "--tokenizer", model / "words"]
    for name, values in (("--image", images), ("--caption", texts)):
        words += [word for value in values for word in (name, value)]
    return words


def test_lists_agree_with_the_embeddings(model, capsys):
    paths = [str(model / f"{i}.png") for i in range(3)]
    entry_points.rank("--json", *words_for(model, paths, WORDS))
    lists = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["query"] for one in lists] == paths
    ranker = rank.of_weights(
        str(model / "clip.safetensors"), tokenizer=str(model / "words")
    )
    pictures = [rank.read_picture(path, 8) for path in paths]
    images, texts = ranker.embed_images(pictures), ranker.embed_texts(WORDS)
    weights = np.exp(np.exp(2.0) * images @ texts.T)
    for one, row in zip(lists, weights / weights.sum(axis=1, keepdims=True)):
        order = np.argsort(-row)
        assert one["ranked"] == [WORDS[i] for i in order]
        np.testing.assert_allclose(one["probabilities"], row[order], rtol=1e-4)
    assert len({tuple(one["probabilities"]) for one in lists}) == 3
    # One caption alone: the images are ranked.
    entry_points.rank(*words_for(model, paths, WORDS[:1]))
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == WORDS[0]
    order = np.argsort(-(images @ texts[0]))
    assert [line.split()[1] for line in lines] == [paths[i] for i in order]


# what the error must say -> the words of the call
WRONG = {
    "give --weights or --workdir": "",
    "not both": "--weights x --workdir y",
    "--step is for --workdir": "--weights x --step 1",
    "--activation is for --weights": "--workdir x --activation gelu",
    "--variant is for --weights": "--workdir x --variant fp16",
    "at least one --image": "--weights x --caption a",
    "nothing to rank": "--weights x --image PNG --caption a",
    "no image none.png": "--weights x --image none.png --caption a --caption b",
    "no directory and no file x": "--weights x --image PNG --caption a --caption b",
    "has no tokenizer": "--weights FILE --image PNG --caption a --caption b",
    "x holds no run": "--workdir x --image PNG --caption a --caption b",
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_call_is_one_line(message, model):
    places = {"PNG": model / "0.png", "FILE": model / "clip.safetensors"}
    words = (places.get(word, word) for word in WRONG[message].split())
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as stopped:
        entry_points.rank(*words)
    assert "\n" not in stopped.value.code
