"""Names of models: a path, what the hub's cache has, and what would be downloaded."""

import pathlib
import time
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from published_configs import TINY_TEXT, index_of
from safetensors.numpy import save_file

from diffusion_jax import build, published_unclip
from diffusion_jax.weights import hub, karlo, writing
from tests import tiny_karlo

MODULES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
TWO = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}
OTHERS = (
    *("README.md", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "unet/extra.png"),
    *("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"),
    *("safety_checker/model.safetensors", "safety_checker/config.json"),
    *("feature_extractor/preprocessor_config.json", "text_encoder/flax_model.msgpack"),
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, empty, offline."""
    path = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    original = huggingface_hub.snapshot_download

    def snapshot_download(repo, **options):
        return original(repo, cache_dir=path, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return path


def fill(cache, repo="org/name"):
    """A snapshot of a small model as the hub's client keeps it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("0123abcd")
    snapshot = root / "snapshots/0123abcd"
    for module, stem in MODULES.items():
        (snapshot / module).mkdir(parents=True)
        (snapshot / module / "config.json").write_text("{}")
        save_file(TWO, snapshot / module / f"{stem}.safetensors")
    for name in ("tokenizer", "scheduler"):
        (snapshot / name).mkdir()
        (snapshot / name / f"{name}_config.json").write_text("{}")
    for name in ("vocab.json", "merges.txt"):
        (snapshot / "tokenizer" / name).write_text("{}")
    writing.write_json(
        snapshot / "model_index.json", index_of({"text_encoder": TINY_TEXT})
    )
    return snapshot


def names_of(snapshot):
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    return [str(path.relative_to(snapshot)) for path in files]


def missing(name, kind=FileNotFoundError, **options):
    start = time.monotonic()
    with pytest.raises(kind) as error:
        hub.find(name, **options)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5
    return str(error.value)


def test_a_path_is_itself(tmp_path, cache):
    assert hub.find(str(tmp_path)) == tmp_path
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert hub.find(str(tmp_path / "x.safetensors")) == tmp_path / "x.safetensors"


def test_a_directory_goes_before_a_model_of_the_hub(tmp_path, cache, monkeypatch):
    fill(cache)
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.find("org/name") == pathlib.Path("org/name")


@pytest.mark.parametrize("name", ["./none", "none", "/no/where", "a//b", "no where/x"])
def test_what_can_be_no_id_is_not_looked_up(cache, name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    assert f"no directory or file {name}" in missing(name)


def test_a_cached_model_is_found_without_asking(cache, monkeypatch):
    snapshot = fill(cache)
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    assert hub.find("org/name") == snapshot
    assert hub.find("org/name/unet") == snapshot / "unet"
    file = "vae/diffusion_pytorch_model.safetensors"
    assert hub.find(f"org/name/{file}") == snapshot / file


def test_a_model_that_is_not_cached_says_how_to_get_it(cache):
    text = missing("org/name")
    assert "hf download org/name --include model_index.json" in text
    assert str(cache) in text
    assert "offline mode is enabled" in text


@pytest.mark.parametrize(
    "file",
    [
        *("unet/diffusion_pytorch_model.safetensors", "model_index.json", "vae"),
        *("scheduler/scheduler_config.json", "tokenizer/vocab.json"),
        "tokenizer/merges.txt",
    ],
)
def test_half_a_model_in_the_cache_is_not_a_model(cache, file):
    path = fill(cache) / file
    path.rename(path.with_name("away"))
    text = missing("org/name")
    assert "hf download" in text and file.split("/")[0] in text


def test_a_tokenizer_in_one_file_is_whole(cache):
    tokenizer = fill(cache) / "tokenizer"
    (tokenizer / "vocab.json").rename(tokenizer / "tokenizer.json")
    assert hub.find("org/name") == tokenizer.parent


def test_half_the_shards_in_the_cache_are_not_a_model(cache):
    unet = fill(cache) / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    writing.write_tensors(unet, "diffusion_pytorch_model", TWO, max_shard_size=14)
    hub.find("org/name")
    (unet / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    assert "lacks diffusion_pytorch_model-00002-of-00002" in missing("org/name")


def test_a_variant_that_is_not_cached_is_not_there(cache):
    unet = fill(cache) / "unet"
    assert "no variant 'fp16'" in missing("org/name", variant="fp16")
    save_file(TWO, unet / "diffusion_pytorch_model.fp16.safetensors")
    assert hub.find("org/name", variant="fp16") == unet.parent


def test_a_tokenizer_alone_is_found(cache):
    snapshot = fill(cache, "openai/clip")
    for name in (*MODULES, "tokenizer", "scheduler"):
        (snapshot / name).rename(snapshot.parent / name)
    (snapshot / "model_index.json").unlink()
    assert "model_index.json is not there" in missing("openai/clip")
    (snapshot / "vocab.json").write_text("{}")
    assert hub.find("openai/clip") == snapshot


# ---- what is downloaded -------------------------------------------------------------


def download(monkeypatch, cache, names, name="org/name", **options):
    """The files that would be fetched of a repository that has these."""
    siblings = [SimpleNamespace(rfilename=name) for name in names]
    info = SimpleNamespace(siblings=siblings)
    api = SimpleNamespace(model_info=lambda repo, timeout: info)
    asked = []

    def snapshot_download(repo, *, allow_patterns=None, local_files_only=False, **_):
        if local_files_only:
            raise FileNotFoundError(repo)
        asked.extend(allow_patterns)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = hub.find(name, **options)
    return found, sorted(asked)


def test_only_what_is_read_is_downloaded(cache, monkeypatch):
    names = names_of(fill(cache))
    half = [n.replace(".safetensors", ".fp16.safetensors") for n in names]
    found, asked = download(monkeypatch, cache, {*names, *half, *OTHERS})
    assert found == cache
    assert asked == sorted(names)


def test_a_variant_is_downloaded_where_there_is_one(cache, monkeypatch):
    names = names_of(fill(cache))
    unet = "unet/diffusion_pytorch_model"
    more = [f"{unet}.fp16.safetensors", *OTHERS]
    _, asked = download(monkeypatch, cache, names + more, variant="fp16")
    expected = {*names, f"{unet}.fp16.safetensors"} - {f"{unet}.safetensors"}
    assert asked == sorted(expected)


def test_all_shards_of_one_variant_are_downloaded(cache, monkeypatch):
    names = names_of(fill(cache))
    stem = "unet/diffusion_pytorch_model"
    names.remove(f"{stem}.safetensors")
    plain = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    plain += [f"{stem}.safetensors.index.json"]
    half = [f"{stem}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half += [f"{stem}.safetensors.index.fp16.json"]
    everything = [*names, *plain, *half]
    _, asked = download(monkeypatch, cache, everything)
    assert asked == sorted([*names, *plain])
    _, asked = download(monkeypatch, cache, everything, variant="fp16")
    assert asked == sorted([*names, *half])


def test_one_file_of_a_repository_is_downloaded_alone(cache, monkeypatch):
    file = "v1-5-pruned.safetensors"
    found, asked = download(monkeypatch, cache, OTHERS, name=f"org/name/{file}")
    assert (found, asked) == (cache / file, [file])
    with pytest.raises(FileNotFoundError, match="org/name has no v2.safetensors"):
        download(monkeypatch, cache, OTHERS, name="org/name/v2.safetensors")


def test_of_a_directory_of_a_repository_only_what_is_read_is_downloaded(
    cache, monkeypatch
):
    names = names_of(fill(cache))
    half = [n.replace(".safetensors", ".fp16.safetensors") for n in names]
    everything = {f"v2/{name}" for name in (*names, *half, *OTHERS)} | set(OTHERS)
    found, asked = download(monkeypatch, cache, everything, name="org/name/v2")
    assert (found, asked) == (cache / "v2", sorted(f"v2/{name}" for name in names))
    for module in ("unet", "tokenizer", "scheduler"):
        name = f"org/name/v2/{module}"
        _, asked = download(monkeypatch, cache, everything, name=name)
        assert asked == sorted(f"v2/{n}" for n in names if n.startswith(f"{module}/"))


def test_a_tokenizer_is_downloaded_without_the_model(cache, monkeypatch):
    files = ["merges.txt", "tokenizer_config.json", "vocab.json"]
    more = ["config.json", "model.safetensors", "pytorch_model.bin"]
    assert download(monkeypatch, cache, files + more)[1] == files


def test_a_repository_of_another_layout_is_refused(cache, monkeypatch):
    with pytest.raises(FileNotFoundError, match="name it: .*org/name/v1-5-pruned.safe"):
        download(monkeypatch, cache, OTHERS)
    names = [n for n in names_of(fill(cache)) if not n.startswith("vae/d")]
    names.append("vae/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="vae has only pickles"):
        download(monkeypatch, cache, names)


# ---- unCLIP ---------------------------------------------------------------------------

NOT_LENT = (
    *("tokenizer", "decoder_scheduler", "super_res_scheduler", "text_proj"),
    *("decoder", "super_res_first", "super_res_last"),
)


def fill_karlo(cache, kind=karlo.VARIATION):
    """A snapshot of a tiny one."""
    return tiny_karlo.write(fill(cache, "org/karlo"), kind=kind)


def is_lent(name):
    own = ("image_encoder/", "feature_extractor/", "model_index.json")
    return name.startswith(own) or name.endswith("/config.json")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_of_what_lends_a_part_only_that_is_downloaded(cache, monkeypatch, variant):
    """And configs; of a variant, where it has that at all."""
    own = names_of(fill_karlo(cache))
    names = {*own, *OTHERS}
    lent = dict(name="org/karlo", modules=karlo.LENT, variant=variant)
    _, asked = download(monkeypatch, cache, names, **lent)
    assert asked == sorted(filter(is_lent, own))
    half = "image_encoder/model.fp16.safetensors"
    _, asked = download(monkeypatch, cache, [*names, half], **lent)
    assert (half in asked) == (variant is not None)


def test_what_lends_a_part_is_whole_without_the_rest(cache):
    snapshot = fill_karlo(cache)
    for name in NOT_LENT:
        (snapshot / name).rename(snapshot.parent / name)
    (snapshot / "text_encoder/model.safetensors").unlink()
    missing("org/karlo")
    lent = dict(modules=karlo.LENT, variant="fp16")
    assert hub.find("org/karlo", **lent) == snapshot
    (snapshot / "image_encoder/model.safetensors").unlink()
    assert "image_encoder" in missing("org/karlo", **lent)


def test_the_class_of_a_model_is_asked_before_all_else(cache, monkeypatch, tmp_path):
    snapshot = fill_karlo(cache)
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    assert hub.class_name("org/karlo") == karlo.VARIATION
    assert hub.class_name(str(snapshot)) == karlo.VARIATION
    for name in ("org/none", "none", str(tmp_path), "org/karlo/decoder"):
        assert hub.class_name(name) is None
    asked = []

    def snapshot_download(repo, *, allow_patterns=None, local_files_only=False, **_):
        if local_files_only:
            raise FileNotFoundError(repo)
        asked.append((repo, allow_patterns))
        return str(snapshot.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.class_name(f"org/name/{snapshot.name}") == karlo.VARIATION
    assert asked == [("org/name", [f"{snapshot.name}/model_index.json"])]
    writing.write_json(snapshot / "model_index.json", {"_class_name": "FluxPipeline"})
    monkeypatch.setattr(hub, "find", lambda *_, **__: pytest.fail("downloads"))
    with pytest.raises(
        build.ConfigError, match="of a FluxPipeline, which is no unCLIP"
    ):
        published_unclip.find(f"org/name/{snapshot.name}")
