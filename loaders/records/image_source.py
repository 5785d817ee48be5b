"""What training images come from, whatever stores them: a record file or a folder of identities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

SealUse: TypeAlias = Literal["auto", "require", "ignore"]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One training image as stored: `label` in [0, num_classes) and the encoded `body` (JPEG, sometimes PNG)."""

    label: int
    body: bytes


class ImageSource(Protocol):
    """N labelled images by record id, in [0, N). Opened on first use; threads may read concurrently; can be pickled."""

    @property
    def path(self) -> Path:
        """Of the file or folder, for messages."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of identities C; labels are in [0, C)."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def read(self, record_id: int) -> EncodedImage:
        """Label and encoded bytes of one image.

        Raises:
            IndexError: `record_id` is not in [0, N).
            RecordError: the image cannot be had as it was stored; names it.
        """
        ...

    def read_plain(
        self, record_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.uint8] | None]]:
        """Labels (n,) int64 and JPEG bytes of many images, faster than n calls of `read`.

        None stands for every image that is no sound JPEG: `read` it alone, to learn what it is.

        Raises:
            IndexError: an id is not in [0, N).
        """
        ...

    def matches_seal(self, record_id: int) -> bool:
        """Whether the bytes that `read_plain` gave are those that were sealed; true where nothing was sealed."""
        ...

    def where(self, record_id: int) -> str:
        """Name one image in messages."""
        ...

    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) labels of all images. Raises RecordError for the first that is damaged."""
        ...

    def fingerprint(self) -> str:
        """sha256 that tells whether record ids still mean the same images, cheap for any number of them."""
        ...
