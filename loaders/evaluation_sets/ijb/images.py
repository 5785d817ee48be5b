"""IJB's images as aligned pixels, a block at a time, whichever layout they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adadistill.loaders.dataset_tools.foreign_sets import MAX_IMAGE_BYTES
from adadistill.loaders.evaluation_sets.face_alignment import TEMPLATE_SIZE, aligned, similarities_to_template
from adadistill.loaders.evaluation_sets.ijb.annotations import IjbError
from adadistill.loaders.pipelines.prefetch import prefetched
from adadistill.loaders.pixels import decode_image
from adadistill.loaders.records.arrow_images import ArrowImages
from adadistill.loaders.usable_cpus import usable_cpus

Pixels = npt.NDArray[np.uint8]


class IjbImages(Protocol):
    """N images that can be decoded and aligned."""

    def __len__(self) -> int: ...

    def readers(self, start: int, stop: int, image_size: int) -> Generator[Callable[[], Pixels], None, None]:
        """For each image of [start, stop) in order, what makes its (image_size, image_size, 3) uint8 RGB pixels.

        Each call raises ImageDecodeError, IjbError or OSError, naming the image.
        """
        ...

    def sha256(self) -> str:
        """Tells these images from others."""
        ...


@dataclass(frozen=True, slots=True)
class LooseCrops:
    """The original layout: one file for each image, aligned here by five landmarks."""

    folder: Path
    names: Sequence[str]
    """N file names within the folder."""
    sizes: npt.NDArray[np.int64]
    """(N,) bytes of the files."""
    landmarks: npt.NDArray[np.float64]
    """(N, 5, 2)."""

    def __len__(self) -> int:
        return len(self.names)

    def readers(self, start: int, stop: int, image_size: int) -> Generator[Callable[[], Pixels], None, None]:
        similarities = similarities_to_template(self.landmarks[start:stop], image_size)
        for number in range(start, stop):
            yield self._reader(number, similarities[number - start], image_size)

    def sha256(self) -> str:
        """Of every file's name and size, and of the landmarks; the contents of half a million files are not read."""
        digest = hashlib.sha256(np.ascontiguousarray(self.landmarks).tobytes())
        for name, size in zip(self.names, self.sizes.tolist(), strict=True):
            digest.update(f"{name}\n{size}\n".encode())
        return digest.hexdigest()

    def _reader(self, number: int, similarity: npt.NDArray[np.float64], image_size: int) -> Callable[[], Pixels]:
        path = self.folder / self.names[number]

        def read() -> Pixels:
            with path.open("rb") as file:
                body = file.read(MAX_IMAGE_BYTES + 1)
            if len(body) > MAX_IMAGE_BYTES:
                raise IjbError(f"{path}: larger than {MAX_IMAGE_BYTES:,} bytes")
            return aligned(decode_image(body, where=path), similarity, image_size)

        return read


@dataclass(frozen=True, slots=True)
class AlignedRows:
    """CVLface's prepared layout: aligned images in the rows of an Arrow folder."""

    rows: ArrowImages

    def __len__(self) -> int:
        return len(self.rows)

    def readers(self, start: int, stop: int, image_size: int) -> Generator[Callable[[], Pixels], None, None]:
        for row, body in enumerate(self.rows.bodies(start, stop), start=start):
            yield self._reader(row, body, image_size)

    def sha256(self) -> str:
        """Of the contents of the Arrow files."""
        return self.rows.sha256()

    def _reader(self, row: int, body: bytes, image_size: int) -> Callable[[], Pixels]:
        def read() -> Pixels:
            where = self.rows.where(row)
            pixels = decode_image(body, where=where)
            if pixels.shape[:2] != (image_size, image_size):
                raise IjbError(
                    f"{where}: is {pixels.shape[0]} x {pixels.shape[1]} pixels and aligned for that size; "
                    f"the network takes {image_size}. Use the original layout, which is aligned here"
                )
            return pixels

        return read


def pixel_blocks(
    images: IjbImages, blocks: Sequence[tuple[int, int]], *, image_size: int = TEMPLATE_SIZE, threads: int | None = None
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
