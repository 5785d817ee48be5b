"""Writes the images of a record file as a folder of identities with the same record ids and labels, for tests."""

from __future__ import annotations

from pathlib import Path

from adadistill.loaders.records.image_records import ImageRecords


def write_folder_of(records: Path, folder: Path) -> Path:
    """`FOLDER/<identity>/<record id>.jpg`, byte for byte; the record file is in the order of its labels."""
    source = ImageRecords(records)
    for record_id in range(len(source)):
        image = source.read(record_id)
        path = folder / f"{image.label:06d}" / f"{record_id:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.body)
    return folder
