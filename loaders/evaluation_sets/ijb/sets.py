"""Opens an IJB set in whichever layout it lies, and checks everything but the images before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adadistill.loaders.evaluation_sets.ijb import arrow_layout, original_layout
from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations
from adadistill.loaders.evaluation_sets.image_sets import AlignedImages, ImageSet, ImageSetError
from adadistill.loaders.records.arrow_images import is_arrow_folder

PUBLISHED_COUNTS: Mapping[str, Mapping[str, int]] = {
    "ijbb": {"images": 227_630, "templates": 12_115, "pairs": 8_010_270, "same_pairs": 10_270},
    "ijbc": {"images": 469_375, "templates": 23_124, "pairs": 15_658_489, "same_pairs": 19_557},
}
"""What the sets hold that everybody reports; other counts are another protocol."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IjbSet:
    """A set, ready to be scored."""

    folder: Path
    annotations: IjbAnnotations
    images: ImageSet
    hash_of_images: Callable[[], str]
    """Tells these images from others: contents of Arrow files, names and sizes of loose crops."""

    @property
    def name(self) -> str:
        """As in the keys of scores."""
        return self.annotations.name

    def sha256(self) -> str:
        """Of the annotations and of what tells the images. Reads prepared sets whole."""
        digest = hashlib.sha256(self.hash_of_images().encode())
        known = self.annotations
        per_image = (known.templates, known.medias, known.detector_scores)
        for values in (known.template_ids, *per_image, known.first, known.second, known.same):
            digest.update(np.ascontiguousarray(values).data)
        for side in (*known.galleries, *([known.probes] if known.probes else [])):
            digest.update(side.name.encode() + side.templates.tobytes() + side.subjects.tobytes())
        return digest.hexdigest()

    def unlike_published(self) -> str | None:
        """How the set differs from the published one of its name; None where it does not, or has no such name."""
        published = next(
            (counts for name, counts in PUBLISHED_COUNTS.items() if self.name.lower().startswith(name)), {}
        )
        counts = self.annotations.counts
        other = [f"{counts[name]:,} {name} (published {count:,})" for name, count in published.items()
                 if counts[name] != count]  # fmt: skip
        return f"does not compare with published numbers: {', '.join(other)}" if other else None


def open_ijb(folder: str | Path) -> IjbSet:
    """Open a set: the original folder (`meta`, `loose_crop`) of IJB-B or IJB-C, or CVLface's prepared one.

    Everything is read and checked but the images themselves; IJB-C takes some ten seconds and under 2 GB meanwhile.
    The 1:N protocol comes from the csv files in `meta`, or beside the prepared folder's files; a set without them has
    1:1 alone.

    Raises:
        FileNotFoundError: no such folder, or a file of the set is missing.
        ImportError: a prepared folder, and pyarrow is not installed.
        ImageSetError, ArrowImagesError, TorchMetadataError: a file is damaged or hostile, or contradicts another.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; an IJB set is one")
    if is_arrow_folder(folder):
        annotations, rows = arrow_layout.read_arrow(folder)
        kind = annotations.name.lower()[:4]
        if kind in PUBLISHED_COUNTS:
            annotations = original_layout.with_identification(annotations, folder, kind)
        return IjbSet(folder=folder, annotations=annotations, images=AlignedImages(rows), hash_of_images=rows.sha256)
    name = original_layout.find_set(folder)
    if name is None:
        raise ImageSetError(
            f"{folder}: neither meta/ijbb_face_tid_mid.txt nor meta/ijbc_face_tid_mid.txt of the original layout, nor "
            "the state.json of a prepared folder is there"
        )
    annotations, crops = original_layout.read_original(folder, name)
    return IjbSet(folder=folder, annotations=annotations, images=crops, hash_of_images=crops.sha256)
