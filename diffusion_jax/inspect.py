"""Prints the command that makes a picture again, from what the picture says.

    python -m diffusion_jax.inspect samples/00003-seed0.png
    python -m diffusion_jax.inspect --json samples/*.png     the whole record

The command makes exactly that picture, alone, wherever its model and the files that it
starts from are found under the same names.
"""

from __future__ import annotations

import json

from absl import flags

from diffusion_jax import build, command
from diffusion_jax.sampling import records


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    flags.DEFINE_bool("json", False, "Print the record.", flag_values=values)


def show(paths: list[str], *, as_json: bool) -> None:
    """A line for each picture, in a list if there are several records."""
    if not paths:
        raise build.ConfigError("name at least one picture")
    for path in paths:
        record = records.read(path)
        if as_json:
            print(json.dumps(record, indent=2, ensure_ascii=False))
        else:
            print(records.command(record["flags"]))


def main(arguments: list[str]) -> None:
    show(arguments[1:], as_json=flags.FLAGS.json)


if __name__ == "__main__":
    define_flags()
    command.run(main)
