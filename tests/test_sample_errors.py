"""Wrong calls of the command line: one line, before weights are read or programs made."""

import re

import entry_points
import jax
import numpy as np
import pytest
import tiny_model
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from diffusion_jax import published, sample
from diffusion_jax.sampling import conflicts, models, plans, trained_runs
from diffusion_jax.weights import lora, lora_files

CAT = ("--init_image", "cat.png")
PATH = ("--to_seed", 1)
# what the error must say -> the words of the call
WRONG = {
    "give one of --weights and --workdir": ("--workdir", "runs/x"),
    "unknown sampler 'ddmi': did you mean 'dd": ("--sampler", "ddmi"),
    "unknown sampler 'repaint'": ("--sampler", "repaint"),
    "unknown grid 'karas': did you mean 'karras'": ("--grid", "karas"),
    "unknown dtype 'int8'": ("--dtype", "int8"),
    "steps=0": ("--steps", 0),
    "batch=0": ("--batch", 0),
    "seed=-1": ("--seed", -1),
    "seed=9999999999": ("--seed", 9999999999),
    "num_images=0": ("--num_images", 0),
    "height 17 is not a multiple of 2; the nearest": ("--height", 17),
    "2000 steps": ("--steps", 2000),
    "--guidance nan": ("--guidance", "nan"),
    "guidance_rescale=2": ("--guidance_rescale", 2),
    "--guidance_interval '3,1'": ("--guidance_interval", "3,1"),
    "--guidance_interval 'a,b'": ("--guidance_interval", "a,b"),
    "clip_skip=9 of a text encoder of 1": ("--clip_skip", 9),
    "--step is for --workdir": ("--step", 3),
    "--strength needs --init_image": ("--strength", 0.5),
    "--mask needs --init_image": ("--mask", "mask.png"),
    "--handover needs --refiner": ("--handover", 0.5),
    "no image none.png": ("--init_image", "none.png"),
    "page.png is no image": ("--init_image", "page.png"),
    "odd.png is 15 x 16 .*--height 16 --width 16": ("--init_image", "odd.png"),
    "strength 0.01 of 50 steps leaves 0": (*CAT, "--strength", 0.01),
    "strength 1.5": (*CAT, "--strength", 1.5),
    "mask is of 15 x 16 .* image of 16 x 16": (*CAT, "--mask", "odd.png"),
    "black.png is black": (*CAT, "--mask", "black.png"),
    "no array none.npy": ("--latents", "none.npy"),
    "page.png is not an array": ("--latents", "page.png"),
    r"of shape \(1, 4, 9, 8\); .*\(N, 8, 8, 4\) or \(N, 4, 8, 8\)": (
        *("--latents", "wrong.npy"),
    ),
    "noise for 1 images; images 0 to 2 are wanted": (
        *("--latents", "right.npy", "--num_images", 3),
    ),
    "no lora none.safetensors": ("--lora", "none.safetensors:0.5"),
    "other.safetensors.*down_blocks": ("--lora", "other.safetensors:0.5"),
    "page.png is a web page": ("--lora", "page.png"),
    "--prompt and --from_file": ("--from_file", "page.png"),
    "--frames needs --to_prompt": ("--frames", 3),
    "--frame 8 of 8": (*PATH, "--frame", 8),
    "--frames and --num_images": (*PATH, "--num_images", 2),
    "--frames and --latents": (*PATH, "--latents", "right.npy"),
    "between two prompts: one --prompt": (*PATH, "--prompt", "another"),
    "a refiner goes on": ("--refiner", "tiny", *CAT),
    "a hand-over at 0.001|share of": ("--refiner", "tiny", "--handover", 0.001),
    "its name must end in .npy": ("--array", "images.png"),
    "cannot write to page.png": ("--out", "page.png/x"),
    "an emphasis of 1e": ("--prompt", "(cat:1000000)"),
}
FILES = {
    "empty.txt": ("\n\n", "holds no prompt"),
    "json.txt": ('a\n{"prompt": "cat"', "line 2 is not JSON"),
    "field.txt": ('{"prompt": "cat", "sede": 1}', "'sede': did you mean 'seed'"),
    "type.txt": ('{"prompt": "cat", "seed": "1"}', "has seed '1'"),
    "negative.txt": ('{"prompt": "cat", "seed": -1}', "has seed -1"),
    "bare.txt": ('{"seed": 1}', "has no prompt"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with a model, an inpainting one, and files of every kind."""
    here = tmp_path_factory.mktemp("here")
    tiny_model.write(here / "tiny")
    tiny_model.write(here / "painter", num_extra_channels=5)
    for name, size in {"cat": (16, 16), "odd": (15, 16), "mask": (16, 16)}.items():
        pixels = np.full((*size, 3), 255, np.uint8)
        Image.fromarray(pixels).save(here / f"{name}.png")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(here / "black.png")
    (here / "page.png").write_text("<html>not found</html>")
    np.save(here / "wrong.npy", np.zeros((1, 4, 9, 8), np.float32))
    np.save(here / "right.npy", np.zeros((1, 4, 8, 8), np.float32))
    like = jax.eval_shape(lambda: tiny_model.init_params(0))
    made = lora.init(jax.random.key(0), like, rank=2)
    deeper = {
        path.replace("down_blocks.0", "down_blocks.7"): factors
        for path, factors in made["unet"].items()
    }
    lora_files.write(here / "other.safetensors", {"unet": deeper}, dialect="peft")
    for name, (text, _) in FILES.items():
        (here / name).write_text(text)
    return here


@pytest.fixture
def refused(here, monkeypatch):
    """The error of a call, which must be one line and come before any work."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(
        published, "load_params", lambda *_: pytest.fail("reads weights")
    )

    def call(*words, prompt=("--prompt", "cat"), model="tiny"):
        with pytest.raises(SystemExit) as stopped:
            entry_points.sample("--weights", model, *prompt, *words)
        message = stopped.value.code
        assert message.startswith("error: ") and "\n" not in message
        return message

    return call


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_flag_is_one_line(message, refused):
    assert re.search(message, refused(*WRONG[message]))


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_of_prompts_is_one_line(name, refused):
    assert FILES[name][1] in refused("--from_file", name, prompt=())


def test_what_is_read_is_never_written_over(refused):
    noise = ("--latents", "right.npy", "--overwrite")
    assert "cat.png is read" in refused(*CAT, "--out", "./cat.png", "--overwrite")
    assert "right.npy is read" in refused(*noise, "--array", "right.npy")
    mask = (*CAT, "--mask", "mask.png", "--num_images", 2)
    assert "mask.png is read" in refused(*mask, "--out", "mask.png")


def test_a_picture_or_an_array_of_another_origin_is_not_written_over(refused):
    for number in (1, 2):
        words = ("--num_images", number, "--out", "cat.png")
        assert re.search("made otherwise.*--overwrite", refused(*words))
    assert "--overwrite" in refused("--array", "right.npy")


def test_a_run_of_published_weights_reads_prompts_as_they_do(here, monkeypatch):
    config = ConfigDict(dict(sampling={}, text_encoders={}))
    model = models.of_weights(str(here / "tiny"), published.Choices())
    monkeypatch.setattr(trained_runs, "read_config", lambda _: config)
    monkeypatch.setattr(trained_runs, "of_run", lambda *_, **__: model)
    for words, wanted in {
        (): (True, None),
        ("--no_weighting", "--max_chunks", "2"): (False, 2),
    }.items():
        chosen = flags.FlagValues()
        sample.define_flags(chosen)
        chosen(["sample", "--workdir", "run", "--prompt", "cat", *words])
        conflicts.check(chosen)
        found = plans.find_model(chosen, None)
        assert (found.weighted, found.max_chunks) == wanted


def test_a_refiner_that_is_a_file_gets_the_tokenizer(here, refused, monkeypatch):
    found = published.find("tiny")
    asked = {}

    def find(name, **where):
        asked[name] = where.get("tokenizer")
        return found

    monkeypatch.setattr(published, "find", find)
    (here / "refiner.safetensors").touch()
    words = ("--tokenizer", "words", "--handover", 0.001, "--refiner")
    for name, wanted in {"refiner.safetensors": "words", "tiny": None}.items():
        assert "a hand-over at" in refused(*words, name, model="main.safetensors")
        assert asked == {"main.safetensors": "words", name: wanted}
        asked.clear()


def test_an_autoencoder_is_sliced_where_that_is_chosen(here):
    for words, wanted in {(): False, ("--sliced",): True}.items():
        chosen = flags.FlagValues()
        sample.define_flags(chosen)
        chosen(["sample", "--weights", str(here / "tiny"), "--prompt", "cat", *words])
        plan = plans.make(chosen)
        assert plan.model.pipeline.is_sliced is wanted
        assert plan.flags.get("sliced", False) is wanted


def test_there_must_be_a_prompt(refused):
    assert "give a --prompt" in refused(prompt=())
    assert "no file of prompts" in refused("--from_file", "none.txt", prompt=())


def test_an_inpainting_model_needs_a_picture_and_a_mask(refused):
    assert "--init_image and --mask" in refused(model="painter")
    assert "needs a --mask" in refused(*CAT, model="painter")


def test_what_is_for_published_models_is_refused_for_runs(here, monkeypatch):
    monkeypatch.chdir(here)
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text('{"sampling": {}}')
    for words in (
        *(("--dtype", "float32"), ("--variant", "fp16")),
        *(("--no_weighting",), ("--max_chunks", 2)),
    ):
        with pytest.raises(SystemExit, match=f"{words[0]} is for --weights"):
            entry_points.sample("--workdir", "run", "--prompt", "cat", *words)
    with pytest.raises(SystemExit, match="holds no run"):
        entry_points.sample("--workdir", "tiny", "--prompt", "cat")
