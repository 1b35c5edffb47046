"""The CSV files that stand between what an experiment measures and what it draws.

A script appends a row as soon as it has it, so that an interrupted run loses nothing and
the next one skips what is there; its figure is drawn from the file alone.
"""

import csv
import pathlib
import subprocess
from collections.abc import Mapping, Sequence

import jax

HERE = pathlib.Path(__file__).parent


def provenance() -> dict[str, str]:
    """The commit and the kind of device, which every row names."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"  # an installed copy without git
    return {"commit": commit.strip(), "device": jax.devices()[0].device_kind}


def append_row(path: pathlib.Path, row: Mapping[str, object]) -> None:
    """Adds a row, with a header if the file is new; the columns must be the same."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(row) + "\n")
    text = path.read_text()
    path.write_text(text[: text.rfind("\n") + 1])  # without a row that was cut short
    columns = next(csv.reader(text.splitlines()))
    if columns != list(row):
        raise ValueError(
            f"{path} has the columns {columns}, not {list(row)}: "
            "it is of another version of this experiment; move it away"
        )
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(row.values())


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows as text; none if there is no file. A row that was cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def has_row(rows: Sequence[Mapping[str, str]], **wanted: object) -> bool:
    """Whether some row has these values in these columns."""
    return any(
        all(row.get(name) == str(value) for name, value in wanted.items())
        for row in rows
    )
