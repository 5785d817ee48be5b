"""Which kind of file this is, by its first bytes; the name only decides between kinds of plain text."""

from __future__ import annotations

import re
from pathlib import Path

from adadistill.loaders.command_text import quoted
from adadistill.loaders.dataset_tools.inspection.finding import Finding, printable, read_start
from adadistill.loaders.dataset_tools.inspection.folders import inspect_folder
from adadistill.loaders.dataset_tools.inspection.record_files import inspect_records
from adadistill.loaders.dataset_tools.inspection.small_files import (
    inspect_bin,
    inspect_idx,
    inspect_image,
    inspect_json,
    inspect_lst,
    inspect_npy,
    inspect_safetensors,
    inspect_tar,
)
from adadistill.loaders.first_bytes import kind_of, what_it_is

_READERS = {
    "jpeg": inspect_image, "png": inspect_image, "npy": inspect_npy, "safetensors": inspect_safetensors,
    "tar": inspect_tar,
}  # fmt: skip
_NAMED = {
    "seal": ("seal: checksums of a record file", "compare: adadistill data check {records}"),
    "parquet": ("parquet file", "as records: adadistill data convert {path} --out RECORDS"),
    "onnx": ("ONNX network", "as a teacher: teacher.weights in a recipe"),
    "zip": (
        "zip archive, as torch.save writes weights",
        "if these are weights: adadistill convert, which runs nothing of it",
    ),
}
"""Kinds of which no more is told: title, and what to do."""
_LOOKED_INTO = (*_READERS, *_NAMED, "records", "pickle", "json", "text")
_IDX_START = re.compile(rb"\d{1,19}[\t ]\d{1,19}\r?\n")
_LST_START = re.compile(rb"\d{1,19}\t[-+0-9.eE\t]+\t[^\t\n]+\n")
_KINDS_BY_SUFFIX = {
    ".rec": {"records", "empty"}, ".idx": {"index"}, ".lst": {"list"}, ".bin": {"verification-set", "pickle", "zip"},
    ".tar": {"tar"}, ".parquet": {"parquet"}, ".npy": {"array"}, ".safetensors": {"safetensors"},
    ".pth": {"zip", "pickle"}, ".onnx": {"onnx"}, ".seal": {"seal"},
    ".jpg": {"image"}, ".jpeg": {"image"}, ".png": {"image"},
}  # fmt: skip


def inspect_path(path: Path, *, index: Path | None = None, sample: int = 2000) -> Finding:
    """Find out what a file or folder is.

    Args:
        index: the `.idx` to use with a record file; None takes the one beside it.
        sample: most images to look at.

    Raises:
        FileNotFoundError: there is nothing, or no such index.
        ValueError: it is no regular file and no folder.
    """
    if path.is_dir():
        return inspect_folder(path, sample)
    if not path.exists():
        raise FileNotFoundError(f"nothing at {path}")
    if not path.is_file():
        raise ValueError(f"{path} is neither a regular file nor a folder")
    finding = _inspect_file(path, index, sample)
    if finding.kind not in _KINDS_BY_SUFFIX.get(path.suffix.lower(), {finding.kind}):
        finding.problems.append(f"its name ends in {path.suffix}, its bytes are of no such file")
    return finding


def _inspect_file(path: Path, index: Path | None, sample: int) -> Finding:
    start = read_start(path, 4096)
    if (other := what_it_is(start, *_LOOKED_INTO)) is not None:
        return Finding(path, "empty" if not start else "other", "not what its name says", problems=[f"it {other}"])
    kind = "seal" if start.startswith(b"ADRSEAL1") else kind_of(start)
    if kind == "records" or path.suffix == ".rec":
        return inspect_records(path, index, sample)
    if kind == "pickle":
        return inspect_bin(path, sample)
    if path.suffix == ".safetensors" and start[8:9] == b"{":
        kind = "safetensors"  # whose header announces more than any has
    if kind in _READERS:
        return _READERS[kind](path)
    if kind in _NAMED and (kind != "onnx" or path.suffix == ".onnx"):
        title, advice = _NAMED[kind]
        records = path.with_name(path.name.removesuffix(".seal"))
        return Finding(path, kind, title, next_steps=[advice.format(path=quoted(path), records=quoted(records))])
    return _text(path, start, sample)


def _text(path: Path, start: bytes, sample: int) -> Finding:
    first = start.splitlines(keepends=True)[0]
    if path.suffix == ".idx" or _IDX_START.match(first):
        return inspect_idx(path)
    if path.suffix == ".lst" or _LST_START.match(first):
        return inspect_lst(path)
    if path.suffix == ".bin":
        return inspect_bin(path, sample)
    if start.lstrip()[:1] in (b"{", b"["):
        return inspect_json(path)
    try:
        text = first.decode("utf-8")
    except UnicodeDecodeError:
        hexed = start[:16].hex(" ")
        return Finding(path, "unknown", "nothing known here", {"first bytes": hexed, "bytes": path.stat().st_size})
    if path.name == "property":
        title, line = "insightface's property: identities, height, width", printable(text.rstrip())
        return Finding(path, "property", title, {"line": line})
    return Finding(path, "text", "text", {"first line": printable(text.rstrip())})
