"""Reads CVLface's prepared layout: an Arrow folder of aligned images with a `metadata.pt` beside its files.

`metadata.pt` holds arrays `templates`, `medias`, `faceness_scores` of each image, by the column `index`, and `p1`,
`p2`, `label` of each pair.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations, make_annotations
from adadistill.loaders.evaluation_sets.image_sets import ImageSetError
from adadistill.loaders.records.arrow_images import ArrowImages, open_arrow_images
from adadistill.loaders.safe_pickle import read_torch_metadata

METADATA_NAME = "metadata.pt"


def read_arrow(folder: Path) -> tuple[IjbAnnotations, ArrowImages]:
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
