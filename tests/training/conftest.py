"""Runs of the toy that several tests look at, and a way to run it as a process."""

import os
import pathlib
import subprocess
import sys

import compile_cache
import pytest
import toy

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session", autouse=True)
def compile_once(cache_dir):
    yield from compile_cache.compile_once(cache_dir)


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """The run that nothing interrupted: its workdir and state."""
    workdir = tmp_path_factory.mktemp("straight")
    state, _ = toy.train(workdir, toy.Stream())
    return workdir, state


@pytest.fixture(scope="session")
def run_toy(cache_dir):
    """Runs toy.py as a process of its own, with `num_devices` CPU devices."""

    def run(*arguments, num_devices=1):
        flags = f"--xla_force_host_platform_device_count={num_devices}"
        environment = os.environ | {
            "XLA_FLAGS": flags,
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-W", "error", toy.__file__, *map(str, arguments)]
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
