"""Runs of the toy that several tests look at, and a way to run it as a process."""

import os
import pathlib
import subprocess
import sys

import pytest
import toy

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """The run that nothing interrupted: its workdir and state."""
    workdir = tmp_path_factory.mktemp("straight")
    state, _ = toy.train(workdir, toy.Stream())
    return workdir, state


@pytest.fixture(scope="session")
def run_toy():
    """Runs toy.py as a process of its own, with `num_devices` CPU devices."""

    def run(*arguments, num_devices=1):
        flags = f"--xla_force_host_platform_device_count={num_devices}"
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", toy.__file__, *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120
        )

    return run
