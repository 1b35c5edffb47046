"""tpu/run.sh, with a stand-in for gcloud that writes down how it was called."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

RUN = pathlib.Path(__file__).parents[1] / "tpu" / "run.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# One line per call, its arguments ended by NUL; fails as often as the file says.
GCLOUD = """#!/usr/bin/env bash
printf '%s\\0' "$@" >> "$CALLS"
echo >> "$CALLS"
failures=$(cat "$FAILURES")
if ((failures > 0)); then
  echo $((failures - 1)) > "$FAILURES"
  exit 7
fi
"""


def execute(*command, env=None):
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path):
    """Runs run.sh; returns what it did and the argument lists gcloud received."""
    stub = tmp_path / "bin" / "gcloud"
    stub.parent.mkdir()
    stub.write_text(GCLOUD)
    stub.chmod(0o755)

    def call(*command, failures=0, **variables):
        calls = tmp_path / "calls"
        calls.write_text("")
        (tmp_path / "failures").write_text(str(failures))
        environment = {
            "PATH": f"{stub.parent}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "FAILURES": str(tmp_path / "failures"),
            "RETRY_SECONDS": "0",
            **variables,
        }
        done = execute(RUN, *command, env=environment)
        received = calls.read_text().split("\0\n")[:-1]
        return done, [line.split("\0") for line in received]

    return call


SLICE = {"TPU_NAME": "my-slice", "ZONE": "us-central2-b"}


def test_it_calls_every_host_of_the_slice_once(run):
    done, calls = run("python3", "-m", "diffusion_jax.train", **SLICE)
    assert done.returncode == 0
    ssh = ["compute", "tpus", "tpu-vm", "ssh", "my-slice", "--zone=us-central2-b"]
    remote = "env JAX_PLATFORMS=tpu python3 -m diffusion_jax.train"
    assert calls == [
        [*ssh, "--worker=all", f"--command=cd diffusion_jax && exec {remote}"]
    ]


def test_the_project_is_named_only_where_it_is_given(run):
    assert "--project=p" in run("true", **SLICE, PROJECT="p")[1][0]
    assert not any("project" in word for word in run("true", **SLICE)[1][0])


def test_arguments_reach_the_hosts_as_they_were_given(run, tmp_path):
    arguments = ['--prompt=it\'s a "dog" & $HOME', "two words", "*", "", "a\nb"]
    home = tmp_path / "home of code"
    home.mkdir()
    _, calls = run("printf", "<%s>", *arguments, **SLICE, REMOTE_DIR=str(home))
    remote = calls[0][-1].removeprefix("--command=")
    there = execute("bash", "-c", remote)
    assert there.stdout == "".join(f"<{argument}>" for argument in arguments)


def test_the_command_runs_where_the_code_is_and_insists_on_the_tpu(run, tmp_path):
    command = "sh", "-c", "pwd; echo $JAX_PLATFORMS"
    _, calls = run(*command, **SLICE, REMOTE_DIR=str(tmp_path))
    remote = calls[0][-1].removeprefix("--command=")
    there = execute("bash", "-c", remote)
    assert there.stdout.split() == [str(tmp_path), "tpu"]


def test_a_dry_run_prints_the_call_and_makes_none(run):
    command = "python3", "train.py", "--name=a b"
    done, calls = run(*command, **SLICE, DRY_RUN="1")
    assert (done.returncode, calls) == (0, [])
    _, made = run(*command, **SLICE)
    assert shlex.split(done.stdout) == ["gcloud", *made[0]]


@pytest.mark.parametrize("missing", ["TPU_NAME", "ZONE"])
def test_a_missing_variable_is_named_before_any_call(run, missing):
    given = {name: value for name, value in SLICE.items() if name != missing}
    done, calls = run("true", **given)
    assert done.returncode != 0 and f"set {missing} to" in done.stderr and not calls


def test_a_missing_command_and_a_wrong_count_are_refused(run):
    done, calls = run(**SLICE)
    assert done.returncode == 2 and "usage" in done.stderr and not calls
    done, calls = run("true", **SLICE, ATTEMPTS="many")
    assert done.returncode == 2 and "'many'" in done.stderr and not calls


def test_a_failure_is_passed_on(run):
    done, calls = run("true", failures=1, **SLICE)
    assert done.returncode == 7 and len(calls) == 1


@pytest.mark.parametrize("failures, status, num_calls", [(2, 0, 3), (3, 7, 3)])
def test_it_reruns_the_same_command_until_the_attempts_are_used(
    run, failures, status, num_calls
):
    done, calls = run("true", failures=failures, **SLICE, ATTEMPTS="3")
    assert done.returncode == status
    assert len(calls) == num_calls and all(call == calls[0] for call in calls)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say():
    done = execute("shellcheck", RUN)
    assert done.returncode == 0, done.stdout
