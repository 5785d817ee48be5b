"""Labelled images from other formats, to be written as insightface-style records: tar shards and parquet sets.

Each reader first lists (label, place) of every image, then hands out the bytes in label order, so that memory holds the
list and one image. Files come from strangers: nothing is extracted to disk, members are read by name and bounded size,
and what is not a JPEG or PNG is refused by name. Images are copied byte for byte.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.folders import IMAGE_SUFFIXES, leads_through_litter
from adadistill.loaders.pixels import image_size
from adadistill.loaders.records.recordio import MAX_EXACT_FLOAT, write_insightface_records

Kind = Literal["tar", "parquet"]

MAX_IMAGE_BYTES = 16 << 20


class ForeignSetError(WorkFailed, ValueError):
    """A set of images that cannot be converted. The message names file and member, and says what was found."""


class ArrowMissingError(ImportError):
    """Parquet files are read with pyarrow, and there is none."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """A set whose images can be read in any order."""

    labels: list[int]
    """Of each image, as the source counts them."""
    read: Callable[[int], bytes]
    """Encoded bytes of the image with that number."""
    names: list[str] | None = None
    """Of the labels, where the source has names for them."""


@dataclass(frozen=True, slots=True)
class Converted:
    """Records made from a foreign set."""

    path: Path
    images: int
    identities: int


def convert_to_records(
    sources: Sequence[Path],
    folder: Path,
    *,
    kind: Kind | None = None,
    label_key: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> Converted:
    """Write `train.rec`, `.idx` and `property` of a foreign set, and `labels.json` from new labels to the source's own.

    Args:
        sources: tar shards, or parquet files. Folders are `record_folder`'s.
        kind: None recognises it by name.
        label_key: JSON key of the label in tar members named .json; parquet's label column. None: `.cls` members, and
            a column `label`.
        limit: take the first so many images only.

    Raises:
        ForeignSetError: something is not what such a set holds.
        FileExistsError: the records exist and `overwrite` is false.
    """
    found = _open(sources, kind or _recognised(sources), label_key)
    numbers = range(len(found.labels))[: len(found.labels) if limit is None else limit]
    if not numbers:
        raise ForeignSetError(f"{sources[0]}: no labelled images were found")
    classes = sorted({found.labels[number] for number in numbers})
    if len(classes) + len(numbers) >= MAX_EXACT_FLOAT:
        raise ForeignSetError(f"{len(numbers)} images are more than insightface's layout can count")
    new_label = {old: new for new, old in enumerate(classes)}
    order = sorted(numbers, key=lambda number: (new_label[found.labels[number]], number))
    samples = ((new_label[found.labels[number]], found.read(number)) for number in order)
    side = image_size(found.read(order[0]), where=f"{sources[0]}, image {order[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    path = write_insightface_records(folder, samples, image_size=side, overwrite=overwrite)
    names = found.names if found.names is not None and classes[-1] < len(found.names) else None
    own = [old if names is None else names[old] for old in classes]
    (folder / "labels.json").write_text(json.dumps(own) + "\n", encoding="utf-8")
    return Converted(path, len(order), len(classes))


def _recognised(sources: Sequence[Path]) -> Kind:
    suffixes = {path.suffix.lower() for path in sources}
    if suffixes == {".tar"}:
        return "tar"
    if suffixes == {".parquet"}:
        return "parquet"
    raise ForeignSetError(
        f"{', '.join(map(str, sources[:4]))}: neither .tar shards, .parquet files, one .rec, nor one folder; name it "
        "with --from"
    )


def _open(sources: Sequence[Path], kind: Kind, label_key: str | None) -> LabelledImages:
    for path in sources:
        if not path.exists():
            raise ForeignSetError(f"{path}: no such file or folder")
    if kind == "tar":
        return _tar_shards(sources, label_key)
    return _parquet_files(sources, label_key or "label")


def _tar_shards(paths: Sequence[Path], label_key: str | None) -> LabelledImages:
    """WebDataset: members of one sample share their name up to the first dot behind the last slash."""
    labels: list[int] = []
    places: list[tuple[Path, int, int, str]] = []
    for path in paths:
        for name, parts in _samples(path):
            image = next((parts[suffix[1:]] for suffix in IMAGE_SUFFIXES if suffix[1:] in parts), None)
            if image is None:
                continue
            labels.append(_tar_label(path, name, parts, label_key))
            places.append((path, image.offset_data, image.size, image.name))

    def read(number: int) -> bytes:
        path, offset, size, name = places[number]
        with path.open("rb") as file:
            file.seek(offset)
            body = file.read(size)
        if len(body) != size:
            raise ForeignSetError(f"{path}, {name}: the file ends within it")
        return _image(body, f"{path}, {name}")

    return LabelledImages(labels, read)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Samples of one shard in order; only plain files of bounded size count."""
    current, parts = "", dict[str, tarfile.TarInfo]()
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if not member.isfile() or leads_through_litter(member.name):
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                name = f"{folder}/{stem}"
                if member.size > MAX_IMAGE_BYTES:
                    raise ForeignSetError(
                        f"{path}, {member.name[:200]!a}: {member.size} bytes; at most {MAX_IMAGE_BYTES} are read"
                    )
                if name != current and parts:
                    yield current, parts
                    parts = {}
                current = name
                parts[suffix.lower()] = member
        if parts:
            yield current, parts
    except tarfile.TarError as error:
        other = what_it_is(path, "tar")
        if other is not None:
            raise ForeignSetError(f"{path}: no plain tar file: it {other}") from None
        raise ForeignSetError(f"{path}: no plain tar file, or it is damaged: {error}") from None


def _tar_label(path: Path, name: str, parts: dict[str, tarfile.TarInfo], label_key: str | None) -> int:
    where = f"{path}, {name[:200]!a}"
    suffix = "cls" if label_key is None else "json"
    member = parts.get(suffix)
    if member is None:
        raise ForeignSetError(f"{where}: has no .{suffix} beside its image; it has {', '.join(sorted(parts))}")
    if member.size > 1 << 20:
        raise ForeignSetError(f"{where}: its .{suffix} has {member.size} bytes")
    with path.open("rb") as file:
        file.seek(member.offset_data)
        text = file.read(member.size)
    try:
        value: Any = text.decode("ascii").strip() if label_key is None else json.loads(text)[label_key]
        if isinstance(value, bool) or (label_key is None and not value.isdigit()):
            raise ValueError
        return _whole(int(value), where)
    except (ValueError, KeyError, TypeError, RecursionError):
        key = "" if label_key is None else f" under {label_key!r}"
        raise ForeignSetError(f"{where}: its .{suffix} holds no whole number{key}: {text[:60]!r}") from None


def _parquet_files(paths: Sequence[Path], label_key: str) -> LabelledImages:
    """Hugging Face image sets: a column `image` of {bytes, path} or binary, and a column of labels."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ArrowMissingError(f"parquet files need pyarrow ({error}): pip install adadistill[arrow]") from error
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []  # (file, row group, row)
    files: list[Any] = []
    for number, path in enumerate(paths):
        try:
            file = parquet.ParquetFile(path)
            names = file.schema_arrow.names
            missing = {"image", label_key} - set(names)
            if missing:
                listed = ", ".join(names)
                raise ForeignSetError(f"{path}: has no column {' or '.join(sorted(missing))}; it has {listed}")
            files.append(file)
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=[label_key]).column(label_key).to_pylist()
                for row, value in enumerate(column):
                    if isinstance(value, bool) or not isinstance(value, int):
                        raise ForeignSetError(f"{path}, row {row} of group {group}: label {value!r} is no whole number")
                    labels.append(_whole(value, f"{path}, row {row} of group {group}"))
                    places.append((number, group, row))
        except (pyarrow.ArrowException, OSError) as error:
            if (other := what_it_is(path, "parquet")) is not None:
                raise ForeignSetError(f"{path} {other}") from None
            raise ForeignSetError(f"{path}: cannot be read as parquet: {error}") from None
    held: dict[tuple[int, int], Any] = {}

    def read(number: int) -> bytes:
        file, group, row = places[number]
        if (file, group) not in held:
            held.clear()  # one row group in memory at a time
            held[file, group] = files[file].read_row_group(group, columns=["image"]).column("image")
        value = held[file, group][row].as_py()
        body = value.get("bytes") if isinstance(value, dict) else value
        where = f"{paths[file]}, row {row} of group {group}"
        if not isinstance(body, bytes):
            raise ForeignSetError(f"{where}: its image holds no bytes, but {type(body).__name__}")
        if len(body) > MAX_IMAGE_BYTES:
            raise ForeignSetError(f"{where}: its image has {len(body)} bytes; at most {MAX_IMAGE_BYTES} are read")
        return _image(body, where)

    return LabelledImages(labels, read, _class_names(files[0], label_key))


def _class_names(file: Any, label_key: str) -> list[str] | None:
    """Names of a ClassLabel column, out of what Hugging Face writes into the schema; None where there are none."""
    try:
        features = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_key]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _whole(label: int, where: str) -> int:
    if not 0 <= label < 1 << 62:
        raise ForeignSetError(f"{where}: label {label} is negative or too large")
    return label


def _image(body: bytes, where: str) -> bytes:
    image_size(body, where=where)  # raises ImageDecodeError, a ValueError that names it
    return body
