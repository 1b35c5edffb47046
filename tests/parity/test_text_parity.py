"""Prompts become the ids and the states that the pipelines of diffusers make of them."""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusion_jax.data import captions, prompts
from diffusion_jax.models import text
from diffusion_jax.models.clip import CLIPText
from diffusion_jax.weights.convert import load_torch
from tests.parity import published_dirs

TEXTS = [
    "a red circle above a blue square",
    "Two GREEN triangles!!, (on white:1.2) [cat] 🙂 漢字",
    "",
    "  \n ",
    "wow!!! cat, " * 40,  # longer than the context
]
SIZES = dict(
    text_encoder=dict(width=16, num_heads=2, mlp_width=24),
    text_encoder_2=dict(width=24, num_heads=3, mlp_width=24, activation="gelu"),
)
FAMILIES = ("sd1", "sd2", "sdxl", "refiner")


@functools.cache
def pipeline(family):
    with tempfile.TemporaryDirectory() as directory:
        pipe = published_dirs.FAMILIES[family](directory)
    if family in ("sd1", "sd2"):
        # With clip_skip, diffusers asks for a part that transformers 5 made the whole.
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return pipe


@functools.cache
def tokenizers(family):
    pipe, found = pipeline(family), []
    for name in ("tokenizer", "tokenizer_2"):
        if getattr(pipe, name, None) is not None:
            with tempfile.TemporaryDirectory() as directory:
                getattr(pipe, name).save_pretrained(directory)
                found.append(captions.load_tokenizer(directory))
    return found


@functools.cache
def encoders(family):
    """The text encoders of a pipeline, and their parameters."""
    pipe, towers = pipeline(family), {}
    for name, size in SIZES.items():
        if getattr(pipe, name, None) is not None:
            size = SIZES["text_encoder_2"] if family == "sd2" else size
            (vocab_size,) = {t.vocab_size for t in tokenizers(family)}
            tower = CLIPText(vocab_size=vocab_size, num_layers=3, eos_id=2, **size)
            if family in ("sdxl", "refiner"):
                tower = tower.clone(skip_layers=1, norm_hidden=False)
            is_second = name == "text_encoder_2"
            towers[name] = text.ProjectedText(tower, 20) if is_second else tower
    params = {}
    for name, tower in towers.items():
        tokens = jnp.zeros((1, 77), jnp.int32)
        like = jax.eval_shape(tower.init, jax.random.key(0), tokens)["params"]
        state = getattr(pipe, name).state_dict()
        params[name] = load_torch({k: v.numpy() for k, v in state.items()}, like)
    made = text.TextEncoders(
        tuple(towers.values()), tuple(towers), zero_empty=family == "sdxl"
    )
    return made, params


def make(family, texts, **options):
    return prompts.make_prompts(texts, tokenizers(family), weighted=False, **options)


@torch.no_grad()
def their_states(family, texts, clip_skip, negative):
    """(conditional, negative) pairs of hidden and, where there are any, pooled."""
    found = pipeline(family).encode_prompt(
        prompt=texts,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=negative,
        clip_skip=clip_skip,
    )
    found = [tensor.numpy() for tensor in found]
    return found[::2], found[1::2]


def close(ours, theirs):
    for value, expected in zip(ours, theirs):
        scale = np.abs(expected).max()
        assert scale > 0.05
        assert np.abs(np.asarray(value) - expected).max() < 1e-4 * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_pipelines_tokenizers(family):
    pipe, cut = pipeline(family), make(family, TEXTS, max_chunks=1)
    theirs = [getattr(pipe, n, None) for n in ("tokenizer", "tokenizer_2")]
    theirs = [tokenizer for tokenizer in theirs if tokenizer is not None]
    assert cut.tokens.shape == (len(TEXTS), len(theirs), 1, 77)
    for t, tokenizer in enumerate(theirs):
        options = dict(padding="max_length", max_length=77, truncation=True)
        expected = tokenizer(TEXTS, **options)["input_ids"]
        np.testing.assert_array_equal(cut.tokens[:, t, 0], expected)
        whole = tokenizer(TEXTS, truncation=False)["input_ids"]
        lost = [max(0, len(ids) - 77) for ids in whole]
        own = prompts.num_cut(TEXTS, [tokenizers(family)[t]], weighted=False)
        np.testing.assert_array_equal(own, lost)
        assert lost[-1] > 0 and not any(lost[:-1])
    assert {t.pad_token_id for t in theirs} == {t.pad_id for t in tokenizers(family)}


@pytest.mark.parametrize("clip_skip", [None, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_encode_prompt(family, clip_skip):
    made, params = encoders(family)
    made = text.skipping(made, clip_skip or 0)
    prompt = make(family, TEXTS, max_chunks=1)._replace(
        is_empty=np.zeros(len(TEXTS), bool)  # they encode an empty prompt
    )
    theirs, _ = their_states(family, TEXTS, clip_skip, None)
    assert len(theirs) == (2 if family in ("sdxl", "refiner") else 1)
    close(made(params, prompt), theirs)
    with pytest.raises(ValueError, match="3 layers"):
        text.skipping(made, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_negative_prompt_is_the_empty_text_and_zeros_in_sdxl(family):
    made, params = encoders(family)
    _, theirs = their_states(family, TEXTS[:1], None, None)
    ours = made(params, make(family, [""]))
    if family == "sdxl":
        assert not any(np.any(state) for state in (*ours, *theirs))
    else:
        close(ours, theirs)
    # A negative prompt that is given is encoded, an empty one too.
    _, theirs = their_states(family, TEXTS[:1], None, ["cat!"])
    close(made(params, make(family, ["cat!"])), theirs)
    _, theirs = their_states(family, TEXTS[:1], None, [""])
    given = make(family, [""])._replace(is_empty=np.zeros(1, bool))
    close(made(params, given), theirs)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_two_chunks_are_the_two_texts_joined(family):
    made, params = encoders(family)
    hidden, pooled = made(
        params,
        prompts.make_prompts([f"{TEXTS[0]} BREAK cat dog!"], tokenizers(family)),
    )
    theirs, _ = their_states(family, [TEXTS[0], "cat dog!"], None, None)
    close([hidden[0]], [theirs[0].reshape(-1, theirs[0].shape[-1])])
    if family == "sdxl":
        close([pooled[0]], [theirs[1][0]])


def test_the_eps_of_the_norms_is_that_of_the_config():
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = published_dirs.make_tokenizer(directory)
        own = captions.load_tokenizer(directory)
    fields = published_dirs.TEXT | dict(layer_norm_eps=0.3)
    reference = published_dirs.make_text(fields, tokenizer)
    tower = CLIPText(
        vocab_size=own.vocab_size, num_layers=3, eos_id=2, **SIZES["text_encoder"]
    )
    tokens = jnp.asarray(own(TEXTS))
    like = jax.eval_shape(tower.init, jax.random.key(0), tokens)["params"]
    state = {k: v.numpy() for k, v in reference.state_dict().items()}
    params = {"params": load_torch(state, like)}
    with torch.no_grad():
        theirs = reference(torch.tensor(np.array(tokens))).last_hidden_state.numpy()
    close([tower.clone(norm_eps=0.3).apply(params, tokens)[0]], [theirs])
    assert np.abs(tower.apply(params, tokens)[0] - theirs).max() > 0.05
