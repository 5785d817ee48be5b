"""Reads image folders that Hugging Face `datasets` saved (`save_to_disk`), which is how CVLface hands out its sets.

Such a folder holds `state.json`, which lists Arrow stream files, and those files: record batches of about a thousand
rows with a column `image` (encoded bytes, or a struct of bytes and path) and small columns beside it. Opening walks the
batches and keeps the small columns; images are read afterwards, one record batch in memory at a time. Files come from
strangers: a batch is bounded, validated in full (offsets out of range would otherwise be read), and must not be
compressed, so that memory never exceeds the file's own bytes.

Needs pyarrow (extra `arrow`), not the package `datasets`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.pixels import MAX_IMAGE_BYTES

MAX_BATCH_BYTES = 1 << 30
"""Largest record batch that is read; `datasets` writes a thousand rows, some 20 MB of faces."""

MAX_ROWS = 1 << 26
"""Rows of a folder; the largest evaluation set has 469,375."""

_STATE_NAME = "state.json"
_MAX_STATE_BYTES = 1 << 20
_END_OF_STREAM = (b"\xff\xff\xff\xff\x00\x00\x00\x00", b"\x00\x00\x00\x00")
"""How a stream that was closed ends; the second since before Arrow 0.15."""
_HASHED_AT_ONCE = 1 << 22


class ArrowImagesError(ValueError):
    """A folder is no set of images as `datasets` saves them. The message names file and row, and what was found."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Where a record batch lies."""

    file: int
    offset: int
    first_row: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrowImages:
    """N images of a saved folder, in the order of its rows, with the small columns that were asked for."""

    folder: Path
    files: tuple[Path, ...]
    index: npt.NDArray[np.int64] | None
    """(N,) column `index`, a permutation of 0 ... N - 1: the number by which metadata speak of a row's image."""
    is_same: npt.NDArray[np.bool_] | None
    """(N,) column `is_same`."""
    paths: tuple[str, ...] | None
    """Column `path`."""
    batches: tuple[_Batch, ...] = field(repr=False)

    def __len__(self) -> int:
        return self.batches[-1].first_row + self.batches[-1].rows

    def where(self, row: int) -> str:
        """What errors call a row's image."""
        return f"{self.folder}, image of row {row}"

    def bodies(self, start: int, stop: int) -> Iterator[bytes]:
        """Encoded images of rows [start, stop), in order; one record batch is in memory at a time.

        Raises:
            ArrowImagesError: a file has changed since it was opened, or an image is missing or too large.
        """
        pyarrow = _pyarrow()
        for batch in self.batches:
            first, last = max(start - batch.first_row, 0), min(stop - batch.first_row, batch.rows)
            if first >= last:
                continue
            path = self.files[batch.file]
            with _arrow_errors(path), pyarrow.OSFile(str(path)) as source:
                schema = pyarrow.ipc.open_stream(source).schema
                source.seek(batch.offset)
                images = _read_batch(pyarrow.ipc.read_message(source), schema, path).column("image")
            if len(images) != batch.rows:
                raise ArrowImagesError(f"{path}: has changed since it was opened")
            for row in range(first, last):
                yield _body(images[row].as_py(), self.where(batch.first_row + row))

    def sha256(self) -> str:
        """Of the contents of the Arrow files, in order. Reads them all."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while piece := file.read(_HASHED_AT_ONCE):
                    digest.update(piece)
        return digest.hexdigest()


def open_arrow_images(folder: Path, *, columns: Sequence[str] = ("index",)) -> ArrowImages:
    """Open a folder of images and check everything about it but the images themselves.

    Args:
        folder: what `save_to_disk` wrote.
        columns: beside `image`, those that must be there, out of `index`, `is_same` and `path`; others are not read.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: there is no such folder, or a file that its state.json lists is missing.
        ArrowImagesError: anything else that is not as it should be.
    """
    unknown = set(columns) - {"index", "is_same", "path"}
    if unknown:
        raise ValueError(f"columns must be of index, is_same and path, got {sorted(unknown)}")
    _pyarrow()
    files = _listed_files(folder)
    batches: list[_Batch] = []
    values: dict[str, list[Any]] = {name: [] for name in columns}
    rows = 0
    for number, path in enumerate(files):
        for offset, batch in _walk(path, columns):
            if batch.num_rows == 0:
                continue
            batches.append(_Batch(number, offset, rows, batch.num_rows))
            for name in columns:
                values[name].append(_column(batch, name, path, rows))
            rows += batch.num_rows
            if rows > MAX_ROWS:
                raise ArrowImagesError(f"{folder}: more than {MAX_ROWS:,} rows")
    if not batches:
        raise ArrowImagesError(f"{folder}: holds no rows")
    index = np.concatenate(values["index"]).astype(np.int64) if "index" in values else None
    if index is not None:
        _check_permutation(index, folder)
    return ArrowImages(
        folder=folder,
        files=files,
        index=index,
        is_same=np.concatenate(values["is_same"]).astype(np.bool_) if "is_same" in values else None,
        paths=tuple(text for texts in values["path"] for text in texts) if "path" in values else None,
        batches=tuple(batches),
    )


def is_arrow_folder(folder: Path) -> bool:
    """Whether a folder looks like one that `datasets` saved."""
    return (folder / _STATE_NAME).is_file()


def _pyarrow() -> Any:
    import pyarrow
    import pyarrow.ipc

    return pyarrow


def _listed_files(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    path = folder / _STATE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a folder saved by Hugging Face datasets has one beside its files")
    with path.open("rb") as file:
        text = file.read(_MAX_STATE_BYTES + 1)
    try:
        if len(text) > _MAX_STATE_BYTES:
            raise ValueError(f"larger than {_MAX_STATE_BYTES} bytes")
        names = [str(entry["filename"]) for entry in json.loads(text)["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if (other := what_it_is(text, "json")) is not None:
            raise ArrowImagesError(f"{path} {other}") from None
        raise ArrowImagesError(f"{path}: lists no Arrow files: {type(error).__name__} {str(error)[:80]}") from None
    if not names or len(names) != len(set(names)):
        raise ArrowImagesError(f"{path}: lists no Arrow files, or one of them twice")
    for name in names:
        if name != Path(name).name or name in ("", ".", ".."):
            raise ArrowImagesError(f"{path}: lists {name[:80]!a}, which is no file of this folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}, which {path} lists, is missing")
    return tuple(folder / name for name in names)


class _arrow_errors:  # noqa: N801  used as a statement
    """Arrow's own errors as ours, naming the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and issubclass(kind, (_pyarrow().ArrowException, OSError, EOFError, UnicodeDecodeError)):
            reason = str(error).strip().split("\n")[0][:200]
            raise ArrowImagesError(f"{self._path}: cannot be read as an Arrow stream, or was cut short: {reason}")


def _walk(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """(offset, record batch) of a file, over a memory map: only the pages of what is looked at are read."""
    pyarrow = _pyarrow()
    _check_end(path)
    with _arrow_errors(path), pyarrow.memory_map(str(path)) as source:
        schema = pyarrow.ipc.open_stream(source).schema
        _check_schema(schema, columns, path)
        source.seek(0)
        pyarrow.ipc.read_message(source)  # the schema
        while True:
            offset = source.tell()
            try:
                message = pyarrow.ipc.read_message(source)
            except EOFError:
                return
            yield offset, _read_batch(message, schema, path, names=columns)


def _check_end(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(max(0, path.stat().st_size - 8))
        end = file.read()
    if start != b"ARROW1" and (other := what_it_is(path)) is not None:
        raise ArrowImagesError(f"{path} {other}")
    if start == b"ARROW1":
        raise ArrowImagesError(f"{path}: is an Arrow file of the random-access format; datasets saves streams")
    if not end.endswith(_END_OF_STREAM):
        raise ArrowImagesError(f"{path}: does not end as a closed Arrow stream does; it was cut short")


def _check_schema(schema: Any, columns: Sequence[str], path: Path) -> None:
    from pyarrow import types

    missing = {"image", *columns} - set(schema.names)
    if missing:
        listed = ", ".join(map(str, schema.names[:20]))
        raise ArrowImagesError(f"{path}: has no column {' or '.join(sorted(missing))}; it has {listed}")
    for name in ("image", *columns):
        if schema.names.count(name) > 1:
            raise ArrowImagesError(f"{path}: has two columns {name}")
    image = schema.field("image").type
    if types.is_struct(image):
        inner = {image.field(place).name: image.field(place).type for place in range(image.num_fields)}
        image = inner.get("bytes", image)
    if not (types.is_binary(image) or types.is_large_binary(image)):
        raise ArrowImagesError(f"{path}: column image is {schema.field('image').type}, not encoded bytes")
    fits = {
        "index": types.is_integer,
        "path": _is_text,
        "is_same": lambda kind: types.is_boolean(kind) or types.is_integer(kind),
    }
    for name in columns:
        if not fits[name](schema.field(name).type):
            raise ArrowImagesError(f"{path}: column {name} is {schema.field(name).type}")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _read_batch(message: Any, schema: Any, path: Path, names: Sequence[str] = ("image",)) -> Any:
    """A message's record batch, of which the named columns are validated."""
    if message.type != "record batch":
        raise ArrowImagesError(f"{path}: holds a {message.type} message where record batches are expected")
    size = message.body.size
    if size > MAX_BATCH_BYTES:
        raise ArrowImagesError(f"{path}: a record batch of {size:,} bytes; at most {MAX_BATCH_BYTES:,} are read")
    batch = _pyarrow().ipc.read_record_batch(message, schema)
    if batch.get_total_buffer_size() > size:
        raise ArrowImagesError(f"{path}: a record batch is compressed, or its buffers overlap; datasets saves neither")
    for name in names:
        batch.column(name).validate(full=True)
    return batch


def _column(batch: Any, name: str, path: Path, first_row: int) -> Any:
    column = batch.column(name)
    if column.null_count:
        raise ArrowImagesError(f"{path}: column {name} has empty cells from row {first_row} on")
    if name == "path":
        return column.to_pylist()
    values = column.to_numpy(zero_copy_only=False)
    if name == "is_same" and not np.isin(values, (0, 1)).all():
        raise ArrowImagesError(f"{path}: column is_same holds other values than 0 and 1 from row {first_row} on")
    return np.array(values)  # its own memory: the map is closed after the walk


def _check_permutation(index: npt.NDArray[np.int64], folder: Path) -> None:
    seen = np.zeros(len(index), dtype=np.bool_)
    inside = (index >= 0) & (index < len(index))
    seen[index[inside]] = True
    if not inside.all() or not seen.all():
        raise ArrowImagesError(
            f"{folder}: column index does not number its {len(index)} rows from 0 to {len(index) - 1}; "
            f"{int((~seen).sum())} numbers are missing, so rows are repeated or lost"
        )


def _body(value: object, where: str) -> bytes:
    body = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(body, bytes):
        raise ArrowImagesError(f"{where}: holds no bytes, but {type(body).__name__}; paths alone are not followed")
    if len(body) > MAX_IMAGE_BYTES:
        raise ArrowImagesError(f"{where}: {len(body):,} bytes; at most {MAX_IMAGE_BYTES:,} are read")
    return body
