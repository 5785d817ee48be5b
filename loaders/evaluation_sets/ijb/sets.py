"""Opens an IJB set in whichever layout it lies, and checks everything but the images before anything is computed.

CVLface's prepared layout is read here: an Arrow folder of aligned images with a `metadata.pt` beside its files, which
holds arrays `templates`, `medias`, `faceness_scores` of each image, by the column `index`, and `p1`, `p2`, `label` of
each pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.evaluation_sets.ijb import original_layout
from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations, make_annotations
from adadistill.loaders.evaluation_sets.image_sets import AlignedImages, ImageSet, ImageSetError
from adadistill.loaders.records.arrow_images import ArrowImages, is_arrow_folder, open_arrow_images
from adadistill.loaders.safe_pickle import read_torch_metadata

METADATA_NAME = "metadata.pt"
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
        annotations, rows = _read_arrow(folder)
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


def _read_arrow(folder: Path) -> tuple[IjbAnnotations, ArrowImages]:
    """All annotations, checked and in the order of the rows, and the images, found but not read.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: pyarrow is not installed.
        ArrowImagesError, TorchMetadataError: a file is damaged or hostile.
        ImageSetError: the two contradict each other, or the metadata themselves.
    """
    rows = open_arrow_images(folder, columns=("index",))
    assert rows.index is not None, "asked for"
    path = folder / METADATA_NAME
    content = read_torch_metadata(path)
    annotations = make_annotations(
        name=folder.resolve().name,
        where=path,
        templates=_column(content, "templates", path),
        medias=_column(content, "medias", path),
        detector_scores=_column(content, "faceness_scores", path, whole=False),
        first=_column(content, "p1", path),
        second=_column(content, "p2", path),
        same=_column(content, "label", path),
    )
    if len(annotations.templates) != len(rows):
        raise ImageSetError(f"{path} speaks of {len(annotations.templates)} images, {folder} holds {len(rows)}")
    return annotations.in_order(rows.index), rows


def _column(content: dict[str, object], name: str, path: Path, *, whole: bool = True) -> npt.NDArray:
    if name not in content:
        listed = ", ".join(sorted(content))[:200]
        raise ImageSetError(f"{path}: has no {name}; it has {listed}")
    try:
        values = np.asarray(content[name])
    except (ValueError, OverflowError):
        values = np.zeros(0, dtype=np.object_)
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise ImageSetError(f"{path}: {name} is {values.dtype} of shape {values.shape}, not a row of numbers")
    if not whole:
        return values.astype(np.float64)
    if values.dtype.kind == "f" and not ((values == np.rint(values)) & (np.abs(values) < 2**53)).all():
        raise ImageSetError(f"{path}: {name} holds other than whole numbers")
    return values.astype(np.int64)
