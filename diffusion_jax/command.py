"""What the entry points share: flags with clear errors, and the compilation cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging
from etils import epath

from diffusion_jax import build

CACHE_DIRECTORY = "~/.cache/diffusion_jax/xla"

_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Join the other hosts of a TPU slice or a SLURM job first."
)


def enable_compilation_cache() -> None:
    """Keeps compiled programs, so that the second start of a command is quick.

    `JAX_COMPILATION_CACHE_DIR` names another directory; empty turns it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = epath.Path(CACHE_DIRECTORY).expanduser()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        jax.config.update("jax_compilation_cache_dir", str(directory))


def parse(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """As absl does, but a config field that does not exist is an error in one line."""
    try:
        return values(arguments)
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        reason = str(error).strip("\"'").replace("\\'", "'").replace("\\n", ". ")
        sys.exit(f"error: {reason}")


def guard(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """As `main`, but errors that a user can mend end with one sentence, not a trace."""

    def guarded(arguments: list[str]) -> None:
        try:
            main(arguments)
        except (build.ConfigError, FileNotFoundError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(130)

    return guarded


def run(main: Callable[[list[str]], None]) -> None:
    """Runs `main`, guarded, after the other hosts were joined if there are any."""

    def joined(arguments: list[str]) -> None:
        if _MULTIHOST.value:
            jax.distributed.initialize()
        guard(main)(arguments)

    logging.set_verbosity(logging.WARNING)
    app.run(joined, flags_parser=parse)
