"""Sources: one interface over TFDS data sets and tar shards, safe with any file."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import images, records, scenes_builder, sources


def png(value, side=4):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(file, "png")
    return file.getvalue()


class LabelledDots(tfds.core.GeneratorBasedBuilder):
    """Images with a label, a caption and several captions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["dark_dot", "bright_dot"]),
            "text": tfds.features.Text(),
            "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, num):
        for key in range(num):
            yield (
                key,
                {
                    "image": io.BytesIO(png(40 * key)),
                    "label": key % 2,
                    "text": b"\xff\xfe" if key == 5 else f"dot {key}",
                    "captions": {"text": [f"first {key}", f"second {key}"]},
                },
            )


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    LabelledDots(data_dir=str(path)).download_and_prepare(file_format="array_record")
    return path


def red(record):
    return int(np.asarray(images.decode(record.image))[0, 0, 0])


def test_labels_become_captions_through_the_template(dots):
    source = sources.tfds("labelled_dots", "train", data_dir=dots)
    assert len(source) == 6
    for record in source:
        word = ("dark", "bright")[(red(record) // 40) % 2]
        assert record.caption == f"a photo of a {word} dot"
    other = sources.tfds("labelled_dots", "train", data_dir=dots, template="{label}!")
    assert other[0].caption == source[0].caption.removeprefix("a photo of a ") + "!"


def test_captions_are_taken_from_the_key_named(dots):
    key = "captions/text"
    source = sources.tfds("labelled_dots", "test", caption_key=key, data_dir=dots)
    for record in source:
        assert record.caption == f"first {red(record) // 40}"


def test_a_caption_that_is_not_utf8_is_a_bad_record(dots):
    source = sources.tfds("labelled_dots", "train", caption_key="text", data_dir=dots)
    bad = 0
    for index in range(len(source)):
        try:
            assert source[index].caption.startswith("dot ")
        except records.BadRecord:
            bad += 1
    assert bad == 1


def test_part_of_a_split_may_be_named(dots):
    whole = sources.tfds("labelled_dots", "train", data_dir=dots)
    part = sources.tfds("labelled_dots", "train[:50%]", data_dir=dots)
    assert [r.image for r in part] == [r.image for r in whole][:3]
    both = sources.tfds("labelled_dots", "train+test", data_dir=dots)
    assert len(both) == 8


def test_what_does_not_exist_is_named_with_the_choices(dots, tmp_path):
    def load(name="labelled_dots", split="train", data_dir=dots, **options):
        return sources.tfds(name, split, data_dir=data_dir, **options)

    with pytest.raises(ValueError, match="no_such_set"):
        load(name="no_such_set")
    with pytest.raises(ValueError, match=r"'dev'.*train"):
        load(split="dev")
    with pytest.raises(ValueError, match=r"'picture'.*image, label, text"):
        load(image_key="picture")
    with pytest.raises(ValueError, match=r"'title'.*image, label, text"):
        load(caption_key="title")
    with pytest.raises(ValueError, match="no image"):
        load(image_key="text")
    with pytest.raises(ValueError, match="no label"):
        load(label_key="text")
    with pytest.raises(ValueError, match="template"):
        load(template="a photo")
    with pytest.raises(FileNotFoundError, match="download=True"):
        load(data_dir=tmp_path)


def test_a_set_is_prepared_when_asked(tmp_path):
    source = sources.tfds("labelled_dots", "test", data_dir=tmp_path, download=True)
    assert len(source) == 2


def test_records_stored_without_random_access_are_refused(dots, monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(LabelledDots, "as_data_source", refuse)
    with pytest.raises(ValueError, match="array_record"):
        sources.tfds("labelled_dots", "train", data_dir=dots)


def test_scenes_come_by_split_and_size(tmp_path, monkeypatch):
    (config, *_) = scenes_builder.CaptionedScenes.BUILDER_CONFIGS
    for field, num in (("num_train", 12), ("num_validation", 3), ("num_test", 4)):
        monkeypatch.setattr(config, field, num)
    test = sources.scenes("test", data_dir=tmp_path)
    assert len(test) == 4
    assert images.decode(test[0].image).size == (32, 32)
    expected = dict(scenes_builder.generate("test", 4, image_size=32))
    assert {r.image: r.caption for r in test} == expected
    with pytest.raises(ValueError, match="32, 64"):
        sources.scenes("train", image_size=48, data_dir=tmp_path)
    with pytest.raises(ValueError, match="train"):
        sources.scenes("dev", data_dir=tmp_path)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pair(key, value):
    return [(f"{key}.png", png(value)), (f"{key}.txt", f"dot {value}".encode())]


def test_tar_shards_pair_images_with_texts_in_order(tmp_path):
    extra = [("000.json", b"{}"), ("readme.md", b"-"), ("000.pkl", b"cos\nsystem\n")]
    write_tar(tmp_path / "00001.tar", pair("sub/100", 30))
    write_tar(tmp_path / "00000.tar", pair("000", 10) + extra + pair("001", 20))
    for paths in (
        tmp_path / "*.tar",
        [tmp_path / "00000.tar", str(tmp_path / "00001.tar")],
        [tmp_path / "*.tar", tmp_path / "00001.tar"],
    ):
        source = sources.tar_shards(paths)
        assert [r.caption for r in source] == ["dot 10", "dot 20", "dot 30"]
        assert [red(r) for r in source] == [10, 20, 30]
    assert source[2].name.endswith("00001.tar:sub/100.png")


def test_every_image_extension_is_known_and_case_does_not_matter(tmp_path):
    members = []
    for key, extension in enumerate(("jpg", "JPEG", "png", "webp")):
        members += [(f"{key}.{extension}", png(key)), (f"{key}.txt", b"x")]
    assert len(sources.tar_shards(write_tar(tmp_path / "a.tar", members))) == 4


def test_an_image_without_text_has_an_empty_caption(tmp_path):
    source = sources.tar_shards(write_tar(tmp_path / "a.tar", pair("0", 1)[:1]))
    assert source[0].caption == ""


def special(name, kind):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return (name, info)


@pytest.mark.parametrize(
    "member",
    [
        ("../evil.txt", b"x"),
        ("a/../../evil.png", b"x"),
        ("/etc/evil.txt", b"x"),
        ("..\\evil.txt", b"x"),
        special("link.png", tarfile.SYMTYPE),
        special("hard.png", tarfile.LNKTYPE),
        special("device.txt", tarfile.CHRTYPE),
        special("pipe.txt", tarfile.FIFOTYPE),
    ],
)
def test_members_that_could_do_harm_are_refused_by_name(tmp_path, member):
    path = write_tar(tmp_path / "bad.tar", [*pair("0", 1), member])
    with pytest.raises(ValueError, match=r"bad\.tar") as caught:
        sources.tar_shards(path)
    assert repr(member[0]) in str(caught.value)


def test_shards_that_are_missing_broken_or_empty_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tar shard matches"):
        sources.tar_shards(tmp_path / "*.tar")
    (tmp_path / "text.tar").write_bytes(b"this is no tar file" * 100)
    with pytest.raises(ValueError, match=r"text\.tar"):
        sources.tar_shards(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.txt"))
    with pytest.raises(ValueError, match="uncompressed"):
        sources.tar_shards(tmp_path / "packed.tar.gz")
    with pytest.raises(ValueError, match="no image"):
        sources.tar_shards(write_tar(tmp_path / "none.tar", [("0.txt", b"x")]))
    twice = [*pair("0", 1), ("0.jpg", png(2))]
    with pytest.raises(ValueError, match="two images"):
        sources.tar_shards(write_tar(tmp_path / "twice.tar", twice))


def test_a_shard_cut_short_after_indexing_is_a_bad_record(tmp_path):
    path = write_tar(tmp_path / "a.tar", pair("0", 1))
    source = sources.tar_shards(path)
    path.write_bytes(path.read_bytes()[:520])
    with pytest.raises(records.BadRecord, match="ends within"):
        source[0]


def test_sources_are_picklable_sequences(dots, tmp_path):
    path = write_tar(tmp_path / "a.tar", pair("0", 1) + pair("1", 2))
    for source in (
        sources.tar_shards(path),
        sources.tfds("labelled_dots", "train", data_dir=dots),
    ):
        again = pickle.loads(pickle.dumps(source))
        assert [again[i] for i in range(len(source))] == list(source)
        with pytest.raises(IndexError):
            source[len(source)]


def test_sources_are_found_by_name():
    assert set(sources.SOURCES) == {"scenes", "tfds", "tar_shards"}
