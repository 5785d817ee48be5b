"""Which kind of file this is, by its first bytes; the name only decides between kinds of plain text."""

from __future__ import annotations

import re
import tarfile
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
)
from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.folders import leads_through_litter
from adadistill.loaders.records.recordio import MAGIC

_START = 16 << 20
"""An image is looked at whole; of all else the first bytes say what it is."""
_IDX_START = re.compile(rb"\d{1,19}[\t ]\d{1,19}\r?\n")
_LST_START = re.compile(rb"\d{1,19}\t[-+0-9.eE\t]+\t[^\t\n]+\n")
_MOST_MEMBERS = 1000


_LOOKED_INTO = (
    *("records", "pickle", "jpeg", "png", "npy", "safetensors", "parquet", "tar"),
    *("zip", "onnx", "json", "text"),
)
_KINDS_BY_SUFFIX = {
    ".rec": {"records", "empty"},
    ".idx": {"index"},
    ".lst": {"list"},
    ".bin": {"verification-set", "pickle", "zip"},
    ".tar": {"tar"},
    ".parquet": {"parquet"},
    ".npy": {"array"},
    ".safetensors": {"safetensors"},
    ".pth": {"zip", "pickle"},
    ".onnx": {"onnx"},
    ".seal": {"seal"},
    ".jpg": {"image"},
    ".jpeg": {"image"},
    ".png": {"image"},
}


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
    if start.startswith(MAGIC.to_bytes(4, "little")) or (path.suffix == ".rec" and start):
        return inspect_records(path, index, sample)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return inspect_bin(path, sample)
    if start.startswith((b"\xff\xd8", b"\x89PNG")):
        return inspect_image(path, read_start(path, _START))
    return _by_signature(path, start) or _text(path, start, sample)


def _by_signature(path: Path, start: bytes) -> Finding | None:
    if start.startswith(b"ADRSEAL1"):
        records = path.with_name(path.name.removesuffix(".seal"))
        return Finding(
            path,
            "seal",
            "seal: checksums of a record file",
            next_steps=[f"compare: adadistill data check {quoted(records)}"],
        )
    if start.startswith(b"\x93NUMPY"):
        return inspect_npy(path)
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < 1 << 40:
        return inspect_safetensors(path, start)
    if start.startswith(b"PAR1"):
        return Finding(
            path,
            "parquet",
            "parquet file",
            next_steps=[f"as records: adadistill data convert {quoted(path)} --out RECORDS"],
        )
    if start[257:262] == b"ustar":
        return _tar(path)
    if start[:1] == b"\x08" and path.suffix == ".onnx":
        return Finding(path, "onnx", "ONNX network", next_steps=["as a teacher: teacher.weights in a recipe"])
    if start.startswith(b"PK\x03\x04"):
        return Finding(
            path,
            "zip",
            "zip archive, as torch.save writes weights",
            next_steps=["if these are weights: adadistill convert, which runs nothing of it"],
        )
    return None


def _text(path: Path, start: bytes, sample: int) -> Finding:
    first = start.splitlines(keepends=True)[0]
    if path.suffix == ".idx" or _IDX_START.match(first):
        return inspect_idx(path)
    if path.suffix == ".lst" or _LST_START.match(first):
        return inspect_lst(path)
    if path.suffix == ".bin":
        return inspect_bin(path, sample)
    if start.lstrip()[:1] in (b"{", b"["):
        return inspect_json(path, read_start(path, _START))
    try:
        text = first.decode("utf-8")
    except UnicodeDecodeError:
        hexed = start[:16].hex(" ")
        return Finding(path, "unknown", "nothing known here", {"first bytes": hexed, "bytes": path.stat().st_size})
    if path.name == "property":
        return Finding(
            path, "property", "insightface's property: identities, height, width", {"line": printable(text.rstrip())}
        )
    return Finding(path, "text", "text", {"first line": printable(text.rstrip())})


def _tar(path: Path) -> Finding:
    finding = Finding(path, "tar", "tar file, as WebDataset shards are")
    suffixes: dict[str, int] = {}
    members = 0
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                members += 1
                if not leads_through_litter(member.name):
                    suffix = printable(member.name.rpartition("/")[2].partition(".")[2], 20)
                    suffixes[suffix] = suffixes.get(suffix, 0) + 1
                if members == _MOST_MEMBERS:
                    break
    except tarfile.TarError as error:
        finding.problems.append(f"it is damaged: {printable(str(error))}")
    finding.facts["members looked at"] = members
    finding.facts["their suffixes"] = dict(sorted(suffixes.items(), key=lambda one: -one[1])[:12])
    finding.next_steps.append(f"as records: adadistill data convert {quoted(path)} --out RECORDS")
    return finding
