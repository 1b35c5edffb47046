"""What a picture tells, and pictures that tell nothing."""

import json
import shlex

import entry_points
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation import grids
from diffusion_jax.sampling import records

FLAGS = dict(
    weights="~/models/it's",
    lora=["a.safetensors:0.5", "b.safetensors:1.0"],
    prompt='a "cat" $HOME /usr/lib C:/a/b/c',
    ema=True,
    steps=3,
    guidance=7.5,
    seed=1,
    width=8,
    height=8,
)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "x.png"
    texts = records.texts(FLAGS, sampler="ddim", model="m")
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    grids.save_png(image, path, metadata=texts)
    return path


def test_the_command_has_every_flag_as_it_was(picture, capsys):
    entry_points.inspect(picture)
    line = capsys.readouterr().out
    assert "\n" not in line.rstrip("\n")
    words = shlex.split(line)
    assert words[words.index("--prompt") + 1] == FLAGS["prompt"]
    assert words[words.index("--weights") + 1] == FLAGS["weights"]
    assert [words[i + 1] for i, w in enumerate(words) if w == "--lora"] == FLAGS["lora"]
    assert "--ema" in words and words[words.index("--guidance") + 1] == "7.5"


def test_the_record_is_json(picture, capsys):
    entry_points.inspect("--json", picture)
    assert json.loads(capsys.readouterr().out)["flags"] == FLAGS


def test_a_picture_tells_nobody_where_it_was_made(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "jane"))
    (tmp_path / "jane" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "jane" / "work")
    for path, shown in {
        tmp_path / "jane" / "models" / "sd": "~/models/sd",
        tmp_path / "jane" / "work" / "sd": "sd",
        tmp_path / "shared" / "sd": "../../shared/sd",
        "runwayml/stable-diffusion-v1-5": "runwayml/stable-diffusion-v1-5",
    }.items():
        assert records.shown_path(str(path)) == shown


def _png(texts):
    def make(path):
        image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
        grids.save_png(image, path, metadata=texts)

    return make


WRONG = {
    "no text 'diffusion_jax'": _png({"parameters": "a cat"}),
    "is damaged": _png({"diffusion_jax": '{"flags": {"prompt": "a'}),
    "the text .* is damaged": _png({"diffusion_jax": "[1]"}),
    "is no PNG": lambda path: path.write_bytes(b"<html>"),
    "no image": lambda path: None,
}


@pytest.mark.parametrize("message", WRONG)
def test_pictures_without_a_record_are_one_line(message, tmp_path):
    WRONG[message](tmp_path / "x.png")
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as stopped:
        entry_points.inspect(tmp_path / "x.png")
    assert "\n" not in stopped.value.code


def test_a_picture_must_be_named():
    with pytest.raises(SystemExit, match="name at least one"):
        entry_points.inspect()
