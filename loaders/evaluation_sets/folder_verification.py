"""Reads all images of a folder of identities and reports every bad one, as `record_verification.py` does of a file."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adadistill.loaders.dataset_tools.record_verification import BadRecord, ImageCheck, Verification
from adadistill.loaders.records.image_folder import ImageFolder

_IMAGES_AT_ONCE = 2048


def verify_folder(
    path: str | Path,
    index: str | Path | None = None,
    *,
    decode: bool = False,
    image_size: int | None = None,
    num_classes: int | None = None,
    workers: int = 4,
    use_seal: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check every image of a folder; the arguments are those of `verify_records`.

    Raises:
        FileNotFoundError: there is no such folder or index.
        ImageFolderError: it is no set of identities, or not of `num_classes`.
        SealError, FolderIndexError: the index is damaged, or its checksums are of other files.
    """
    folder = ImageFolder(
        path,
        index,
        num_classes=num_classes,
        seal="auto" if use_seal else "ignore",
        links="anywhere",
        list_anew=True,
    )
    total = len(folder)
    check = ImageCheck(folder, lambda record_id: (None, None), decode=decode, image_size=image_size)
    runs = [(start, min(start + _IMAGES_AT_ONCE, total)) for start in range(0, total, _IMAGES_AT_ONCE)]
    bad: list[BadRecord] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="adadistill-verify") as threads:
        for (_, stop), found in zip(runs, threads.map(check.run, runs), strict=True):
            bad += found
            if progress is not None:
                progress(stop, total)
    return Verification(records=total, bytes=int(folder.listing.sizes.sum()), bad=tuple(bad), sealed=folder.sealed)
