"""Training images straight from a folder of identities, `FOLDER/<identity>/<image>.jpg`, by record id.

Why: sets arrive as folders, and a first run should not wait for a conversion. Which images there are, and in which
order, is `folders.py`'s; here their bytes are read. Each is opened for as long as it is read, so a run holds no
more files open than it has threads. A file that is not as it was when the folder was listed is a damaged record, named
by its path.
"""

from __future__ import annotations

import os
import stat
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.folders import FolderListing, ImageFolderError, Links, shown
from adadistill.loaders.pixels import ImageLimits
from adadistill.loaders.records.folder_index import FolderIndex, load_folder_index
from adadistill.loaders.records.image_source import EncodedImage, SealUse
from adadistill.loaders.records.recordio import RecordError

_JPEG = b"\xff\xd8\xff"
_READING_THREADS = 8
"""Files of a batch read at a time: each waits for its disk, where a record file would be read ahead."""


class ImageFileError(RecordError):
    """An image of a folder that cannot be had as it was listed: `path` is the file's, `offset` 0, `key` None."""

    remedy = "Restore the file, or leave such images out (data.on_damaged=skip)"

    def __init__(self, path: str | Path, reason: str, record_id: int) -> None:
        super().__init__(path, 0, reason, None, record_id)
        self.args = (f"{shown(os.fsencode(path))}: record {record_id}: {reason}. {self.remedy}.",)

    def __reduce__(self) -> tuple[type[ImageFileError], tuple[Path, str, int]]:  # type: ignore[override]
        assert self.record_id is not None
        return type(self), (self.path, self.reason, self.record_id)


class ImageChecksumError(ImageFileError):
    """An image whose bytes are not those that were sealed."""


class ImageFolder:
    """The images of a folder by record id: identities by name, then images by name, bytewise.

    An `ImageSource`. The folder is listed on first use, or its index read (`write_folder_index`) where one lies beside
    it and fits. Threads may read concurrently; a pickled copy takes the listing along.
    """

    def __init__(
        self,
        folder: str | Path,
        index: str | Path | None = None,
        *,
        num_classes: int | None = None,
        seal: SealUse = "auto",
        limits: ImageLimits | None = None,
        links: Links = "inside",
        list_anew: bool = False,
    ) -> None:
        """Name the folder; it is looked into later.

        Args:
            folder: with one sub-folder for each identity.
            index: what `write_folder_index` wrote of it; `FOLDER.images.index` beside it where left out and there.
            num_classes: number of identities C, which has to be the folder's; None takes the folder's.
            seal: compare images with the checksums of the index: where it holds some (auto), always (require), never
                (ignore).
            limits: larger files are not read.
            links: follow those that stay within the folder, and refuse others, or follow all (anywhere).
            list_anew: take no listing from the index, even where nothing seems to have changed.

        Raises:
            FileNotFoundError: there is no such folder, or no such index.
        """
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise FileNotFoundError(f"no folder at {folder}; check the recipe's `data.records`")
        self._index_path = None if index is None else Path(index)
        if self._index_path is not None and not self._index_path.is_file():
            raise FileNotFoundError(f"no index at {index}; leave it out to use the one beside {folder}, or none")
        self._wanted_classes, self._use_seal, self._links, self._list_anew = num_classes, seal, links, list_anew
        self._max_bytes = (limits or ImageLimits()).max_bytes
        self._index: FolderIndex | None = None
        self._threads: tuple[int, ThreadPoolExecutor] | None = None
        """And the process whose threads they are: a forked one has none of them."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_threads": None}  # threads do not cross processes

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.path)!r})"

    def __len__(self) -> int:
        return len(self.listing.images)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder

    @property
    def listing(self) -> FolderListing:
        """Names, sizes and order of all images.

        Raises:
            ImageFolderError: the folder holds something else, or another number of identities than was said.
            SealError: checksums are of other files, or required and not there.
        """
        return self._opened().listing

    @property
    def sealed(self) -> bool:
        """Whether every image is compared with its checksum when it is read."""
        return self._opened().crc32 is not None

    @property
    def num_classes(self) -> int:
        """Number of identities C, those of the folder."""
        return len(self.listing.identities)

    @property
    def identity_names(self) -> list[str]:
        """(C,) names of the identities' folders by label; bytes that are no UTF-8 as surrogates (`os.fsencode`)."""
        return [os.fsdecode(name) for name in self.listing.identities]

    def path_of(self, record_id: int) -> Path:
        """Of the file of one image. Raises IndexError."""
        return Path(os.fsdecode(self._path_of(record_id)))

    def read(self, record_id: int) -> EncodedImage:
        """Label and bytes of one image.

        Raises:
            IndexError: `record_id` is not in [0, N).
            ImageFileError: the file is gone, unreadable, too large, of another size than was listed, or has other
                bytes than were sealed.
            OSError: the disk fails, or the process has no files left to open; no record is to blame.
        """
        path = self._path_of(record_id)
        listing = self.listing
        try:
            body = _read_file(path, listing.sizes.item(record_id), self._max_bytes)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise self._error(record_id, f"it cannot be read: {error.strerror}") from None
        except _ChangedFileError as error:
            raise self._error(record_id, str(error)) from None
        crc32 = self._opened().crc32
        if crc32 is not None and zlib.crc32(body) != crc32.item(record_id):
            reason = f"its {len(body)} bytes have crc32 {zlib.crc32(body):08x}, {crc32.item(record_id):08x} were sealed"
            raise ImageChecksumError(self.path_of(record_id), reason, record_id)
        return EncodedImage(listing.label_of(record_id), body)

    def read_plain(
        self, record_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.uint8] | None]]:
        """Labels (n,) int64 and bytes of many JPEGs, their files read side by side.

        None stands for every image that is no JPEG, or that `read` refuses. Checksums are compared here already.

        Raises:
            IndexError: an id is not in [0, N).
            OSError: as `read`.
        """
        listing = self.listing
        if len(record_ids) and not (record_ids.min() >= 0 and record_ids.max() < len(listing.images)):
            raise IndexError(f"record ids must be in [0, {len(self)}); {self.path} holds that many images")
        labels = np.searchsorted(listing.starts, record_ids, side="right") - 1
        if self._threads is None or self._threads[0] != os.getpid():
            self._threads = os.getpid(), ThreadPoolExecutor(_READING_THREADS, thread_name_prefix="adadistill-read")
        shares = np.array_split(record_ids, _READING_THREADS)
        bodies = [body for share in self._threads[1].map(self._jpegs, shares) for body in share]
        return labels.astype(np.int64), bodies

    def matches_seal(self, record_id: int) -> bool:
        """True: `read_plain` gives no image of other bytes than were sealed."""
        return True

    def where(self, record_id: int) -> str:
        """Name one image in messages: its file and its id."""
        return f"{shown(self._path_of(record_id))}: record {record_id}"

    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) labels of all images."""
        return self.listing.labels()

    def fingerprint(self) -> str:
        """See `FolderListing.fingerprint`: of names and sizes, not of bytes."""
        return self.listing.fingerprint()

    def _opened(self) -> FolderIndex:
        if self._index is None:
            index = load_folder_index(
                self._folder, self._index_path, seal=self._use_seal, links=self._links, list_anew=self._list_anew
            )
            found, wanted = len(index.listing.identities), self._wanted_classes
            if wanted not in (None, found):
                raise ImageFolderError(
                    f"{self.path} holds {found} identities (folders), data.num_classes says {wanted}; leave it out"
                )
            self._index = index
        return self._index

    def _path_of(self, record_id: int) -> bytes:
        listing = self.listing
        if not 0 <= record_id < len(listing.images):
            raise IndexError(
                f"record id must be in [0, {len(self)}), got {record_id}; {self.path} holds as many images"
            )
        identity = listing.identities[listing.label_of(record_id)]
        return os.path.join(os.fsencode(self._folder), identity, listing.images[record_id])

    def _jpegs(self, record_ids: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8] | None]:
        return [self._jpeg(record_id) for record_id in record_ids.tolist()]

    def _jpeg(self, record_id: int) -> npt.NDArray[np.uint8] | None:
        if self.listing.images[record_id].lower().endswith(b".png"):
            return None  # read once, by whoever decodes it
        try:
            body = self.read(record_id).body
        except ImageFileError:
            return None
        return np.frombuffer(body, np.uint8) if body.startswith(_JPEG) else None

    def _error(self, record_id: int, reason: str) -> ImageFileError:
        return ImageFileError(self.path_of(record_id), reason, record_id)


class _ChangedFileError(Exception):
    """What is wrong with a file that is there."""


def _read_file(path: bytes, size: int, most: int) -> bytes:
    """All bytes of a regular file, which must be `size` many and not more than `most`."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for its other end
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _ChangedFileError("it is no regular file any more")
        if status.st_size != size:
            raise _ChangedFileError(f"it has {status.st_size} bytes, and had {size} when the folder was listed")
        if size == 0:
            raise _ChangedFileError("it is empty")
        if size > most:
            raise _ChangedFileError(f"it has {size} bytes, data.max_image_bytes allows {most}")
        pieces: list[bytes] = []
        missing = size
        while missing and (piece := os.read(handle, missing)):
            pieces.append(piece)
            missing -= len(piece)
    finally:
        os.close(handle)
    if missing:
        raise _ChangedFileError(f"it ends {missing} bytes before its {size}")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
