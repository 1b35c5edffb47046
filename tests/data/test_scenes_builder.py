"""The TFDS builder: deterministic, held out, and free of TensorFlow and network."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from diffusion_jax.data import images, scene_captions, scenes_builder

TINY = scenes_builder.ScenesConfig(
    name="tiny", image_size=32, num_train=30, num_validation=6, num_test=8
)


def build(directory):
    builder = scenes_builder.CaptionedScenes(config=TINY, data_dir=str(directory))
    builder.download_and_prepare(file_format="array_record")
    return builder


def read(builder, split):
    skip = {"image": tfds.decode.SkipDecoding()}
    return list(builder.as_data_source(split, decoders=skip))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tfds"))


def test_splits_have_the_sizes_asked_for(tiny):
    sizes = {split: len(read(tiny, split)) for split in scenes_builder.SPLITS}
    assert sizes == {"train": 30, "validation": 6, "test": 8}


def test_a_second_build_is_the_same_byte_for_byte(tiny, tmp_path):
    again = build(tmp_path)
    for split in scenes_builder.SPLITS:
        assert read(tiny, split) == read(again, split)


def test_only_the_test_split_shows_held_out_pairs(tiny):
    for split in scenes_builder.SPLITS:
        for example in read(tiny, split):
            claims = scene_captions.parse(example["caption"].decode())
            assert scene_captions.is_held_out(claims) == (split == "test")


def test_images_are_png_of_the_configured_size(tiny):
    for example in read(tiny, "validation"):
        assert example["image"].startswith(b"\x89PNG")
        assert images.decode(example["image"]).size == (32, 32)


def test_a_short_split_begins_the_long_one():
    few = list(scenes_builder.generate("train", 5, image_size=32))
    more = list(scenes_builder.generate("train", 300, image_size=32))
    assert few == more[:5]


def test_splits_and_sizes_differ_but_sizes_share_their_captions():
    train = [c for _, c in scenes_builder.generate("train", 20, image_size=32)]
    validation = [
        c for _, c in scenes_builder.generate("validation", 20, image_size=32)
    ]
    large = [c for _, c in scenes_builder.generate("train", 20, image_size=64)]
    assert train != validation
    assert train == large


def test_an_unknown_split_names_the_choices():
    with pytest.raises(ValueError, match="train, validation, test"):
        next(scenes_builder.generate("dev", 1, image_size=32))


def test_building_and_reading_import_neither_tensorflow_nor_torch(tmp_path):
    code = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("network")
socket.socket.connect = refuse
from diffusion_jax.data import batches, captions, scenes_builder, sources
config = scenes_builder.ScenesConfig(
    name="tiny", num_train=8, num_validation=2, num_test=2
)
scenes_builder.CaptionedScenes.BUILDER_CONFIGS.append(config)
builder = scenes_builder.CaptionedScenes(config="tiny", data_dir=sys.argv[1])
builder.download_and_prepare(file_format="array_record")
source = sources.tfds(
    "captioned_scenes/tiny", "train", caption_key="caption", data_dir=sys.argv[1]
)
tokenizer = captions.train_tokenizer(
    [record.caption for record in source],
    sys.argv[1] + "/tokenizer", vocab_size=600, context_length=24,
)
example = batches.image_text_example(tokenizer, image_size=32)
next(batches.make_batches(source, example, batch_size=4, seed=0))
assert not {"tensorflow", "torch"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_may_build_at_once(tmp_path):
    code = """
import sys
from diffusion_jax.data import scenes_builder, sources
config = scenes_builder.CaptionedScenes.BUILDER_CONFIGS[0]
config.num_train, config.num_validation, config.num_test = 400, 5, 5
print(len(sources.scenes("train", data_dir=sys.argv[1])))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split()[-1] == "400"


def test_pixels_survive_the_png():
    (png, _), *_ = scenes_builder.generate("train", 1, image_size=32)
    rng = np.random.default_rng((scenes_builder.SEED, 0))
    scene = scenes_builder.scenes.sample(rng)
    expected = scenes_builder.scenes.render([scene], image_size=32)[0]
    np.testing.assert_array_equal(np.asarray(images.decode(png)), expected)
