"""Entry points in this process, with flags of their own: what a shell would see."""

import jax
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from diffusion_jax import command
from diffusion_jax import inspect as inspection
from diffusion_jax import sample as sampling


def sample(*words):
    """`python -m diffusion_jax.sample`; a wrong call is a SystemExit."""
    values = flags.FlagValues()
    sampling.define_flags(values)
    words = ["sample", *map(str, words)]
    command.guard(lambda _: sampling.run(values))(command.parse(words, values))


def inspect(*words):
    values = flags.FlagValues()
    inspection.define_flags(values)
    rest = command.parse(["inspect", *map(str, words)], values)
    command.guard(lambda rest: inspection.show(rest[1:], as_json=values.json))(rest)


def compile_once(directory):
    """For a fixture: programs are kept, since every call compiles the same ones."""
    settings = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    previous = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield directory
    for name, value in previous.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
