"""An image folder to a record file: the original's bytes where a manifest tells them, else by names or by a list."""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adadistill.loaders.dataset_tools.record_folder.errors import FolderChangedError, RecordFolderError
from adadistill.loaders.dataset_tools.record_folder.manifest import MANIFEST_NAME, Manifest
from adadistill.loaders.dataset_tools.record_folder.plans import (
    ListPlan,
    ManifestPlan,
    PlainPlan,
    RecordPlan,
    image_size_of,
)
from adadistill.loaders.dataset_tools.record_folder.resumable_writer import ResumableRecords
from adadistill.loaders.folders import UNFINISHED_NAME, ImageFolderError
from adadistill.loaders.pixels import ImageDecodeError

_COPY_LIMIT = 1 << 30
_SLACK_BYTES = 16 << 20
_LINES_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderConverted:
    """What became of a folder."""

    path: Path
    """Of the record file."""
    images: int
    identities: int
    resumed_records: int
    """Of an earlier attempt, which were not written again."""
    left_out: int
    """Files and folders that are no image by their names."""
    is_original: bool
    """The bytes are those that the manifest names."""
    stopped: bool = False
    """Stopped on request; the same call goes on."""


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
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    safe_point_bytes: int = 64 << 20,
) -> FolderConverted:
    """Write the records of a folder; goes on where an earlier call was stopped or killed. The folder is only read.

    Args:
        root: has one subfolder for each identity, and perhaps a manifest of the records that it came from.
        out: folder that gets the `.rec`, `.idx` and `property`, and `labels.json` with the names of the identities.
        lst: an im2rec list, whose keys, labels and order are taken; None: the manifest's, or sorted names.
        ignore_manifest: convert by names although there is a manifest.
        limit: take the first so many images only; not with a manifest.
        image_side: pixels a side that every image must have. Images are never encoded again.
        follow_links: also those that lead out of the folder; never with a manifest.
        overwrite: replace records that are there.
        restart: throw away what an earlier call left of other images.
        progress: called with records done and records in all.
        stop: asked after each record; true makes a safe point and returns.

    Raises:
        FolderChangedError: the folder is not what its manifest says.
        RecordFolderError: manifest, list or images cannot be used.
        ImageDecodeError: a file is neither JPEG nor PNG.
        FileExistsError: there are records, and `overwrite` is false.
        OSError: there is no room on the disk.
    """
    if (root / UNFINISHED_NAME).exists() and not ignore_manifest:
        raise RecordFolderError(
            f"{root} is an unfinished conversion and lacks images: run the command that makes it again, it goes on; or "
            "take what there is, by names (--ignore-manifest)"
        )
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out} lies in {root}, which is only read; name a folder outside it")
    manifest = None
    if lst is None and not ignore_manifest and (root / MANIFEST_NAME).exists():
        if limit is not None or image_side is not None:
            raise ValueError(
                f"{root} has a manifest, which makes all of its records as they were; a limit or an image size goes "
                "with --ignore-manifest"
            )
        manifest = Manifest(root / MANIFEST_NAME)
    plan: ManifestPlan | ListPlan | PlainPlan
    if manifest is not None:
        plan = ManifestPlan(root, manifest)
    elif lst is not None:
        plan = ListPlan(root, lst, limit=limit, image_side=image_side, follow_links=follow_links)
    else:
        plan = PlainPlan(root, limit=limit, image_side=image_side, follow_links=follow_links)
    target = out / (manifest.records_name if manifest is not None else "train.rec")
    side_files = _side_files(root, plan, manifest)
    for name in side_files:
        if (out / name).exists() and not overwrite and not target.with_name(f"{target.name}.journal").exists():
            raise FileExistsError(f"{out / name} exists already; --overwrite replaces it")
    new_folder = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        writer = ResumableRecords(
            target, plan.digest, overwrite=overwrite, restart=restart, safe_point_bytes=safe_point_bytes
        )
        with writer:
            keys = _write(plan, writer, progress, stop)
            if keys is not None:
                if manifest is not None:
                    _require_original(keys, plan, writer, manifest)
                writer.publish(_index_lines(keys, plan, writer, manifest), side_files)
    finally:
        if new_folder and not any(out.iterdir()):
            out.rmdir()
    return FolderConverted(
        path=target,
        images=plan.num_images,
        identities=plan.num_identities,
        resumed_records=writer.resumed_records,
        left_out=plan.left_out if isinstance(plan, PlainPlan) else 0,
        is_original=manifest is not None,
        stopped=keys is None,
    )


def _write(
    plan: RecordPlan, writer: ResumableRecords, progress: Callable[[int, int], None] | None, stop: Callable[[], bool]
) -> array[int] | None:
    """Append what is not there yet; gives the key of each record, -1 for none. None: stopped at a safe point."""
    keys = array("q")
    try:
        _require_room(writer.target.parent, plan.bytes - writer.bytes)
        for number, record in enumerate(plan.records()):
            keys.append(-1 if record.key is None else record.key)
            if number < writer.resumed_records:
                continue
            if stop():
                writer.save()
                return None
            writer.append(record.make())
            if progress is not None:
                progress(number + 1, plan.num_records)
    except (ImageFolderError, ImageDecodeError, OSError) as error:
        if writer.records == 0 or not (isinstance(plan, ManifestPlan) or isinstance(error, OSError)):
            writer.discard()  # nothing to go on with: mending an image makes it another plan
        raise
    return keys


def _index_lines(
    keys: array[int], plan: RecordPlan, writer: ResumableRecords, manifest: Manifest | None
) -> Iterator[str] | None:
    order = "key" if isinstance(plan, PlainPlan) else "file"  # as insightface's and as MXNet's tools write it
    if manifest is not None:
        order = manifest.end.index
        if order in ("none", "copy"):
            return None  # a copy is a side file
    table = np.array([keys, writer.offsets], np.int64).T  # (N, 2)
    table = table[table[:, 0] >= 0]
    if order == "key":
        table = table[np.argsort(table[:, 0], kind="stable")]
    chunks = (table[first : first + _LINES_AT_ONCE].tolist() for first in range(0, len(table), _LINES_AT_ONCE))
    return (f"{key}\t{offset}\n" for chunk in chunks for key, offset in chunk)


def _require_original(keys: array[int], plan: RecordPlan, writer: ResumableRecords, manifest: Manifest) -> None:
    """Raise FolderChangedError unless records and `.idx` will be those that the manifest names; throws them away."""
    made = manifest.end.copies.get("idx")  # compared when it was read
    lines = _index_lines(keys, plan, writer, manifest)
    if lines is not None:
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line.encode("ascii"))
        made = digest.hexdigest()
    for what, found, wanted in (
        ("records", writer.sha256, manifest.end.rec_sha256),
        (".idx", made, manifest.end.index_sha256),
    ):
        if found != wanted:
            writer.discard()
            raise FolderChangedError(
                f"{manifest.path}: the {what} would not be the original (sha256 {found}, {wanted} was recorded); the "
                "manifest, or an image, was changed with care. --ignore-manifest converts the folder by names"
            )


def _side_files(root: Path, plan: RecordPlan, manifest: Manifest | None) -> dict[str, bytes]:
    """Files beside the records, by name.

    Raises:
        FolderChangedError: a copy that the manifest names is not what it was.
    """
    if manifest is not None:
        files = {}
        for name, sha256 in manifest.end.copies.items():
            path = manifest.copy_path(name)
            content = _read_copy(path) if path.is_file() else b""
            if hashlib.sha256(content).hexdigest() != sha256:
                raise FolderChangedError(
                    f"{path} is missing, or not the copy that {manifest.path} names. Restore it, or convert the folder "
                    "by names (--ignore-manifest)"
                )
            files[Path(manifest.records_name).with_suffix(".idx").name if name == "idx" else name] = content
        return files
    assert isinstance(plan, (PlainPlan, ListPlan))
    height, width = image_size_of(root, plan.first_image)
    classes = plan.num_classes if isinstance(plan, ListPlan) else plan.num_identities
    files = {"property": f"{classes},{height},{width}\n".encode()}
    if isinstance(plan, PlainPlan):
        files["labels.json"] = (json.dumps(plan.identities) + "\n").encode()
    return files


def _read_copy(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_COPY_LIMIT + 1)
    if len(content) > _COPY_LIMIT:
        raise RecordFolderError(f"{path}: more than {_COPY_LIMIT} bytes are no copy of a small file")
    return content


def _require_room(folder: Path, needed: int) -> None:
    """Raise OSError where the disk has no room for what is to be written, before it is."""
    free = shutil.disk_usage(folder).free
    if needed + _SLACK_BYTES > free:
        raise OSError(
            f"{folder}: {(needed + _SLACK_BYTES) / 1e9:.3f} GB are needed, the disk has {free / 1e9:.3f} GB free; make "
            "room, or name a folder on another disk"
        )
