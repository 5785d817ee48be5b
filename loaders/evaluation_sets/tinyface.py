"""TinyFace's test set: CVLface's Arrow folder, or three folders of images, checked before anything is computed.

CVLface's folder (`tinyface_aligned_pad_0.1`) holds columns image, index and path, and a `metadata.pt` that lists which
paths are probes, gallery and distractors. TinyFace's own layout is folders `Probe`, `Gallery_Match` and
`Gallery_Distractor`. Either way a person is the integer before the first `_` of a file's name; distractors are nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from adadistill.loaders.evaluation_sets.image_sets import (
    EncodedImages,
    ImageFiles,
    ImageSetError,
    check_size,
)
from adadistill.loaders.folders import ImageFolderError, images_below
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.pixels import image_size as header_size
from adadistill.loaders.records.arrow_images import ArrowImagesError, is_arrow_folder, open_arrow_images
from adadistill.loaders.safe_pickle import TorchMetadataError, read_torch_metadata

DISTRACTOR = -100
"""Label of distractors, which no file name can give."""

PUBLISHED_COUNTS: Mapping[str, int] = {"probes": 3728, "gallery": 4443, "distractors": 153_428}
"""Of TinyFace's test set; other counts are another protocol."""

FOLDERS = ("Probe", "Gallery_Match", "Gallery_Distractor")
_LISTS = ("probe_paths", "gallery_paths", "distractor_paths")


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyFace:
    """A test set: N images, of which some are probes and some are the gallery."""

    name: str
    """Of its folder."""
    folder: Path
    images: EncodedImages
    probes: npt.NDArray[np.int64]
    """(P,) rows of the images."""
    probe_labels: npt.NDArray[np.int64]
    """(P,) people."""
    gallery: npt.NDArray[np.int64]
    """(G,) rows of the images: matched ones first, then distractors, as listed."""
    gallery_labels: npt.NDArray[np.int64]
    """(G,) people; -100 for distractors."""

    def __len__(self) -> int:
        return len(self.images)

    def inspect(self, image_size: int) -> str:
        """Read every image's header, so that a bad one is known before the first is embedded.

        Args:
            image_size: side in pixels that each must have; a face aligned for another size is not rescaled.

        Returns:
            sha256 of all encoded images, in order of their rows, and of who is probe and gallery.

        Raises:
            ImageSetError: names the first image that is no JPEG or PNG of that size, and counts them.
            OSError, ArrowImagesError: an image cannot be read.
        """
        bad: list[str] = []
        digest = hashlib.sha256()
        for row, body in enumerate(self.images.bodies(0, len(self))):
            where = self.images.where(row)
            try:
                check_size(header_size(body, where=where), where, image_size)
            except (ImageDecodeError, ImageSetError) as error:
                bad.append(str(error))
            digest.update(len(body).to_bytes(8, "little"))
            digest.update(body)
        if bad:
            raise ImageSetError(f"{self.folder}: {len(bad)} of {len(self)} images cannot be used; {bad[0]}")
        for part in (self.probes, self.probe_labels, self.gallery, self.gallery_labels):
            digest.update(part.tobytes())
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Images, probes, matched gallery images, distractors."""
        distractors = int((self.gallery_labels == DISTRACTOR).sum())
        return {
            "images": len(self),
            "probes": len(self.probes),
            "gallery": len(self.gallery) - distractors,
            "distractors": distractors,
        }


def open_tinyface(folder: str | Path) -> TinyFace:
    """Open a test set and check all of it but the images' pixels.

    Args:
        folder: CVLface's Arrow folder with its `metadata.pt`, or a folder with `Probe`, `Gallery_Match` and
            `Gallery_Distractor`.

    Raises:
        FileNotFoundError: the folder, or a part of it, is missing.
        ImageSetError: it is neither layout; a list is missing, empty or names an image that is not there, or that two
            images could be; a file's name gives no person; no probe has a mate in the gallery.
        ImportError: an Arrow folder, and pyarrow is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no TinyFace folder at {folder}")
    if is_arrow_folder(folder):
        return _open_arrow(folder)
    present = [name for name in FOLDERS if (folder / name).is_dir()]
    if not present:
        raise ImageSetError(
            f"{folder}: holds neither state.json, as CVLface's Arrow folder does, nor folders {', '.join(FOLDERS)}"
        )
    if len(present) < len(FOLDERS):
        raise ImageSetError(f"{folder}: has no folder {', '.join(name for name in FOLDERS if name not in present)}")
    return _open_folders(folder)


def tinyface_of_lists(
    folder: Path, images: EncodedImages, image_paths: Sequence[str], lists: Mapping[str, Sequence[str]]
) -> TinyFace:
    """The test set that lists of paths describe.

    Args:
        folder: names the set, and errors.
        image_paths: (N,) path of each image, in the order of its rows.
        lists: `probe_paths`, `gallery_paths` and `distractor_paths`. A listed path names the image of the same path, or
            else the one image whose file name is the same but for its suffix, as in the published code, since lists
            were made before images were aligned into other folders.

    Raises:
        ImageSetError: as `open_tinyface`.
    """
    rows_of = _Rows(image_paths, folder)
    probes, matched, distractors = (rows_of.find(lists[name], name) for name in _LISTS)
    for name in _LISTS[:2]:
        if len(lists[name]) == 0:
            raise ImageSetError(f"{folder}: {name} is empty")
    probe_labels = _labels(lists["probe_paths"], "probe_paths", folder)
    matched_labels = _labels(lists["gallery_paths"], "gallery_paths", folder)
    if not np.isin(probe_labels, matched_labels).any():
        raise ImageSetError(f"{folder}: no probe's person is in the gallery, so there is nothing to find")
    return TinyFace(
        name=folder.resolve().name,
        folder=folder,
        images=images,
        probes=probes,
        probe_labels=probe_labels,
        gallery=np.concatenate([matched, distractors]),
        gallery_labels=np.concatenate([matched_labels, np.full(len(distractors), DISTRACTOR, dtype=np.int64)]),
    )


def _open_arrow(folder: Path) -> TinyFace:
    try:
        images = open_arrow_images(folder, columns=("index", "path"))
        metadata = read_torch_metadata(folder / "metadata.pt")
    except (ArrowImagesError, TorchMetadataError) as error:
        raise ImageSetError(str(error)) from None
    lists = {name: _text_list(metadata, name, folder) for name in (*_LISTS, "image_paths")}
    listed = len(lists.pop("image_paths"))
    if listed != len(images):
        raise ImageSetError(
            f"{folder}: metadata.pt lists {listed} image_paths for {len(images)} images; they are of different versions"
        )
    assert images.paths is not None
    return tinyface_of_lists(folder, images, images.paths, lists)


def _open_folders(folder: Path) -> TinyFace:
    listed: dict[str, list[str]] = {}
    for key, part in zip(_LISTS, FOLDERS, strict=True):
        try:
            listed[key] = [f"{part}/{name}" for name in images_below(folder / part)]
        except ImageFolderError as error:
            raise ImageSetError(str(error)) from None
    names = tuple(name for part in listed.values() for name in part)
    return tinyface_of_lists(folder, ImageFiles(folder, names), names, listed)


def _text_list(metadata: Mapping[str, object], name: str, folder: Path) -> list[str]:
    if name not in metadata:
        held = ", ".join(sorted(map(str, metadata)))[:200]
        raise ImageSetError(f"{folder / 'metadata.pt'}: has no {name}; it holds {held or 'nothing'}")
    values = metadata[name]
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise ImageSetError(f"{folder / 'metadata.pt'}: {name} is no list of paths")
    return list(values)


class _Rows:
    """Which image a listed path means."""

    def __init__(self, paths: Sequence[str], folder: Path) -> None:
        self._paths, self._folder = paths, folder
        self._by_path = {path: row for row, path in enumerate(paths)}
        self._by_key: dict[str, int | None] = {}
        for row, path in enumerate(paths):
            key = _file_name(path).stem
            self._by_key[key] = None if key in self._by_key else row
        if len(self._by_path) < len(paths):
            twice = next(path for row, path in enumerate(paths) if self._by_path[path] != row)
            raise ImageSetError(f"{folder}: two images have the path {twice[:200]!a}")

    def find(self, listed: Sequence[str], name: str) -> npt.NDArray[np.int64]:
        rows = np.empty(len(listed), dtype=np.int64)
        seen: set[int] = set()
        for place, path in enumerate(listed):
            row = self._by_path.get(path)
            if row is None:
                row = self._by_file_name(path, name)
            if row in seen:
                raise ImageSetError(f"{self._folder}: {name} lists {path[:200]!a} twice")
            seen.add(row)
            rows[place] = row
        return rows

    def _by_file_name(self, path: str, name: str) -> int:
        key = _file_name(path).stem
        if key not in self._by_key:
            raise ImageSetError(f"{self._folder}: {name} lists {path[:200]!a}, and there is no image of that name")
        row = self._by_key[key]
        if row is None:
            raise ImageSetError(f"{self._folder}: {name} lists {path[:200]!a}, and two images or more have that name")
        return row


def _labels(paths: Sequence[str], name: str, folder: Path) -> npt.NDArray[np.int64]:
    labels = np.empty(len(paths), dtype=np.int64)
    for place, path in enumerate(paths):
        digits = _file_name(path).name.partition("_")[0]
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            raise ImageSetError(
                f"{folder}: {name} lists {path[:200]!a}; a file's name must begin with a person's number and `_`"
            )
        labels[place] = int(digits)
    return labels


def _file_name(path: str) -> PurePosixPath:
    return PurePosixPath(path.replace("\\", "/").rpartition("/")[2])
