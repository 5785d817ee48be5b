"""Files that lie beside records or networks: `.idx`, `.lst`, `.bin`, tars, weights, arrays, single images, JSON."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np

from adadistill.loaders.command_text import quoted
from adadistill.loaders.dataset_tools.inspection.finding import Finding, ImageSample, printable, read_start
from adadistill.loaders.dataset_tools.record_folder.image_lists import read_list
from adadistill.loaders.evaluation_sets.verification_pairs import VerificationSetError, read_verification_bin
from adadistill.loaders.folders import ImageFolderError, leads_through_litter
from adadistill.loaders.json_text import JSON, parse_json
from adadistill.loaders.pixels import MAX_IMAGE_BYTES, ImageDecodeError, image_header
from adadistill.loaders.safe_pickle import PickleDamagedError, PickleRefusedError

_SETS_BY_PAIRS = {6000: "LFW, CALFW, CPLFW or AgeDB-30", 7000: "CFP-FP or CFP-FF", 5000: "VGG2-FP"}
_LARGEST_LST = 1 << 30
_IDX_LINE_LIMIT = 64
_FOLDS = 10
_MOST_MEMBERS = 1000
_IDX_LINE = re.compile(rb"\d{1,19}[\t ]+\d{1,19}\r?\n?")


def inspect_idx(path: Path) -> Finding:
    """An `.idx`: lines, and whether the records beside it are what it lists."""
    finding = Finding(path, "index", "index of a record file: lines `key<TAB>byte offset`")
    lines, bad, first_bad = 0, 0, b""
    with path.open("rb") as file:
        while line := file.readline(_IDX_LINE_LIMIT):
            lines += 1
            if not _IDX_LINE.fullmatch(line):
                bad += 1
                first_bad = first_bad or line
    finding.facts["lines"] = lines
    if bad:
        finding.problems.append(f"{bad} lines are not `key<TAB>offset`, the first is {printable(repr(first_bad))}")
    name = path.name.removesuffix(".idx").removesuffix(".images")
    records = path.with_name(f"{name}.rec")
    finding.facts["records beside it"] = records.name if records.is_file() else "none"
    if records.is_file():
        finding.next_steps.append(f"does it fit? adadistill data inspect {quoted(records)} --index {quoted(path)}")
    return finding


def inspect_lst(path: Path) -> Finding:
    """An im2rec list."""
    finding = Finding(path, "list", "im2rec list: lines `key<TAB>label(s)<TAB>path`")
    if path.stat().st_size > _LARGEST_LST:
        finding.problems.append(f"larger than {_LARGEST_LST} bytes, and not read")
        return finding
    try:
        listed = list(read_list(path))
    except ImageFolderError as error:
        finding.problems.append(str(error))
        return finding
    finding.facts |= {
        "images": len(listed),
        "identities": len({one.labels[0] for one in listed}),
        "labels each": sorted({len(one.labels) for one in listed})[:8],  # type: ignore[dict-item]
        "first": printable(listed[0].path),
    }
    finding.next_steps.append(f"make records of it: adadistill data convert FOLDER --list {quoted(path)} --out RECORDS")
    return finding


def inspect_bin(path: Path, sample: int) -> Finding:
    """A verification set, read by the allow-list reader: nothing in it can run."""
    finding = Finding(path, "verification-set", "verification set: pairs of images, and whether each shows one person")
    start = read_start(path, 2)
    finding.facts["bytes"] = path.stat().st_size
    finding.facts["pickle protocol"] = start[1] if start[:1] == b"\x80" else 0
    try:
        pairs = read_verification_bin(path)
    except (VerificationSetError, PickleRefusedError, PickleDamagedError) as error:
        finding.title = "pickle that is no verification set"
        finding.kind = "pickle"
        finding.problems.append(str(error))
        finding.next_steps.append("do not load it with pickle.load or numpy.load(allow_pickle=True)")
        return finding
    images = ImageSample()
    for number in np.unique(np.linspace(0, len(pairs.images) - 1, min(sample, len(pairs.images))).astype(int)).tolist():
        images.add(pairs.images[number], f"image {number}")
    tenths = [part for part in np.array_split(pairs.same, _FOLDS) if len(part)]
    one_sided = sum(bool(part.all() or not part.any()) for part in tenths)
    finding.facts |= {
        "pairs": len(pairs.same),
        "same": int(pairs.same.sum()),
        "different": int((~pairs.same).sum()),
        "known sets of as many pairs": _SETS_BY_PAIRS.get(len(pairs.same), "none"),
        "sha256": pairs.sha256,
    }
    finding.facts |= images.facts()
    finding.problems += images.problems()
    if one_sided:
        finding.problems.append(
            f"{one_sided} of {len(tenths)} contiguous folds hold one kind of pairs alone: the published ten-fold "
            "numbers need both in each"
        )
    finding.next_steps.append(f"score a network on it: adadistill evaluate NETWORK --sets {quoted(path)}")
    return finding


def inspect_tar(path: Path) -> Finding:
    """A tar: its first members, by the suffixes of their names."""
    finding = Finding(path, "tar", "tar file, as WebDataset shards are")
    suffixes, members = Counter[str](), 0
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                members += 1
                if not leads_through_litter(member.name):
                    suffixes[printable(member.name.rpartition("/")[2].partition(".")[2], 20)] += 1
                if members == _MOST_MEMBERS:
                    break
    except tarfile.TarError as error:
        finding.problems.append(f"it is damaged: {printable(str(error))}")
    finding.facts |= {"members looked at": members, "their suffixes": dict(suffixes.most_common(12))}
    finding.next_steps.append(f"as records: adadistill data convert {quoted(path)} --out RECORDS")
    return finding


def inspect_safetensors(path: Path) -> Finding:
    """Weights: names and shapes out of the header, no tensor."""
    finding = Finding(path, "safetensors", "safetensors file: weights without code")
    length, size = int.from_bytes(read_start(path, 8), "little"), path.stat().st_size
    finding.facts["bytes"] = size
    if length > min(size - 8, 100 << 20):
        finding.problems.append(f"its header announces {length} bytes, the file has {size}")
        return finding
    try:
        header = parse_json(read_start(path, 8 + length)[8:].decode("utf-8"))
    except ValueError as error:
        finding.problems.append(f"its header is no JSON: {printable(str(error))}")
        return finding
    tensors = {name: one for name, one in header.items() if name != "__metadata__"} if isinstance(header, dict) else {}
    ends = [one["data_offsets"] for one in tensors.values() if isinstance(one, dict) and "data_offsets" in one]
    finding.facts["tensors"] = len(tensors)
    finding.facts["first names"] = [printable(name, 80) for name in list(tensors)[:5]]
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict):
        finding.facts["metadata"] = {printable(k, 60): printable(str(v)) for k, v in list(metadata.items())[:10]}
    last = max(
        (end[1] for end in ends if isinstance(end, list) and len(end) == 2 and isinstance(end[1], int)), default=0
    )
    if last + 8 + length != size:
        finding.problems.append(
            f"its tensors end at byte {last + 8 + length}, the file has {size}: it was cut or damaged"
        )
    finding.next_steps.append(f"score it: adadistill evaluate {quoted(path)} --sets SETS")
    return finding


def inspect_npy(path: Path) -> Finding:
    """A numpy array, by its header."""
    finding = Finding(path, "array", "numpy array")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        finding.problems.append(f"it cannot be read: {printable(str(error))}")
        return finding
    finding.facts |= {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype == np.float16 and array.ndim in (2, 3):
        finding.next_steps.append("if these are a teacher's embeddings: adadistill cache import")
    return finding


def inspect_image(path: Path) -> Finding:
    """One encoded image."""
    finding = Finding(path, "image", "encoded image")
    try:
        header = image_header(read_start(path, MAX_IMAGE_BYTES), where=path)
    except ImageDecodeError as error:
        finding.problems.append(str(error))
        return finding
    finding.facts |= {"kind": header.coding, "height x width": f"{header.height} x {header.width}"}
    return finding


def inspect_json(path: Path) -> Finding:
    """A JSON file of ours or of somebody else's: its keys."""
    finding = Finding(path, "json", "JSON file")
    try:
        content = json.loads(read_start(path, MAX_IMAGE_BYTES))
    except (ValueError, RecursionError) as error:
        finding.title = "text"
        finding.facts["not JSON"] = printable(str(error))
        return finding
    keys: list[JSON] = [printable(key, 60) for key in list(content)[:12]] if isinstance(content, dict) else []
    finding.facts["keys" if keys else "holds"] = keys or type(content).__name__
    return finding
