"""Published models written back: bit for bit, and as diffusers wrote them."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import published_dirs
import single_files

from diffusion_jax import export
from diffusion_jax.weights import (
    directory,
    single_file,
    tensors,
    writing_directory,
)

pytestmark = pytest.mark.slow
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
PREFIXES = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
}
PREFIXES["inpaint"] = PREFIXES["sd1"]


def write(out, model, loras=(), dtype=None, **options):
    params = export.load_published(model, loras)
    dtypes = dict.fromkeys(params, dtype) if dtype else export.stored_dtypes(model)
    writing_directory.write(out, model, params.pop, dtypes=dtypes, **options)


@pytest.fixture(scope="module", params=published_dirs.FAMILIES)
def exported(request, tmp_path_factory):
    """A family, the pipeline, its directory as diffusers wrote it, and as we did."""
    place = tmp_path_factory.mktemp(request.param)
    pipeline = published_dirs.FAMILIES[request.param](place / "in")
    write(place / "out", directory.read(place / "in"))
    return request.param, pipeline, place / "in", place / "out"


def check_same(pipeline, expected, dtype=None):
    """Every network has the same config and the same numbers."""
    assert type(pipeline) is type(expected)
    for name in NETWORKS:
        network, wanted = getattr(pipeline, name, None), getattr(expected, name, None)
        assert (network is None) == (wanted is None)
        if wanted is None:
            continue
        state = network.state_dict()
        assert state.keys() == wanted.state_dict().keys()
        for key, tensor in wanted.state_dict().items():
            assert torch.equal(state[key], tensor.to(dtype or tensor.dtype)), key
    for name in ("tokenizer", "tokenizer_2"):
        if getattr(expected, name, None) is not None:
            texts = ["a red circle above", "<|endoftext|>!"]
            found, wanted = (
                getattr(p, name)(texts, padding="max_length", truncation=True)
                for p in (pipeline, expected)
            )
            assert found["input_ids"] == wanted["input_ids"]
    assert (
        dict(pipeline.scheduler.config).items()
        >= {
            key: value
            for key, value in expected.scheduler.config.items()
            if not key.startswith("_")
        }.items()
        or pipeline.scheduler.config == expected.scheduler.config
    )


def maths(config):
    """A config without what has no effect on the numbers."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if not key.startswith("_") and value is not None
    }


def test_what_was_loaded_is_written_back_bit_for_bit(exported):
    family, _, place, out = exported
    model, again = directory.read(place), directory.read(out)
    for field in model._fields:
        if field not in ("tensors", "tokenizers"):
            assert getattr(again, field) == getattr(model, field), field
    assert again.tokenizers.keys() == model.tokenizers.keys()
    for name, part in model.tensors.items():
        written = {key.removeprefix("text_model."): t for key, t in part.items()}
        found = {
            key.removeprefix("text_model."): t for key, t in again.tensors[name].items()
        }
        assert found.keys() == written.keys()
        for key, tensor in written.items():
            assert found[key].dtype == tensor.dtype
            np.testing.assert_array_equal(np.asarray(found[key]), tensor, key)
    assert sorted(path.name for path in out.parent.iterdir()) == ["in", "out"]
    ours, theirs = (
        json.loads((root / "model_index.json").read_text()) for root in (out, place)
    )
    assert ours["_class_name"] == theirs["_class_name"]
    for key, value in ours.items():
        if isinstance(value, list) and "tokenizer" not in key and value[0]:
            assert theirs[key] == value
    if family in ("sdxl", "refiner"):
        key = "force_zeros_for_empty_prompt"
        assert ours[key] == theirs[key]


def test_diffusers_loads_it_as_it_was(exported):
    _, pipeline, _, out = exported
    loaded = type(pipeline).from_pretrained(out)
    check_same(loaded, pipeline)
    for name in ("unet", "vae"):
        found, expected = (maths(getattr(p, name).config) for p in (loaded, pipeline))
        expected.pop("sample_size"), found.pop("sample_size")
        assert found == expected


def test_a_single_file_becomes_a_directory(exported, tmp_path):
    family, pipeline, place, _ = exported
    path = tmp_path / "model.safetensors"
    texts = {
        prefix: getattr(pipeline, name) for name, prefix in PREFIXES[family].items()
    }
    single_files.write(path, pipeline.unet, pipeline.vae, texts)
    whole = directory.read(place)
    fields = dict(unet=whole.unet, vae=whole.vae, **whole.texts)
    said = whole.scheduler.get("prediction_type", "epsilon")
    model = single_file.read(
        path, tokenizers=whole.tokenizers, fields=fields, prediction_type=said
    )
    kept = ("tensors", "scheduler", "sample_size")  # not in such a file
    for field in set(whole._fields) - set(kept):
        assert getattr(model, field) == getattr(whole, field), field
    out = tmp_path / "out"
    write(out, model)
    loaded = type(pipeline).from_pretrained(out, scheduler=pipeline.scheduler)
    check_same(loaded, pipeline)


def test_halves_in_shards_under_another_name(tmp_path):
    pipeline = published_dirs.write_sd1(tmp_path / "sd1")
    model = directory.read(tmp_path / "sd1")
    options = dict(variant="fp16", max_shard_size=100_000)
    write(tmp_path / "out", model, dtype="float16", **options)
    index = "diffusion_pytorch_model.safetensors.index.fp16.json"
    assert len(set(tensors.shards(tmp_path / "out/unet", index).values())) > 1
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "out", variant="fp16", dtype=torch.float16
    )
    check_same(loaded, pipeline, torch.float16)
    again = directory.read(tmp_path / "out", variant="fp16")
    assert set(export.stored_dtypes(again).values()) == {np.dtype(np.float16)}
    params = export.load_published(again)  # stays what it is
    dtypes = {str(x.dtype) for x in jax.tree.leaves(params["unet"])}
    assert dtypes == {"float16"}


def test_old_spellings_are_written_as_today_s(tmp_path):
    pipeline = published_dirs.write_sd1(tmp_path / "sd1")
    path = tmp_path / "sd1/vae/diffusion_pytorch_model.safetensors"
    state = {}
    for key, tensor in pipeline.vae.state_dict().items():
        for new, old in {
            "to_q": "query",
            "to_k": "key",
            "to_v": "value",
            "to_out.0": "proj_attn",
        }.items():
            key = key.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        state[key] = tensor.contiguous()
    single_files.save_file(state, path)
    write(tmp_path / "out", directory.read(tmp_path / "sd1"))
    written = tensors.read_header(tmp_path / "out/vae" / path.name)
    assert written.keys() == pipeline.vae.state_dict().keys()
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    check_same(loaded, pipeline)


def test_a_lora_is_merged_in(tmp_path):
    pipeline = published_dirs.write_sd1(tmp_path / "sd1")
    model = directory.read(tmp_path / "sd1")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    torch.manual_seed(0)
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    names = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    single_files.save_file(names, tmp_path / "style.safetensors")
    lora = f"{tmp_path / 'style.safetensors'}:0.5"
    write(tmp_path / "out", model, [lora])
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    adapted = f"{layer}.weight"
    for key, tensor in pipeline.unet.state_dict().items():
        found = loaded.unet.state_dict()[key]
        if key == adapted:
            torch.testing.assert_close(found, tensor + 0.5 * up @ down)
            assert not torch.allclose(found, tensor)
        else:
            assert torch.equal(found, tensor)
    assert lora_files.split(lora)[1] == 0.5
    assert lora_files.split("a/b.safetensors") == ("a/b.safetensors", 1.0)


def test_the_command_writes_once_and_says_what_is_wrong(tmp_path):
    place = tmp_path / "in"
    pipeline = published_dirs.write_sd1(place)
    out = str(tmp_path / "out")
    command = [sys.executable, "-m", "diffusion_jax.export", f"--out={out}"]
    done = subprocess.run(
        [*command, f"--weights={place}", "--dtype=bfloat16"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = type(pipeline).from_pretrained(out, dtype=torch.bfloat16)
    check_same(loaded, pipeline, torch.bfloat16)
    again = subprocess.run(
        [*command, f"--weights={place}"], capture_output=True, text=True, check=False
    )
    assert again.returncode == 1 and "nothing is overwritten" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_single_files_of_these_tests_are_those_that_diffusers_reads(tmp_path):
    pipeline = published_dirs.write_sd1(tmp_path / "sd1")
    path = str(tmp_path / "model.safetensors")
    text = {PREFIXES["sd1"]["text_encoder"]: pipeline.text_encoder}
    single_files.write(path, pipeline.unet, pipeline.vae, text)
    read = diffusers.StableDiffusionPipeline.from_single_file(
        path, config=str(tmp_path / "sd1"), local_files_only=True
    )
    check_same(read, pipeline)
