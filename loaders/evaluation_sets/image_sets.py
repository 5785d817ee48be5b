"""Large evaluation sets as pixels, a block at a time, whichever layout their images lie in.

IJB and TinyFace come as Arrow folders or as files of their own, aligned already or to be aligned here. Whoever embeds
them sees `ImageSet` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from adadistill.loaders.evaluation_sets.face_alignment import TEMPLATE_SIZE
from adadistill.loaders.folders import ImageFolderError, read_image
from adadistill.loaders.pipelines.prefetch import prefetched
from adadistill.loaders.pixels import MAX_IMAGE_BYTES, decode_image
from adadistill.loaders.usable_cpus import usable_cpus

Pixels: TypeAlias = npt.NDArray[np.uint8]


class ImageSetError(ValueError):
    """A folder is no IJB or TinyFace set as published, or contradicts itself. The message names file and place."""


class ImageSet(Protocol):
    """N images that can be decoded and aligned."""

    def __len__(self) -> int: ...

    def readers(self, start: int, stop: int, image_size: int) -> Iterator[Callable[[], Pixels]]:
        """For each image of [start, stop) in order, what makes its (image_size, image_size, 3) uint8 RGB pixels.

        Each call raises ImageDecodeError, ImageSetError or OSError, naming the image.
        """
        ...


class EncodedImages(Protocol):
    """N encoded images, read in order: those of an Arrow folder (`ArrowImages`), or `ImageFiles`."""

    def __len__(self) -> int: ...

    def where(self, row: int) -> str:
        """What errors call an image."""
        ...

    def bodies(self, start: int, stop: int) -> Iterator[bytes]:
        """Encoded images of rows [start, stop)."""
        ...


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Images that are files of their own."""

    folder: Path
    names: Sequence[str]
    """Relative to the folder."""

    def __len__(self) -> int:
        return len(self.names)

    def where(self, row: int) -> str:
        """The file."""
        return str(self.folder / self.names[row])

    def bodies(self, start: int, stop: int) -> Iterator[bytes]:
        """Encoded images of rows [start, stop).

        Raises:
            ImageSetError: a file is larger than an image of a face is.
        """
        for row in range(start, stop):
            yield self.body(row)

    def body(self, row: int) -> bytes:
        """One encoded image."""
        try:
            return read_image(self.folder, self.names[row], MAX_IMAGE_BYTES)
        except ImageFolderError as error:
            raise ImageSetError(str(error)) from None


@dataclass(frozen=True, slots=True)
class AlignedImages:
    """Encoded images that were aligned by whoever made the set; another size than the network's is refused."""

    images: EncodedImages

    def __len__(self) -> int:
        return len(self.images)

    def readers(self, start: int, stop: int, image_size: int) -> Iterator[Callable[[], Pixels]]:
        """As `ImageSet.readers`."""
        for row, body in enumerate(self.images.bodies(start, stop), start=start):
            yield partial(_aligned_pixels, body, self.images.where(row), image_size)


def check_size(size: Sequence[int], where: str, side: int) -> None:
    """Refuse an image that was aligned for another size: a face is not rescaled. Raises ImageSetError."""
    if tuple(size) != (side, side):
        raise ImageSetError(
            f"{where}: is {size[0]} x {size[1]} pixels, and the network takes {side} x {side}; it was aligned for its "
            "own size, and only IJB's original layout is aligned here"
        )


def pixel_blocks(
    images: ImageSet, blocks: Sequence[tuple[int, int]], *, image_size: int = TEMPLATE_SIZE, threads: int | None = None
) -> Generator[Pixels, None, None]:
    """(stop - start, image_size, image_size, 3) uint8 RGB of each block [start, stop), the next one made meanwhile.

    Args:
        threads: that decode beside each other; default one per CPU, at most 8.

    Memory: two blocks of pixels, and one of encoded images.
    """

    def decoded() -> Generator[Pixels, None, None]:
        with ThreadPoolExecutor(threads or min(8, usable_cpus())) as pool:
            for start, stop in blocks:
                pixels = np.empty((stop - start, image_size, image_size, 3), dtype=np.uint8)
                done = pool.map(lambda read: read(), images.readers(start, stop, image_size))
                for place, one in enumerate(done):  # the first error, by image order, is raised here
                    pixels[place] = one
                yield pixels

    return prefetched(decoded(), depth=1)


def _aligned_pixels(body: bytes, where: str, side: int) -> Pixels:
    pixels = decode_image(body, where=where)
    check_size(pixels.shape[:2], where, side)
    return pixels
