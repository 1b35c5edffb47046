"""U-Nets of the published sizes, one at a time, as diffusers writes and computes them.

    pytest -s -m slow tests/parity/test_full_size_parity.py

The largest needs 11 GB of memory and of disk: torch writes the weights and its output
and ends before ours begins.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CONFIGS = pathlib.Path(__file__).parents[1] / "weights"
TOLERANCE = 1e-4  # of the largest output
INPUTS = """
import json, sys
import numpy as np
path, config = sys.argv[1], json.loads(sys.argv[2])
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 16, 16, 4), np.float32)
tokens = rng.standard_normal((1, 77, config["cross_attention_dim"]), np.float32)
time = np.array([321.0], np.float32)
pooled = rng.standard_normal((1, 1280), np.float32)
sizes = np.array([[1024, 768, 0, 16, 1024, 768]], np.float32)
is_xl = "addition_embed_type" in config
"""
THEIRS = """
import diffusers, torch
torch.manual_seed(0)
with torch.device("meta"):
    unet = diffusers.UNet2DConditionModel(**{k: v for k, v in config.items() if k[0] != "_"})
unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
for name, p in unet.named_parameters():
    fan_in = max(1, p[0].numel()) if p.ndim > 1 else 1
    p.normal_(std=0.05 if p.ndim == 1 else fan_in**-0.5)
    if p.ndim == 1 and name.endswith("weight"):
        p.add_(1)
unet.save_pretrained(path, max_shard_size="4GB")
added = dict(text_embeds=torch.tensor(pooled), time_ids=torch.tensor(sizes))
y = unet(
    torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(time), torch.tensor(tokens),
    added_cond_kwargs=added if is_xl else None,
).sample
np.save(path + "/theirs.npy", y.permute(0, 2, 3, 1).numpy())
"""
OURS = """
import jax, jax.numpy as jnp, time as clock
from diffusion_jax.models import layers
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import config_fields, convert, tensors, unet_config
read = unet_config.read(config_fields.read_json(path + "/config.json"))
vector = None
if is_xl:
    ids = layers.sinusoid(jnp.asarray(sizes[0]), read.size_id_width).reshape(1, -1)
    vector = jnp.hstack([pooled, ids])
cond = Conditioning(tokens=jnp.asarray(tokens), vector=vector)
unet = UNet(**read.fields)
like = jax.eval_shape(unet.init, jax.random.key(0), x, time, cond)["params"]
start = clock.perf_counter()
params = convert.load_torch(
    tensors.open_component(path), like, place=lambda path, a: jax.device_put(a)
)
print(f"loaded in {clock.perf_counter() - start:.1f} s")
y = jax.jit(unet.apply)({"params": params}, x, jnp.asarray(time), cond)
np.save(path + "/ours.npy", np.asarray(y))
"""


def available_gigabytes():
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    found = dict(line.split(":") for line in lines)
    return int(found["MemAvailable"].split()[0]) / 2**20


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("family, gigabytes", [("sd1", 5), ("sd2", 5), ("sdxl", 13)])
def test_full_size_unet_agrees(tmp_path, family, gigabytes):
    if available_gigabytes() < gigabytes:
        pytest.skip(f"{available_gigabytes():.0f} GB of memory; it needs {gigabytes}")
    sys.path.insert(0, str(CONFIGS))
    import published_configs

    config = json.dumps(published_configs.UNETS[family])
    for script in (THEIRS, OURS):
        command = [sys.executable, "-c", INPUTS + script, str(tmp_path), config]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        print(done.stdout.strip())
    ours, theirs = (np.load(tmp_path / f"{who}.npy") for who in ("ours", "theirs"))
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    scale = np.abs(theirs).max()
    error = np.abs(ours - theirs).max() / scale
    print(f"{family}: error {error:.1e} of {scale:.2g}")
    assert ours.shape == theirs.shape
    assert scale > 0.1 and error < TOLERANCE
