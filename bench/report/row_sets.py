"""Sets of rows: read from files and folders, told apart by what they measured, the newest of each kept.

A machine is named by its GPU where a row was measured on one, else by its processor and the number of CPUs. What a row
measured is its bench, that machine, the number of threads and the fields that the schema calls keys.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adadistill.bench.row_schema import BENCHES, Row, RowError, read_rows

Key = tuple[str, ...]


def load_rows(paths: Sequence[str | Path]) -> list[Row]:
    """Rows of files, and of the .jsonl files of folders, oldest first.

    Raises:
        RowError: a line is no row, a path is not there, or a folder holds no .jsonl file; names it.
    """
    rows: list[Row] = []
    for path in map(Path, paths):
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise RowError(f"{path} holds no .jsonl file")
        for file in files:
            try:
                rows += read_rows(file)
            except OSError as error:
                raise RowError(f"{file} cannot be read: {error.strerror}") from error
    return sorted(rows, key=when)


def when(row: Row) -> datetime.datetime:
    """Date of a row; those without a readable one are the oldest."""
    try:
        found = datetime.datetime.fromisoformat(row["date"])
    except ValueError:
        return datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.timezone.utc)


def machine(row: Row) -> str:
    """Where a row was measured, in a few words."""
    if row["device"].startswith("cuda") and row["devices"]:
        index = row["device"].partition(":")[2]
        number = int(index) if index.isdecimal() and len(index) < 4 else 0
        return str(row["devices"][min(number, len(row["devices"]) - 1)])
    count = row.get("cpu_count")
    return f"{row.get('cpu') or 'a CPU without a name'}" + ("" if count is None else f", {count} CPUs")


def key_of(row: Row, *, with_machine: bool = True) -> Key:
    """What a row measured; equal for rows that can be compared."""
    keys = BENCHES[row["bench"]].keys
    where = (machine(row),) if with_machine else ()
    return (row["bench"], *where, str(row["threads"]), *(json.dumps(row.get(name), sort_keys=True) for name in keys))


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each key, in the order in which keys first appear."""
    found: dict[Key, Row] = {}
    for row in sorted(rows, key=when):
        found[key_of(row)] = row
    return list(found.values())


def matching(rows: Iterable[Row], where: Mapping[str, object]) -> list[Row]:
    """Rows whose fields have the values asked for; a tuple allows several, None a missing field too."""
    return [
        row
        for row in rows
        if all(
            row.get(name) in value if isinstance(value, tuple) else row.get(name) == value
            for name, value in where.items()
        )
    ]
