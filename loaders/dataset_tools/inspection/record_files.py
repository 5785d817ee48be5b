"""A `.rec` file: whose style it is, what its records hold, and whether its index, property file and seal fit."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adadistill.loaders.command_text import quoted
from adadistill.loaders.dataset_tools.inspection.finding import Finding, ImageSample, printable, read_start
from adadistill.loaders.json_text import JSON, parse_json
from adadistill.loaders.pixels import ImageDecodeError, image_header
from adadistill.loaders.records.image_records import ImageRecords, read_property
from adadistill.loaders.records.label_check import check_labels
from adadistill.loaders.records.record_index import RecordIndex, load_record_index
from adadistill.loaders.records.record_seal import SealError, open_seal
from adadistill.loaders.records.recordio import MAX_EXACT_FLOAT, RecordError, RecordFile

_IDX_CHUNK = 1 << 20
_STORE_HEADER_BYTES = 1 << 20
_MOST_NEIGHBOURS = 64
_SHOWN_LABELS = 16


@dataclass(frozen=True, slots=True)
class RecordShown:
    """One record, for people."""

    facts: dict[str, JSON]
    body: bytes


def inspect_records(path: Path, index_path: Path | None, sample: int) -> Finding:
    """Look at a record file: all places, the headers of a sample of images.

    Args:
        index_path: its `.idx`; None takes the one beside it, or a walk.
        sample: most images to look at, evenly spread.
    """
    finding = Finding(path, "records", "RecordIO file of images")
    file = RecordFile(path)
    finding.facts["bytes"] = file.size
    try:
        index = load_record_index(file, index_path)
    except RecordError as error:
        finding.problems.append(str(error))
        finding.next_steps.append("restore the file from its source: a walk through it does not arrive at its end")
        return finding
    if not len(index):
        finding.problems.append("it holds no image records")
        return finding
    flags, labels, images = _sample(file, index, sample, finding)
    unlisted = file.size - index.limits.item(-1)
    style = _style(path, index, flags, unlisted=unlisted)
    finding.title = f"RecordIO file, {style}"
    others = index.num_records - len(index)
    finding.facts |= {
        "images": len(index),
        "identities by its header": index.num_identities,
        "header and identity records": others if others or not unlisted else f"not listed, {unlisted} bytes at its end",
        "labels": _label_forms(flags),
        "labels in the sample": f"{min(labels):g} to {max(labels):g}" if labels else "none can be read",
    }
    finding.facts |= images.facts()
    finding.problems += images.problems()
    listed = _index_facts(path, index_path, index, finding)
    _property_facts(path, index, finding)
    _label_facts(path, index_path, finding)
    _seal_facts(file, index, finding)
    _store_facts(path, finding)
    _advise(path, finding, images, listed=listed, others=others)
    return finding


def show_record(path: Path, index_path: Path | None, record_id: int) -> RecordShown:
    """All there is to know of one image record.

    Raises:
        IndexError: there is no such record id.
        RecordError: the record is damaged.
    """
    file = RecordFile(path)
    index = load_record_index(file, index_path)
    if not 0 <= record_id < len(index):
        raise IndexError(f"record ids of {path} are 0 to {len(index) - 1}, got {record_id}")
    offset, key = index.offsets.item(record_id), index.keys.item(record_id)
    record = file.read(offset, key=key, record_id=record_id, limit=index.limits.item(record_id))
    (in_header,) = struct.unpack("<f", file.bytes_at(offset + 12, offset + 16))
    shown: list[JSON] = [_plain(value) for value in record.labels[:_SHOWN_LABELS]]
    facts: dict[str, JSON] = {
        "record": record_id,
        "key": key,
        "offset": offset,
        "ends at": file.end_of(offset),
        "flag": record.flag,
        "labels": shown + ["..."] * (len(record.labels) > _SHOWN_LABELS),
        "label in the image header": _plain(in_header),
        "id": record.id if record.id < 1 << 63 else hex(record.id),
        "id2": record.id2 if record.id2 < 1 << 63 else hex(record.id2),
        "image bytes": len(record.body),
        "sha256": hashlib.sha256(record.body).hexdigest(),
    }
    try:
        header = image_header(record.body, where=f"{path}: record {record_id}")
        facts["image"] = f"{header.coding}, {header.height} x {header.width}"
    except ImageDecodeError as error:
        facts["image"] = str(error)
    return RecordShown(facts, record.body)


def _sample(
    file: RecordFile, index: RecordIndex, sample: int, finding: Finding
) -> tuple[Counter[int], list[float], ImageSample]:
    """Label counts, first labels and images of the records looked at; what is wrong goes to the finding."""
    flags, labels, images, bad, odd = Counter[int](), list[float](), ImageSample(), list[str](), list[str]()
    chosen = np.unique(np.linspace(0, len(index) - 1, min(sample, len(index))).astype(np.int64))
    for record_id in chosen.tolist():
        key, limit = index.keys.item(record_id), index.limits.item(record_id)
        try:
            record = file.read(index.offsets.item(record_id), key=key, record_id=record_id, limit=limit)
        except RecordError as error:
            bad.append(str(error))
            continue
        flags[record.flag] += 1
        label = record.labels[0]
        if not (0 <= label < MAX_EXACT_FLOAT and label.is_integer()):
            odd.append(f"record {record_id} (key {key}) has label {label!r}")
        else:
            labels.append(label)
        images.add(record.body, f"record {record_id} (key {key})")
    if bad:
        finding.problems.append(f"{len(bad)} of {len(chosen)} records looked at are damaged; the first: {bad[0]}")
    if odd:
        finding.problems.append(f"{len(odd)} of {len(chosen)} labels name no identity; the first: {odd[0]}")
    return flags, labels, images


def _style(path: Path, index: RecordIndex, flags: Counter[int], *, unlisted: int) -> str:
    """Whose tool wrote such files."""
    if index.num_identities is not None:
        return "insightface's layout (header record with key 0, identity records)"
    if unlisted:
        return "insightface's layout, by an index of its images alone"
    if path.with_name("train.tsv").is_file() or path.with_suffix(".tsv").is_file():
        return "as CVLface writes it (all records are images, a .tsv beside it)"
    if set(flags) == {0}:
        return "as im2rec and shuffling tools write it (all records are images, one label each)"
    return "all records are images, several labels each"


def _label_forms(flags: Counter[int]) -> JSON:
    forms = {0: "one, in the image header (flag 0)"}
    return {forms.get(flag, f"{flag} behind the header (flag {flag})"): count for flag, count in flags.most_common(8)}


def _index_facts(path: Path, index_path: Path | None, index: RecordIndex, finding: Finding) -> bool:
    """What the `.idx` is; true where it was read and lists more than images."""
    idx = index_path or path.with_suffix(".idx")
    if index.source == "scan":
        finding.facts["index"] = "none is beside it" if not idx.is_file() else f"not usable: {printable(index.reason)}"
        if idx.is_file():
            finding.problems.append(f"the .idx does not fit: {printable(index.reason)}")
        return index.num_records > len(index)
    lists_others = index.num_records > len(index)
    finding.facts["index"] = f"{idx.name} fits: {index.num_records} lines in {_line_order(idx)}" + (
        "" if lists_others else ", images only"
    )
    finding.facts["keys of the images"] = f"{int(index.keys.min())} to {int(index.keys.max())}"
    return lists_others


def _line_order(idx: Path) -> str:
    """Order of the lines, by the first megabyte."""
    start = read_start(idx, _IDX_CHUNK)
    rows = [line.split() for line in start[: start.rfind(b"\n") + 1].splitlines() if line.strip()]
    keys, offsets = [int(row[0]) for row in rows], [int(row[1]) for row in rows]
    if keys == sorted(keys):
        return "key order"
    return "file order" if offsets == sorted(offsets) else "no order"


def _property_facts(path: Path, index: RecordIndex, finding: Finding) -> None:
    properties = path.with_name("property")
    if not properties.is_file():
        finding.facts["property"] = "none is beside it"
        return
    finding.facts["property"] = printable(read_start(properties, 200).decode("utf-8", "replace").partition("\n")[0])
    try:
        count = read_property(properties)
    except ValueError as error:
        finding.problems.append(str(error))
        return
    if index.num_identities not in (None, count):
        finding.problems.append(f"property says {count} identities, the header record {index.num_identities}")


def _label_facts(path: Path, index_path: Path | None, finding: Finding) -> None:
    """What all labels say, beside what is claimed."""
    try:
        found = check_labels(ImageRecords(path, index_path, seal="ignore"), needs_several=False)
    except (RecordError, ValueError) as error:
        if str(error) not in finding.problems:
            finding.problems.append(str(error))
        return
    finding.facts["identities by labels"] = found.said or "none can be read"
    odd = "" if any("name no identity" in problem for problem in finding.problems) else found.odd
    finding.problems += [text for text in (odd, found.beyond, *found.refused, *found.warnings) if text]


def _seal_facts(file: RecordFile, index: RecordIndex, finding: Finding) -> None:
    try:
        seal = open_seal(file.path)
        if seal is not None:
            seal.require(file, index)
        finding.facts["seal"] = "none" if seal is None else f"fits: checksums of {seal.num_images} images"
    except SealError as error:
        finding.facts["seal"] = "does not fit"
        finding.problems.append(str(error))


def _store_facts(path: Path, finding: Finding) -> None:
    """Packed stores and teacher caches beside the records, and whether they are of these records."""
    fingerprint, found = None, []
    for header_path in sorted(path.parent.glob("*/header.json"))[:_MOST_NEIGHBOURS]:
        try:
            header = parse_json(read_start(header_path, _STORE_HEADER_BYTES).decode("utf-8"))
        except (ValueError, OSError):
            continue
        records = header.get("records") if isinstance(header, dict) else None
        if not isinstance(header, dict) or not isinstance(records, dict):
            continue
        if fingerprint is None:
            fingerprint = ImageRecords(path, seal="ignore").fingerprint()
        kind = printable(str(header.get("format")), 40)
        bound = "of these records" if records.get("fingerprint") == fingerprint else "of other records"
        found.append(f"{printable(header_path.parent.name, 60)}: {kind}, {bound}")
    if found:
        finding.facts["stores beside it"] = list(found)


def _advise(path: Path, finding: Finding, images: ImageSample, *, listed: bool, others: int) -> None:
    if finding.problems:
        finding.next_steps.append(f"see all that is wrong: adadistill data check {quoted(path)}")
    finding.next_steps.append(f"train from it: data.records: {path}")
    if others and listed:
        finding.next_steps.append(f"usable by DALI's own reader after: adadistill data index {quoted(path)}")
    elif finding.facts["index"] != "none is beside it":
        finding.next_steps.append("usable by DALI's own reader with this index")
    if finding.facts.get("seal") == "none":
        finding.next_steps.append(
            f"protect it against changed bits: adadistill data check --decode --seal {quoted(path)}"
        )
    if images.needs_resizing:
        finding.next_steps.append("not all images are 112 x 112: data.wrong_size: resize, or align them first")
    finding.next_steps.append(f"as a folder of images: adadistill data convert {quoted(path)} --out FOLDER")


def _plain(value: float) -> JSON:
    return value if np.isfinite(value) else str(value)
