"""Choices by name: `dict(name="min_snr", gamma=5.0)` is a function and its options."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

Spec = Mapping[str, Any] | ConfigDict  # a name and options, or options alone


class ConfigError(ValueError):
    """The config asks for something that does not exist or does not fit."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error: the closest choice if one is close, and all of them."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}One of {choices}"


def check_options(kind: str, target: Callable, options: Spec) -> None:
    """Raises unless `target` takes every one of the options by keyword."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    allowed = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"{kind} has no option {option!r}: {nearest(option, allowed)}"
            )


def choose(kind: str, choices: Mapping[str, Callable], spec: Spec) -> Callable:
    """The function that `spec["name"]` names, with the other entries as options."""
    options = dict(spec)
    name = options.pop("name", None)
    if name not in choices:
        raise ConfigError(f"unknown {kind} {name!r}: {nearest(str(name), choices)}")
    check_options(f"{kind} {name!r}", choices[name], options)
    return functools.partial(choices[name], **options) if options else choices[name]


def construct(kind: str, target: Callable, options: Spec) -> Any:
    """`target(**options)`, with a clear error for a wrong option."""
    check_options(kind, target, options)
    return target(**options)
