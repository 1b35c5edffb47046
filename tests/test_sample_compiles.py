"""What compiles the programs of the command line anew: sizes and steps, nothing else."""

import compile_cache
import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_model

from diffusion_jax import published
from diffusion_jax.models.unet import UNet
from diffusion_jax.sampling import making, models
from diffusion_jax.sampling.plans import Start
from diffusion_jax.sampling.wanted import Line, images
from diffusion_jax.weights import lora

TRACED = []
FROM_NOISE = Start()


@pytest.fixture(scope="module", autouse=True)
def noted():
    """Every trace of a U-Net leaves a note."""

    def note(call, arguments, options, context):
        if isinstance(context.module, UNet) and context.method_name == "__call__":
            TRACED.append(arguments[0].shape)
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        yield


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    yield from compile_cache.compile_once(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tiny_model.write(tmp_path_factory.mktemp("published") / "tiny")
    choices = published.Choices(sampler="euler", steps=2)
    return models.of_weights(str(directory), choices)


@pytest.fixture(scope="module")
def adapted(model):
    """Parameters with a lora of a scale."""
    params = model.load()
    made = lora.init(jax.random.key(0), {"unet": params["unet"]}, rank=2)
    made = jax.tree.map(lambda a: a + 0.3, made)
    return lambda scale: making.adapt(params, [made], [scale])


def run(make, params, start=FROM_NOISE, **options):
    asked = dict(negative="", seed=0, guidance=2.0) | options
    prompt = asked.pop("prompt", "cat")
    wanted = images([Line(prompt)], num_images=2, **asked)
    return np.concatenate([made for _, made in make(params, wanted, start)])


def test_words_and_numbers_do_not(model, adapted):
    make = making.maker(model, batch_size=2, on_step=lambda done, total: None)
    first = run(make, adapted(0.5))
    num_traced, num_merges = len(TRACED), making.adapt._cache_size()
    assert num_traced > 0
    for change in (
        dict(prompt="a (red:1.4) circle"),
        dict(negative="dog"),
        dict(seed=1),
        dict(guidance=7.5),
        dict(first_index=5),
    ):
        made = run(make, adapted(0.5), **change)
        assert np.abs(made - first).max() > 1e-3, change
    assert np.abs(run(make, adapted(0.9)) - first).max() > 1e-3
    assert len(TRACED) == num_traced
    assert making.adapt._cache_size() == num_merges
    run(make, adapted(0.5), prompt="cat BREAK dog")  # one chunk more
    assert len(TRACED) > num_traced


def test_what_a_picture_and_a_mask_show_does_not(model, adapted):
    make = making.maker(model, batch_size=2, from_noise=False)
    rng = np.random.default_rng(0)
    mask = np.zeros((16, 16, 1), np.float32)
    mask[:8] = 1
    pictures = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    first = run(make, adapted(0.5), Start(pictures[0], mask))
    num_traced = len(TRACED)
    for start in (Start(pictures[1], mask), Start(pictures[0], 1 - mask)):
        assert np.abs(run(make, adapted(0.5), start) - first).max() > 1e-2
    assert len(TRACED) == num_traced
