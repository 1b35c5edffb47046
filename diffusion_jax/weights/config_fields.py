"""The fields of a published config.json: each is honoured, refused or without effect.

A table names every field that the class has, so that none is ignored by oversight. A
file may leave fields out; they are then what the class takes them to be today.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Field(NamedTuple):
    """What the class assumes where a file is silent, and what becomes of the field."""

    default: Any
    note: str  # what it decides here, or why it has no effect
    accepted: tuple | None = None  # the values that are not refused; None: any
    is_honoured: bool = True
    also: tuple[type, ...] = ()  # types of values beside that of the default

    @property
    def status(self) -> str:
        """In words, for a table."""
        if self.accepted is not None:
            return f"refused unless {' or '.join(map(repr, self.accepted))}"
        return "honoured" if self.is_honoured else "no effect"


def honoured(default: Any, note: str, *, also: tuple[type, ...] = ()) -> Field:
    """A field that decides something here; with a default, it is of the same type."""
    return Field(default, note, also=also)


def only(*accepted: Any, note: str = "") -> Field:
    """A field of which we have only these values, the first of which is the default."""
    return Field(accepted[0], note, accepted)


def without_effect(note: str, default: Any = None) -> Field:
    """A field that changes nothing of what a model computes."""
    return Field(default, note, None, False)


# What diffusers writes beside the fields of a class.
OF_DIFFUSERS = {
    "_class_name": without_effect("checked with the directory"),
    "_diffusers_version": without_effect("who wrote it"),
    "_name_or_path": without_effect("who wrote it"),
    **{
        name: without_effect("how a moving average was made")
        for name in (
            *("decay", "min_decay", "inv_gamma", "power", "use_ema_warmup"),
            *("optimization_step", "update_after_step", "collected_params"),
        )
    },
}


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


class Refused(ValueError):
    """A config that is not supported; `problems` says why, one by one."""

    def __init__(self, what: str, problems: list[str]) -> None:
        super().__init__(f"{what} is not supported: {'; '.join(problems)}")
        self.problems = problems


def read(
    config: Mapping[str, Any], table: Mapping[str, Field]
) -> tuple[dict[str, Any], list[str]]:
    """Every field of the table, and what is wrong with those of the file."""
    fields = {name: config.get(name, table[name].default) for name in table}
    fields = {name: _frozen(value) for name, value in fields.items()}
    problems = [f"unknown field {name}" for name in config if name not in table]
    for name, field in table.items():
        value = fields[name]
        if field.is_honoured and field.accepted is None and not _fits(value, field):
            problems.append(f"{name} = {_json(value)} (only {_kind(field)})")
            fields[name] = field.default  # for what is read after it
        if field.accepted is None or value in field.accepted:
            continue
        choices = ", ".join(map(_json, field.accepted))
        problems.append(
            f"{name} = {_json(value)} (only {choices}) {field.note}".strip()
        )
    return fields, problems


def _fits(value: Any, field: Field) -> bool:
    """Whether a value is of the type of a default, or of the others of its field."""
    default = field.default
    if default is None or (value is None and type(None) in field.also):
        return True
    if isinstance(default, tuple) or (isinstance(value, tuple) and tuple in field.also):
        first = default[0] if isinstance(default, tuple) else default
        is_list = isinstance(value, tuple) and len(value) > 0
        return is_list and all(_is_like(entry, first) for entry in value)
    return _is_like(value, default)


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    kinds = int | float if isinstance(default, float) else type(default)
    return isinstance(value, kinds)


def _kind(field: Field) -> str:
    default = field.default
    if isinstance(default, tuple):
        return f"a list such as {_json(default)}"
    others = " or a list of such" if tuple in field.also else ""
    return f"{_KINDS[type(default)]}{others}"


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _json(value: Any) -> str:
    return json.dumps(value)


def per_level(value: Any, num_levels: int, name: str, problems: list[str]) -> tuple:
    """The value of every level, of one number or of a list as long."""
    if not isinstance(value, tuple):
        return (value,) * num_levels
    if len(value) != num_levels:
        problems.append(f"{name} has {len(value)} entries for {num_levels} levels")
        return (value + (0,) * num_levels)[:num_levels]
    return value


def indivisible(given: Mapping[str, Any], **parts: str) -> list[str]:
    """Of fields that must divide others (heads="width"), those that do not."""
    return [
        f"{name} = {given[name]} for {whole} = {given[whole]}"
        for name, whole in parts.items()
        if given[name] < 1 or given[whole] % given[name]
    ]


def read_json(path: str | pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")  # noqa: TRY004
    return content
