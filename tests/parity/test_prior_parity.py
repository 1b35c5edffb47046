"""The diffusion prior computes what diffusers' PriorTransformer does, tiny and whole.

    pytest -s -m slow tests/parity/test_prior_parity.py

The whole one has 1.02 billion parameters: 4 GB of disk and at most 9 GB of memory, for
torch writes the weights and its output and ends before ours begins.
"""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import module_checks

from diffusion_jax.models.prior import PriorTransformer, condition
from diffusion_jax.models.unclip import Encoded
from diffusion_jax.weights.convert import load_torch

SCALE = ("clip_mean", "clip_std")  # beside the network, not in it
TINY = dict(num_attention_heads=4, attention_head_dim=8, num_layers=3)
TINY |= dict(embedding_dim=24, num_embeddings=7)
FIELDS = dict(embed_dim=24, num_layers=3, num_heads=4, head_width=8, num_tokens=7)
LENGTHS = (7, 1, 4)


def inputs():
    x, embed = module_checks.normal(3, 24), module_checks.normal(3, 24)
    hidden = module_checks.normal(3, 7, 24)
    mask = np.arange(7)[None] < np.asarray(LENGTHS)[:, None]
    return x, np.array([0.0, 41.0, 999.0], np.float32), Encoded(hidden, embed, mask)


def randomised(**options):
    torch.manual_seed(0)
    prior = diffusers.PriorTransformer(**TINY, **options).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return prior


def loaded(prior, fields, *given):
    state = {k: v.numpy() for k, v in prior.state_dict().items() if k not in SCALE}
    network = PriorTransformer(**fields)
    like = jax.eval_shape(network.init, jax.random.key(0), *given)["params"]
    return network, load_torch(state, like)


def theirs(prior, x, time, text):
    with torch.no_grad():
        return prior(
            torch.tensor(x),
            torch.tensor(time),
            torch.tensor(text.embed),
            torch.tensor(text.hidden),
            torch.tensor(text.mask),
        ).predicted_image_embedding


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        (
            dict(time_embed_dim=20, embedding_proj_norm_type="layer"),
            dict(time_width=20, norm_embedding=True),
        ),
    ],
    ids=["karlo", "other time embedding, normed text embedding"],
)
def test_prior_agrees_with_diffusers(options, fields):
    """With texts of all lengths: as published, padding is hidden and the rest causal."""
    prior, (x, time, text) = randomised(**options), inputs()
    given = jax.tree.map(jnp.asarray, (x, time, condition(text)))
    network, params = loaded(prior, FIELDS | fields, *given)
    variables = {"params": params}
    expected = theirs(prior, x, time, text)
    module_checks.check("prior", jax.jit(network.apply)(variables, *given), expected)
    kept = network.apply(variables, given[2], method="remember")
    ours = jax.jit(network.apply)(variables, *given[:2], kept)
    module_checks.check("prior, text remembered", ours, expected)


def test_no_tensor_may_be_left_over_or_missing():
    prior, (x, time, text) = randomised(), inputs()
    given = jax.tree.map(jnp.asarray, (x, time, condition(text)))
    with pytest.raises(ValueError, match="unused: .*transformer_blocks.2"):
        loaded(prior, FIELDS | dict(num_layers=2), *given)
    with pytest.raises(ValueError, match="missing: .*transformer_blocks.3"):
        loaded(prior, FIELDS | dict(num_layers=4), *given)


# ---- the published size ---------------------------------------------------------------

INPUTS = """
import sys
import numpy as np
path = sys.argv[1]
rng = np.random.default_rng(0)
x, embed = (rng.standard_normal((2, 768), np.float32) for _ in range(2))
hidden = rng.standard_normal((2, 77, 768), np.float32)
mask = np.arange(77)[None] < np.array([[9], [77]])
time = np.array([321.0, 999.0], np.float32)
"""
THEIRS = """
import diffusers, torch
torch.manual_seed(0)
with torch.device("meta"):
    prior = diffusers.PriorTransformer()
prior = prior.to_empty(device="cpu").eval().requires_grad_(False)
for name, p in prior.named_parameters():
    fan_in = p[0].numel() if p.ndim == 2 else 400
    p.normal_(std=fan_in**-0.5)
    if p.ndim == 1 and name.endswith("weight"):
        p.add_(1)
full = torch.full((81, 81), -1e4).triu_(1)  # a buffer, which was on no device either
prior.causal_attention_mask.copy_(full[None])
prior.save_pretrained(path, max_shard_size="5GB")
y = prior(*map(torch.tensor, (x, time, embed, hidden, mask))).predicted_image_embedding
np.save(path + "/theirs.npy", y.numpy())
"""
OURS = """
import resource, time as clock
import jax, jax.numpy as jnp
from diffusion_jax.models.prior import PriorTransformer, condition
from diffusion_jax.models.unclip import Encoded
from diffusion_jax.weights import convert, tensors
given = (x, time, condition(Encoded(hidden, embed, mask)))
given = jax.tree.map(jnp.asarray, given)
prior = PriorTransformer()
like = jax.eval_shape(prior.init, jax.random.key(0), *given)["params"]
start = clock.perf_counter()
stored = tensors.open_component(path)
stored = {k: stored[k] for k in stored if k not in ("clip_mean", "clip_std")}
params = convert.load_torch(
    stored, like, place=lambda path, a: jax.device_put(a)
)
print(f"loaded in {clock.perf_counter() - start:.1f} s")
start = clock.perf_counter()
y = np.asarray(jax.jit(prior.apply)({"params": params}, *given))
print(f"computed in {clock.perf_counter() - start:.1f} s, compilation included")
print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")
np.save(path + "/ours.npy", y)
"""


def available_gigabytes():
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    found = dict(line.split(":") for line in lines)
    return int(found["MemAvailable"].split()[0]) / 2**20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_size_prior_agrees(tmp_path):
    if available_gigabytes() < 10:
        pytest.skip(f"{available_gigabytes():.0f} GB of memory; it needs 10")
    for script in (THEIRS, OURS):
        command = [sys.executable, "-c", INPUTS + script, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        print(done.stdout.strip())
    ours, expected = (np.load(tmp_path / f"{who}.npy") for who in ("ours", "theirs"))
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    module_checks.check("whole prior", ours, expected)
