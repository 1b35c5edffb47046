"""Words that the experiments write on images, and what they ask of CLIP then."""

import types

import numpy as np
import pytest

from diffusion_jax import build, published_unclip
from diffusion_jax.data import scene_captions, scenes
from experiments import colour_edits, scenes_stack, written_words
from experiments.scenes_stack import Scenes


@pytest.mark.parametrize(
    ("given", "is_needed", "message"),
    [
        ((None, None, []), True, "--image, --word, --labels missing"),
        (("a.png", None, ["a", "b"]), False, "--word missing"),
        (("a.png", " ", ["a", "b"]), True, "--word missing"),
        ((None, "x", []), False, "--image, --labels missing"),
        (("a.png", "x", ["a"]), False, "'a': CLIP chooses from at least 2"),
        (("nowhere.png", "x", ["a", "b"]), False, "no image nowhere.png"),
    ],
)
def test_an_image_to_write_on_needs_all_its_flags(given, is_needed, message):
    with pytest.raises(build.ConfigError, match=message):
        written_words.check(*given, is_needed=is_needed)


def test_a_picture_that_is_none_is_an_error_in_one_line(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(build.ConfigError, match="broken.png is"):
        written_words.check(str(broken), "x", ["a", "b"], is_needed=False)
    written_words.check(None, None, [], is_needed=False)


def test_words_are_written_on_scenes_that_have_another_colour():
    rng = np.random.default_rng(0)
    drawn = [scenes.sample(rng) for _ in range(32)]
    captions = [scene_captions.write(rng, scene_captions.claims_of(s)) for s in drawn]
    examples = Scenes(np.zeros((32, 4, 4, 3), np.float32), captions)
    subject = types.SimpleNamespace(scenes=lambda *_: examples)
    images, words, labels = written_words.scenes_of(subject)
    assert len(images) == len(words) == len(labels) == written_words.NUM_SCENES
    for word, choices in zip(words, labels, strict=True):
        colours = list(map(colour_edits.colour_of, choices))
        assert len(set(colours)) == 3
        assert colours[1] == word != colours[0]


def test_a_published_model_without_an_image_tower_is_refused_unread(monkeypatch):
    pipeline = types.SimpleNamespace(clip=types.SimpleNamespace(image=None))
    for name, made in {"find": None, "plan": pipeline}.items():
        monkeypatch.setattr(published_unclip, name, lambda *_, made=made, **__: made)
    monkeypatch.setattr(published_unclip, "load", None)
    with pytest.raises(build.ConfigError, match="karlo has no image tower"):
        scenes_stack.load_published("karlo")

    def find(*_, **__):
        raise ValueError("prior/config.json: no")

    monkeypatch.setattr(published_unclip, "find", find)
    with pytest.raises(build.ConfigError, match="prior/config.json: no"):
        scenes_stack.load_published("karlo")
