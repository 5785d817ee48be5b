"""The training records of a launch: what the file itself says of them, with where each count comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adadistill.core.launch_check.findings import Findings
from adadistill.core.training.record_agreement import check_launch_labels
from adadistill.loaders.pipelines.pipeline import DataConfig, named_records
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.records.record_index import RecordIndex
from adadistill.loaders.records.record_seal import seal_path


@dataclass(frozen=True, slots=True)
class RecordsSummary:
    """What there is to train on."""

    path: str
    images: int
    identities: int
    header: str
    """How images are told from other records, in words."""
    index: str
    """What gave the offsets, in words."""
    sealed: bool
    """Whether every record is checked against its checksum as it is read."""


def summarise_records(
    config: DataConfig, findings: Findings, *, needs_several: bool
) -> tuple[ImageSource, RecordsSummary] | None:
    """Open the records of a recipe and count them; None, with the problem noted, where that cannot be done.

    The index is read, and labels as a launch reads them; of the records only their beginnings.
    """
    if not findings.will_read("data.records", config.records):
        return None
    if config.index is not None and not findings.will_read("data.index", config.index):
        return None
    path = Path(config.records)
    if path.is_file():
        beside = {"property": path.with_name("property"), "seal": seal_path(path)}
        if config.index is None:
            beside = {"index": path.with_suffix(".idx"), **beside}
        for name, file in beside.items():
            findings.will_read(f"{name} beside data.records", file, needed=False)
    with findings.collected():
        records = named_records(config)
        images, identities = len(records), records.num_classes
        index: object = getattr(records, "index", None)
        with findings.collected():
            findings.notes += check_launch_labels(config, records, needs_several=needs_several)
        if config.wrong_size == "refuse" and config.packed is None:
            _check_size_of_first(records, config.image_size, findings)
        return records, RecordsSummary(
            path=config.records,
            images=images,
            identities=identities,
            header=_header(index),
            index=_index(index),
            sealed=bool(getattr(records, "sealed", False)),
        )
    return None


def _check_size_of_first(records: ImageSource, image_size: int, findings: Findings) -> None:
    """One image tells of most whether data.image_size is theirs. One that is damaged is the run's own business."""
    import simplejpeg

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(records.read(0).body)
    except ValueError:  # damaged, or no JPEG
        return
    if (height, width) != (image_size, image_size):
        findings.problems.append(
            f"data.image_size is {image_size}, and {records.path} begins with an image of {width} x {height}; set it "
            "to the size of the images, or data.wrong_size=resize"
        )


def _header(index: object) -> str:
    if not isinstance(index, RecordIndex):
        return "none: no record file"
    others = index.num_records - len(index)
    if index.num_identities is not None:
        return f"insightface's header record, {index.num_identities:,} identity records"
    return f"no header record; {others:,} records without image left out" if others else "no header record"


def _index(index: object) -> str:
    if not isinstance(index, RecordIndex):
        return "none"
    return index.reason if index.source == "idx" else f"a scan of the records, because {index.reason}"
