"""Makes a safetensors file of a pickled checkpoint, without running what is in it.

    python -m diffusion_jax.convert_pickle model.ckpt model.safetensors

Reads what `torch.save` writes (.ckpt, .bin, .pt, .th). Only tensors are kept: those of
`state_dict` where there is one, of `--key` if given, else of the file's top level. A
checkpoint that refers to anything but data is refused, and nothing of it is executed.
"""

from __future__ import annotations

import pathlib

from absl import flags

from diffusion_jax import build, command
from diffusion_jax.weights import pickles, writing

_SHOWN = 5  # names of what was dropped


def convert(source: str, target: str, *, key: str | None = None) -> tuple[int, list]:
    """Writes `target`; the number of its tensors, and the names of what was dropped.

    One tensor is in memory at a time.
    """
    if pathlib.Path(target).exists():
        raise ValueError(f"{target} exists; nothing is overwritten")
    content = pickles.read(source)
    tensors = pickles.tensors(content, key=key)
    writing.write_file(target, tensors)
    names = set(map(str, content))
    return len(tensors), sorted(names - set(tensors) - {key or "state_dict"})


def define_flags() -> None:
    flags.DEFINE_string("key", None, "Where in the file the state dict is.")


def main(arguments: list[str]) -> None:
    if len(arguments) != 3:
        raise build.ConfigError("give two paths: IN.ckpt OUT.safetensors")
    source, target = arguments[1:]
    try:
        num_tensors, dropped = convert(source, target, key=flags.FLAGS.key)
    except ValueError as error:
        raise build.ConfigError(str(error)) from error
    print(f"{num_tensors} tensors -> {target}")
    if dropped:
        more = f" and {len(dropped) - _SHOWN} more" if len(dropped) > _SHOWN else ""
        print(f"dropped: {', '.join(dropped[:_SHOWN])}{more}")


if __name__ == "__main__":
    define_flags()
    command.run(main)
