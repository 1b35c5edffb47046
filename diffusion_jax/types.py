"""The types that every part of the project shares; this file imports no other of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Key = PRNGKeyArray
Params = dict[str, Any]  # nested: {"unet": {"conv_in": {"kernel": ..., "bias": ...}}}
Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]


KeysValues = dict[str, tuple[Float[Array, "B L E"], Float[Array, "B L E"]]]
"""Keys and values of tokens by the path of the attention that reads them, heads joined."""


class Conditioning(NamedTuple):
    """What a network is told, named by the route it takes into the network."""

    tokens: Float[Array, "B L E"] | None = None  # attended to
    mask: Bool[Array, "B L"] | None = None  # True where a token exists
    vector: Float[Array, "B D"] | None = None  # added to the time embedding
    image: Float[Array, "B H W K"] | None = None  # stacked on the input channels
    keys_values: KeysValues | None = None  # of the tokens, instead of them


class Prompt(NamedTuple):
    """Texts as the text encoders read them."""

    tokens: Int[Array, "B T N L"]  # T text encoders, N chunks of L ids
    weights: Float[Array, "B T N L"]  # emphasis of each token; 1: none
    is_empty: Bool[Array, "B"]  # whether the text is ""


Network = Callable[[Float[Array, "B *d"], Float[Array, "B"], Conditioning], Any]
"""`network(x, time, cond)`: all that the code above models/ knows of one."""

LossFn = Callable[[Params, Params, Key, Batch], tuple[Float[Array, ""], Metrics]]
"""`loss(trainable, frozen, key, batch)`; frozen towers are an argument, because
weights that a function closes over become constants of the compiled program."""


class Task(NamedTuple):
    """Everything the train loop needs to know about what is being trained."""

    init: Callable[[Key], tuple[Params, Params]]  # (trainable, frozen)
    loss: LossFn
    generate: Callable[..., Float[Array, "B H W 3"]] | None = None
