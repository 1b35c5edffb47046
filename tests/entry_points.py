"""Entry points in this process, with flags of their own: what a shell would see."""

from absl import flags

from diffusion_jax import command
from diffusion_jax import inspect as inspection
from diffusion_jax import rank as ranking
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


def rank(*words):
    values = flags.FlagValues()
    ranking.define_flags(values)
    words = ["rank", *map(str, words)]
    command.guard(lambda _: ranking.run(values))(command.parse(words, values))
