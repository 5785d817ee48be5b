"""What is to be written into a record file, record by record, and a digest that tells one intention from another.

Three ways to make records of a folder: as its manifest says (the original bytes), by sorted names in insightface's
layout, or by an im2rec list. Each knows its keys without reading an image, so that a resumed conversion need not read
what is written already.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from adadistill.loaders.dataset_tools.foreign_sets import MAX_IMAGE_BYTES
from adadistill.loaders.dataset_tools.record_folder.errors import FolderChangedError, RecordFolderError
from adadistill.loaders.dataset_tools.record_folder.lst_files import ListedImage, read_lst
from adadistill.loaders.dataset_tools.record_folder.manifest import Manifest, ManifestEntry
from adadistill.loaders.dataset_tools.record_folder.raw_records import RawRecord, float_to_bits
from adadistill.loaders.folders import STORED_SUFFIXES, FolderWalk, ImageFile, read_image, shape_of
from adadistill.loaders.pixels import image_size
from adadistill.loaders.records.recordio import MAX_EXACT_FLOAT

_RECORD_OVERHEAD = 48
"""Bytes of frames, image header, two labels and padding, and then the line in the `.idx`: about."""
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class PlannedRecord:
    """One record to write."""

    key: int | None
    """In the `.idx`; None leaves it out."""
    make: Callable[[], bytes]
    """Reads the image and gives the framed record."""


class RecordPlan(Protocol):
    """What to write; made whole before anything is written."""

    @property
    def digest(self) -> str:
        """Tells this intention from others: changes with the names, sizes and times of what will be read."""
        ...

    @property
    def num_records(self) -> int: ...

    @property
    def num_images(self) -> int: ...

    @property
    def num_identities(self) -> int: ...

    @property
    def bytes(self) -> int:
        """Of the record file, about: for the free-space check."""
        ...

    def records(self) -> Iterator[PlannedRecord]:
        """All records in file order."""
        ...


class ManifestPlan:
    """The records that a folder came from."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        """Compare the folder with its manifest, by names and sizes.

        Raises:
            FolderChangedError: they differ; the message says how.
            RecordFolderError: the manifest is damaged.
        """
        self._root, self._manifest = root, manifest
        self._walk = FolderWalk(root, STORED_SUFFIXES)
        self.num_records, self.num_images = manifest.end.records, manifest.end.images
        self.bytes = manifest.end.bytes
        self.digest = f"manifest {manifest.sha256}"
        self.num_identities = len(self._walk.names)
        self._compare()

    def records(self) -> Iterator[PlannedRecord]:
        """All records in file order; one whose image is not the original's raises FolderChangedError when made."""
        for entry in self._manifest.entries():
            yield PlannedRecord(entry.key, partial(self._made, entry))

    def _made(self, entry: ManifestEntry) -> bytes:
        body = b"" if entry.file is None else read_image(self._root, entry.file, entry.bytes)
        if len(body) != entry.bytes or zlib.crc32(body) != entry.crc32:
            raise FolderChangedError(
                f"{self._root / str(entry.file)} is not the image that the manifest names ({entry.bytes} bytes, crc32 "
                f"{entry.crc32:08x}): it was changed. Restore it, or convert the folder as any other, by names "
                "(--ignore-manifest)"
            )
        record = entry.record
        whole = RawRecord(record.flag, record.label_bits, record.labels, record.id, record.id2, body, record.cuts)
        return whole.to_bytes()

    def _names(self) -> Iterator[str]:
        return (image.name for identity in self._walk.names for image in self._walk.images_of(identity).images)

    def _compare(self) -> None:
        """Names and sizes of all files against the manifest, without holding either: sums of their names' hashes."""
        missing, resized, named, difference = [], [], 0, 0
        for entry in self._manifest.entries():
            if entry.file is None:
                continue
            named += 1
            path = self._root / entry.file
            if not path.is_file():
                missing.append(entry.file)
                continue
            difference += _name_number(entry.file)
            if path.stat().st_size != entry.bytes:
                resized.append(entry.file)
        difference -= sum(map(_name_number, self._names()))
        extra: list[str] = []
        if difference:
            known = {entry.file for entry in self._manifest.entries()}
            extra = [name for name in self._names() if name not in known]
        if named != self.num_images or (difference and not extra):
            raise RecordFolderError(
                f"{self._manifest.path} names a file twice, or miscounts: it is no manifest of ours"
            )
        kinds = [("missing", missing), ("added", extra), ("of another size", resized)]
        found = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names]
        if found:
            raise FolderChangedError(
                f"{self._root} has changed since its manifest was written: {'; '.join(found)}. Restore the folder to "
                "get the original records, or convert it as any other, by names (--ignore-manifest)"
            )


class PlainPlan:
    """insightface's layout of a folder: identities and images by name, then identity records and the header record."""

    def __init__(
        self, root: Path, *, limit: int | None = None, image_side: int | None = None, follow_links: bool = False
    ) -> None:
        """List the folder.

        Args:
            limit: take the first so many images only.
            image_side: pixels a side that every image must have.
            follow_links: also those that lead out of the folder.

        Raises:
            ImageFolderError: see `FolderWalk.images_of`; there are no images, or more than the layout can count.
        """
        self._root, self._side, self._follow = root, image_side, follow_links
        self.first_image = ""
        self.identities: list[str] = []
        self._counts: list[int] = []
        self.bytes = 0
        listing, left = hashlib.sha256(), limit
        walk = FolderWalk(root)
        self.left_out = len(walk.others)
        for identity in walk.names:
            found = walk.images_of(identity, follow_links=follow_links)
            images, self.left_out = found.images[:left], self.left_out + len(found.others)
            if left is not None:
                left -= len(images)
            if images:
                self.identities.append(identity)
                self._counts.append(len(images))
                self.bytes += sum(image.bytes + _RECORD_OVERHEAD for image in images) + _RECORD_OVERHEAD
                for image in images:
                    listing.update(_listed(image))
            if not self.first_image and images:
                self.first_image = images[0].name
        self.num_images, self.num_identities = sum(self._counts), len(self.identities)
        self.num_records = self.num_images + self.num_identities + 1
        self._listing = listing.hexdigest()
        self.digest = f"plain {limit} {image_side} {self._listing}"
        if not self.num_images:
            raise RecordFolderError(
                f"{root}: no labelled images were found; a folder of identities has subfolders with .jpg, .jpeg or "
                f".png files. {shape_of(root)}".rstrip()
            )
        if self.num_records >= MAX_EXACT_FLOAT:
            raise RecordFolderError(
                f"{self.num_images} images of {self.num_identities} identities are more than insightface's layout can "
                f"count, {MAX_EXACT_FLOAT - 2} together; a list (--list) makes records without that layout"
            )

    def records(self) -> Iterator[PlannedRecord]:
        """Images with the keys 1, 2, ..., identity records, and the header record with key 0.

        Raises:
            RecordFolderError: the folder is not as it was when it was listed.
        """
        key, listing, walk = 1, hashlib.sha256(), FolderWalk(self._root)
        for label, (identity, count) in enumerate(zip(self.identities, self._counts, strict=True)):
            for image in walk.images_of(identity, follow_links=self._follow).images[:count]:
                listing.update(_listed(image))
                yield PlannedRecord(key, partial(self._made, key, label, image))
                key += 1
        if listing.hexdigest() != self._listing:
            raise RecordFolderError(f"{self._root} changed while it was converted; run the command again")
        first, start = key, 1
        for count in self._counts:
            yield PlannedRecord(key, partial(_bodiless, key, start, start + count))
            key, start = key + 1, start + count
        yield PlannedRecord(0, partial(_bodiless, 0, first, key))

    def _made(self, key: int, label: int, image: ImageFile) -> bytes:
        body = _checked_image(self._root, image, self._side)
        return RawRecord(2, 0, (float_to_bits(label), float_to_bits(1.0)), key, 0, body).to_bytes()


class ListPlan:
    """An im2rec list: its keys, labels and order, and no header record."""

    def __init__(
        self,
        root: Path,
        lst: Path,
        *,
        limit: int | None = None,
        image_side: int | None = None,
        follow_links: bool = False,
    ) -> None:
        """Read the list and look at every file that it names.

        Raises:
            RecordFolderError: a line is no line of such a list, or files are missing; the first ten are named.
        """
        self._root, self._side = root, image_side
        self._listed = read_lst(lst)[:limit]
        self.first_image = self._listed[0].path
        digest = hashlib.sha256(f"list {image_side}".encode())
        self.bytes, missing = 0, []
        resolved = root.resolve()
        for listed in self._listed:
            path = root / listed.path
            if not path.is_file() or not (follow_links or path.resolve().is_relative_to(resolved)):
                missing.append(listed.path)
                continue
            found = path.stat()
            self.bytes += found.st_size + _RECORD_OVERHEAD
            digest.update(
                json.dumps([listed.key, listed.labels, listed.path, found.st_size, found.st_mtime_ns]).encode()
            )
        if missing:
            raise RecordFolderError(
                f"{lst} names {len(missing)} images that are not in {root} ({_some(missing)}); correct the list, or "
                "name the folder that its paths begin in"
            )
        self.num_images = self.num_records = len(self._listed)
        self.num_identities = len({listed.labels[0] for listed in self._listed})
        self.digest = f"list {digest.hexdigest()}"

    @property
    def num_classes(self) -> int:
        """Highest first label and 1."""
        return max(int(listed.labels[0]) for listed in self._listed) + 1

    def records(self) -> Iterator[PlannedRecord]:
        """Images in the order of the list."""
        for listed in self._listed:
            yield PlannedRecord(listed.key, partial(self._made, listed))

    def _made(self, listed: ListedImage) -> bytes:
        path = self._root / listed.path
        body = _checked_image(self._root, ImageFile(listed.path, path.stat().st_size, 0), self._side)
        bits = tuple(float_to_bits(label) for label in listed.labels)
        flag = len(bits) if len(bits) > 1 else 0
        return RawRecord(flag, 0 if flag else bits[0], bits if flag else (), listed.key, 0, body).to_bytes()


def _name_number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:16], "little")


def _listed(image: ImageFile) -> bytes:
    return f"{image.name}\0{image.bytes}\0{image.modified_ns}\n".encode("utf-8", "surrogateescape")


def image_size_of(root: Path, name: str) -> tuple[int, int]:
    """(height, width) of one image of a folder."""
    return image_size(read_image(root, name, MAX_IMAGE_BYTES), where=root / name)


def _bodiless(key: int, first: int, stop: int) -> bytes:
    return RawRecord(2, 0, (float_to_bits(first), float_to_bits(stop)), key, 0, b"").to_bytes()


def _checked_image(root: Path, image: ImageFile, side: int | None) -> bytes:
    """Bytes of a JPEG or PNG whose header can be read.

    Raises:
        ImageDecodeError: it is none.
        RecordFolderError: it is too large, of another size than asked, or changed while the conversion ran.
    """
    body = read_image(root, image.name, MAX_IMAGE_BYTES)
    found = image_size(body, where=root / image.name)
    if side is not None and found != (side, side):
        raise RecordFolderError(
            f"{root / image.name}: is {found[0]} x {found[1]} pixels, {side} a side were asked for; images are copied "
            "as they are and never resized here"
        )
    if len(body) != image.bytes:
        raise RecordFolderError(f"{root / image.name} changed while it was converted; run the command again")
    return body


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name[:120]!a}" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
