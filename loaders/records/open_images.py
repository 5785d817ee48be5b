"""Opens what a path names: a record file, or a folder of identities."""

from __future__ import annotations

from pathlib import Path

from adadistill.loaders.folders import Links
from adadistill.loaders.pixels import ImageLimits
from adadistill.loaders.records.image_folder import ImageFolder
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.image_source import ImageSource, SealUse


def open_images(
    path: str | Path,
    index: str | Path | None = None,
    *,
    num_classes: int | None = None,
    seal: SealUse = "auto",
    limits: ImageLimits | None = None,
    links: Links = "inside",
) -> ImageSource:
    """`ImageFolder` where the path is one, `ImageRecords` else; both read later.

    Args:
        index, num_classes, seal: see there.
        limits: files of a folder that are larger are not read; a record is looked at before it is decoded.
        links: of a folder, see `ImageFolder`.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: num_classes is out of range.
    """
    if Path(path).is_dir():
        return ImageFolder(path, index, num_classes=num_classes, seal=seal, limits=limits, links=links)
    if not Path(path).exists():
        raise FileNotFoundError(f"no record file and no folder at {path}; check the recipe's `data.records`")
    return ImageRecords(path, index, num_classes=num_classes, seal=seal)
