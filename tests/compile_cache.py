"""Programs compiled once for many tests: compiling is what takes time."""

import jax
from jax.experimental.compilation_cache import compilation_cache


def compile_once(directory):
    """For a fixture to yield from: while it lives, compiled programs are kept there."""
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
