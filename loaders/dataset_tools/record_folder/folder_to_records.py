"""A folder of images to a record file: as its list says, by an im2rec list, or by the names of its files.

Images are copied byte for byte. The record file is written whole, under a temporary name, so a conversion that was
killed leaves no record file and begins anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adadistill.loaders.atomic_file import atomic_file, write_whole
from adadistill.loaders.dataset_tools.record_folder.image_lists import ListedImage, own_list, read_list
from adadistill.loaders.dataset_tools.record_folder.records_to_folder import (
    COPY_PREFIX,
    copy_side_files,
    require_room,
)
from adadistill.loaders.dataset_tools.rewrite import Progress
from adadistill.loaders.folders import (
    STORED_SUFFIXES,
    UNFINISHED_NAME,
    FolderWalk,
    ImageFolderError,
    read_image,
    shape_of,
)
from adadistill.loaders.pixels import MAX_IMAGE_BYTES, image_size
from adadistill.loaders.records.recordio import MAX_EXACT_FLOAT, RecordWriter, write_insightface_records

_RECORD_OVERHEAD = 48
"""Bytes of frames, image header, two labels and padding, and then the line in the `.idx`: about."""
_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderConverted:
    """What became of a folder."""

    path: Path
    """Of the record file."""
    images: int
    identities: int
    left_out: int
    """Files and folders that are no image by their names."""
    is_own: bool
    """Whether keys, labels and order are those of the records that the folder came from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What is to be written; made whole, with all that can be wrong about it, before anything is."""

    records: Callable[[], Iterator[ListedImage]]
    """In the order of the record file."""
    first: str
    """Path of the first image."""
    images: int
    bytes: int
    identities: int
    """Those with images."""
    classes: int
    """Highest label and 1."""
    insightface: bool
    """Header and identity records belong behind the images; keys are 1, 2, ..."""
    names: list[str] | None = None
    """For `labels.json`."""
    left_out: int = 0


def folder_to_records(
    root: Path,
    out: Path,
    *,
    lst: Path | None = None,
    ignore_manifest: bool = False,
    limit: int | None = None,
    image_side: int | None = None,
    follow_links: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FolderConverted:
    """Write the records of a folder, which is only read.

    Args:
        root: has one subfolder for each identity, and perhaps the list of the records that it came from.
        out: folder that gets `train.rec`, its `.idx`, `property`, and `labels.json` with the names of the identities.
        lst: an im2rec list, whose keys, labels and order are taken; None: the folder's own list, or sorted names.
        ignore_manifest: convert by names although the folder has a list.
        limit: take the first so many images only; not with the folder's list.
        image_side: pixels a side that every image must have. Images are never encoded again.
        follow_links: also those that lead out of the folder; never with the folder's list.
        overwrite: replace records that are there.
        progress: called with images done and images in all; what it raises ends the conversion.

    Raises:
        ImageFolderError: folder, list or images cannot be used, or the folder is not what its list says.
        ImageDecodeError: a file is neither JPEG nor PNG.
        FileExistsError: there are records, and `overwrite` is false.
        OSError: there is no room on the disk.
    """
    own = None if lst is not None or ignore_manifest else own_list(root)
    _check_places(root, out, overwrite=overwrite, may_lack_images=ignore_manifest)
    if own is not None and (limit is not None or image_side is not None):
        raise ValueError(
            f"{root} has a list of its records, all of which are made as they were; a limit or an image size goes with "
            "--ignore-manifest"
        )
    if (listed := own or lst) is not None:
        plan = _by_list(root, listed, is_own=own is not None, limit=limit, follow_links=follow_links)
    else:
        plan = _by_names(root, limit, follow_links)
    require_room(out, plan.bytes)
    new_folder = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        target = _write(plan, root, out, image_side, progress)
        if own is not None:
            copy_side_files(root, out, from_prefix=COPY_PREFIX)
    finally:
        if new_folder and not any(out.iterdir()):
            out.rmdir()
    return FolderConverted(
        path=target, images=plan.images, identities=plan.identities, left_out=plan.left_out, is_own=own is not None
    )


def _check_places(root: Path, out: Path, *, overwrite: bool, may_lack_images: bool) -> None:
    if (root / UNFINISHED_NAME).exists() and not may_lack_images:
        raise ImageFolderError(
            f"{root} is an unfinished conversion and lacks images: run the command that makes it again, it goes on; or "
            "take what there is, by names (--ignore-manifest)"
        )
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out} lies in {root}, which is only read; name a folder outside it")
    for name in ("train.rec", "train.idx", "property", "labels.json"):
        if (out / name).exists() and not overwrite:
            raise FileExistsError(f"{out / name} exists already; --overwrite replaces it")


def _write(plan: _Plan, root: Path, out: Path, image_side: int | None, progress: Progress | None) -> Path:
    size = image_size(read_image(root, plan.first, MAX_IMAGE_BYTES), where=root / plan.first)
    target = out / "train.rec"
    for left in out.glob(f".{target.name}.partial-*"):  # of a conversion that was killed
        left.unlink()

    def images() -> Iterator[tuple[ListedImage, bytes]]:
        for done, image in enumerate(plan.records(), start=1):
            yield image, _image(root, image.path, image_side)
            if progress is not None:
                progress(done, plan.images)

    if plan.insightface:
        samples = ((int(image.labels[0]), body) for image, body in images())
        write_insightface_records(out, samples, image_size=size, overwrite=True)
    else:
        offsets = array("q")
        with RecordWriter(target, overwrite=True) as writer:
            for image, body in images():
                labels = image.labels if len(image.labels) > 1 else image.labels[0]
                offsets.append(writer.write(image.key, body, labels=labels))
        with atomic_file(target.with_suffix(".idx")) as index:  # in file order, in which MXNet's readers go through it
            index.writelines(b"%d\t%d\n" % (image.key, at) for image, at in zip(plan.records(), offsets, strict=True))
        write_whole(out / "property", f"{plan.classes},{size[0]},{size[1]}\n")
    if plan.names is not None:
        write_whole(out / "labels.json", json.dumps(plan.names) + "\n")
    return target


def _by_list(
    root: Path, lst: Path, *, is_own: bool = False, limit: int | None = None, follow_links: bool = False
) -> _Plan:
    """Keys, labels and order of a list, read anew each time: it may be long.

    Args:
        is_own: the folder was made of a record file, and holds the images of its list alone; records that were
            insightface's get its header record again.

    Raises:
        ImageFolderError: a line is no line of such a list, or the folder holds other images; the first ten are named.
    """
    resolved, missing, bytes_, first, count = root.resolve(), list[str](), 0, "", 0
    present, highest, in_order, keys = set[float](), -1.0, is_own, array("q")
    for count, record in enumerate(itertools.islice(read_list(lst), limit), start=1):
        path = root / record.path
        if path.is_file() and (is_own or follow_links or path.resolve().is_relative_to(resolved)):
            bytes_ += path.stat().st_size + _RECORD_OVERHEAD
        else:
            missing.append(record.path)
        label, first = record.labels[0], first or record.path
        in_order &= record.key == count and record.labels[1:] == (1.0,) and label in (highest, highest + 1)
        highest = max(highest, label)
        present.add(label)
        keys.append(record.key)
    _refuse_repeated(keys, lst)
    if is_own:
        _require_no_others(root, lst, missing, count)
    elif missing:
        raise ImageFolderError(
            f"{lst} names {len(missing)} images that are not in {root} ({_some(missing)}); correct the list, or name "
            "the folder that its paths begin in"
        )
    return _Plan(
        records=lambda: itertools.islice(read_list(lst), limit),
        first=first,
        images=count,
        bytes=bytes_,
        identities=len(present),
        classes=int(highest) + 1,
        insightface=in_order,
    )


def _refuse_repeated(keys: array[int], lst: Path) -> None:
    ordered = np.sort(np.array(keys, dtype=np.int64))
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if repeated.size:
        raise ImageFolderError(f"{lst}: key {repeated[0]} is used twice; give each line a key of its own")


def _require_no_others(root: Path, lst: Path, missing: list[str], listed: int) -> None:
    walk = FolderWalk(root, STORED_SUFFIXES)
    if not missing and listed == sum(len(walk.images_of(name).images) for name in walk.names):
        return
    known = {record.path for record in read_list(lst)}
    extra = [image.name for name in walk.names for image in walk.images_of(name).images if image.name not in known]
    kinds = [
        f"{len(files)} {kind} ({_some(files)})" for kind, files in (("missing", missing), ("added", extra)) if files
    ]
    raise ImageFolderError(
        f"{root} has changed since {lst.name} was written: {'; '.join(kinds) or 'it names a file twice'}. Restore the "
        "folder to get the same records, or convert it as any other, by names (--ignore-manifest)"
    )


def _by_names(root: Path, limit: int | None, follow_links: bool) -> _Plan:
    """insightface's layout of a folder: identities and images by name.

    Raises:
        ImageFolderError: see `FolderWalk.images_of`; there are no images, or more than the layout can count.
    """
    walk = FolderWalk(root)
    counts, left_out, bytes_, first = dict[str, int](), len(walk.others), 0, ""
    names = hashlib.sha256()
    for identity in walk.names:
        found = walk.images_of(identity, follow_links=follow_links)
        left_out += len(found.others)
        images = found.images[: None if limit is None else limit - sum(counts.values())]
        if images:
            counts[identity], first = len(images), first or images[0].name
        for image in images:
            bytes_ += image.bytes + _RECORD_OVERHEAD
            names.update(f"{image.name}\0{image.bytes}\n".encode("utf-8", "surrogateescape"))
    total = sum(counts.values())
    if not total:
        raise ImageFolderError(
            f"{root}: no labelled images were found; a folder of identities has subfolders with .jpg, .jpeg or .png "
            f"files. {shape_of(root)}".rstrip()
        )
    if total + len(counts) + 1 >= MAX_EXACT_FLOAT:
        raise ImageFolderError(
            f"{total} images of {len(counts)} identities are more than insightface's layout can count, "
            f"{MAX_EXACT_FLOAT - 2} together; a list (--list) makes records without that layout"
        )

    def records() -> Iterator[ListedImage]:
        again, key, now = FolderWalk(root), 0, hashlib.sha256()
        for label, (identity, count) in enumerate(counts.items()):
            for image in again.images_of(identity, follow_links=follow_links).images[:count]:
                key += 1
                now.update(f"{image.name}\0{image.bytes}\n".encode("utf-8", "surrogateescape"))
                yield ListedImage(key, (float(label), 1.0), image.name)
        if now.digest() != names.digest():
            raise ImageFolderError(f"{root} changed while it was converted; run the command again")

    return _Plan(
        records=records,
        first=first,
        images=total,
        bytes=bytes_,
        identities=len(counts),
        classes=len(counts),
        insightface=True,
        names=list(counts),
        left_out=left_out,
    )


def _image(root: Path, name: str, side: int | None) -> bytes:
    """Bytes of a JPEG or PNG whose header can be read.

    Raises:
        ImageDecodeError: it is none.
        ImageFolderError: it is too large, or of another size than asked.
    """
    body = read_image(root, name, MAX_IMAGE_BYTES)
    found = image_size(body, where=root / name)
    if side is not None and found != (side, side):
        raise ImageFolderError(
            f"{root / name}: is {found[0]} x {found[1]} pixels, {side} a side were asked for; images are copied "
            "as they are and never resized here"
        )
    return body


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name[:120]!a}" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
