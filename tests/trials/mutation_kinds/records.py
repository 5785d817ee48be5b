"""Record files in the layouts that circulate, for the trials of `.rec`, `.idx` and what lies beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.record_seal import SealError, write_seal
from adadistill.loaders.records.recordio import RecordError, RecordFile, RecordWriter, write_insightface_records
from trials.mutation_kinds.image_attacks import plain_jpeg

IMAGES, IDENTITIES, SIDE = 24, 6, 32
LAYOUTS = ("insightface", "im2rec", "parts")
REFUSALS = (RecordError, ImageDecodeError, SealError)


@dataclass(frozen=True, slots=True)
class Original:
    """A well-formed record file and what is in it."""

    layout: str
    rec: bytes
    idx: bytes
    seal: bytes
    offsets: tuple[int, ...]
    labels: tuple[int, ...]
    pixels: tuple[bytes, ...]

    def write(self, folder: Path, *, rec: bytes | None = None, idx: bytes | None = None, sealed: bool = False) -> Path:
        """The record file with its neighbours in a folder, either of them as given."""
        (folder / "train.idx").write_bytes(self.idx if idx is None else idx)
        if sealed:
            (folder / "train.rec.seal").write_bytes(self.seal)
        path = folder / "train.rec"
        path.write_bytes(self.rec if rec is None else rec)
        return path


def record_originals(folder: Path) -> list[Original]:
    """One file of each layout: insightface's with header and identity records; im2rec's, images alone with one label
    (MXNet's tool, also what CVLface's shuffled sets are); and one whose images hold the magic, so that they have parts.
    """
    originals = []
    for layout in LAYOUTS:
        place = folder / layout
        place.mkdir()
        images = [(index * IDENTITIES // IMAGES, plain_jpeg(index, SIDE, SIDE)) for index in range(IMAGES)]
        if layout == "insightface":
            path = write_insightface_records(place, images, image_size=(SIDE, SIDE))
            (place / "property").unlink()
        else:
            path = place / "train.rec"
            with RecordWriter(path) as writer:
                for key, (label, body) in enumerate(images):
                    stored = _magic_comment(body) if layout == "parts" else body
                    writer.write(key, stored, labels=float(label) if layout == "im2rec" else [float(label), 0.0])
        records = ImageRecords(path)
        write_seal(RecordFile(path), records.index)
        found = contents(path)
        originals.append(
            Original(
                layout=layout,
                rec=path.read_bytes(),
                idx=path.with_suffix(".idx").read_bytes(),
                seal=(place / "train.rec.seal").read_bytes(),
                offsets=tuple(records.index.offsets.tolist()),
                labels=tuple(label for label, _ in found),
                pixels=tuple(pixels for _, pixels in found),
            )
        )
    return originals


def contents(path: Path) -> list[tuple[int, bytes]]:
    """(label, pixels) of every image as training reads it. Raises what reading raises."""
    checked = CheckedRecords(ImageRecords(path), SIDE)
    return [_plain(*checked.decode(record_id)) for record_id in range(checked.num_records)]


def _plain(label: int, pixels: np.ndarray) -> tuple[int, bytes]:
    return label, pixels.tobytes()


def _magic_comment(jpeg: bytes) -> bytes:
    """A JPEG with comments that hold RecordIO's magic at multiples of 4, wherever the record's header ends."""
    comment = b"\xff\xfe\x00\x0a" + b"\x0a\x23\xd7\xce" * 2
    return jpeg[:2] + b"\xff\xfe\x00\x04ab" + comment + jpeg[2:]
