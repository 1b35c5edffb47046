"""A model of the size of Stable Diffusion 1.5 loads in seconds, and in its own memory.

pytest -s -m slow tests/weights/test_load_full_size.py
"""

import json
import subprocess
import sys

import pytest
from published_configs import TEXTS, UNETS, VAE, write

MAX_SECONDS, MAX_MEMORY = 15.0, 1.3  # the latter of the weights
LOAD = """
import json, sys, time
import jax
from diffusion_jax.weights import directory, published

def peak():  # of this program alone, unlike getrusage's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("VmHWM"))

before, start, cpu = peak(), time.perf_counter(), time.process_time()
params = published.load_params(directory.read(sys.argv[1]), dtype=sys.argv[2])
jax.block_until_ready(params)
print(json.dumps(dict(
    seconds=time.perf_counter() - start,
    cpu_seconds=time.process_time() - cpu,
    peak=peak(),
    before=before,
    size=sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
)))
"""


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "sd15"
    write(path, UNETS["sd1"], VAE, TEXTS["sd1"])
    yield path
    for file in path.rglob("*.safetensors"):
        file.unlink()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_seconds_and_little_more_than_the_weights(full_size, dtype):
    command = [sys.executable, "-c", LOAD, str(full_size), dtype]
    runs = []
    for _ in range(2):  # the first brings the files into the system's cache
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(output.stdout))
    for run in runs:
        ratio = run["peak"] / run["size"]
        print(
            f"{dtype}: {run['seconds']:.1f} s, {run['cpu_seconds']:.1f} s of processors, "
            f"{run['size'] / 1e9:.2f} GB of weights, peak {ratio:.2f} of that "
            f"({run['before'] / 1e9:.2f} GB before)"
        )
        assert ratio < MAX_MEMORY
    assert min(run["seconds"] for run in runs) < MAX_SECONDS
