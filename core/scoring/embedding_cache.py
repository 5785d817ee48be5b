"""Embeddings of a set on disk, so that another metric, or a run that was stopped, does not embed the images again.

A folder holds `header.json`, which binds network, data and precision, and one `.npy` file for each block of images:
float32 sums of the raw embeddings of both mirror images. A file appears whole or not at all; what is missing is
computed. Only the main rank reads or writes here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.core.npy_files import NpyFileError, open_npy
from adadistill.loaders.atomic_file import atomic_file, write_whole

_HEADER_NAME = "header.json"
_MAX_HEADER_BYTES = 1 << 16
_FORMAT = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingCache:
    """Where embeddings are kept, and whose they are."""

    folder: Path
    network_sha256: str
    """Tells the network from others: weights, architecture and preprocessing."""

    def open(self, *, data_sha256: str, precision: str, image_size: int, images: int, block_rows: int) -> StoredBlocks:
        """Make the folder or take it over.

        Raises:
            ValueError: it was written for something else, so that embeddings would mix, or is no such folder.
            OSError: it cannot be read or written.
        """
        binding = {
            "format": _FORMAT,
            "network_sha256": self.network_sha256,
            "data_sha256": data_sha256,
            "precision": precision,
            "image_size": image_size,
            "images": images,
            "block_rows": block_rows,
            "holds": "float32 sums of the raw embeddings of an image and of its mirror image",
        }
        blocks, found = StoredBlocks(self.folder, images, block_rows), _read_header(self.folder)
        if found == binding:
            return blocks
        if found is not None:
            different = ", ".join(
                f"{name} {_shown(found.get(name))} (here {_shown(value)})"
                for name, value in binding.items()
                if found.get(name) != value
            )
            raise ValueError(
                f"{self.folder} holds embeddings of something else: {different}. Name another folder, or remove it"
            )
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no {_HEADER_NAME}; name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / _HEADER_NAME, json.dumps(binding, indent=2) + "\n")
        return blocks


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """The blocks of one folder."""

    folder: Path
    images: int
    block_rows: int

    def read(self, number: int) -> npt.NDArray[np.float32] | None:
        """A block's embeddings; None where they are not there, or damaged, which is logged."""
        path = self._path(number)
        try:
            stored = open_npy(path)
        except FileNotFoundError:
            return None
        except NpyFileError as error:
            _log.warning("%s is computed again: %s", path, error)
            return None
        rows = min(self.block_rows, self.images - number * self.block_rows)
        if stored.ndim != 2 or len(stored) != rows or stored.dtype != np.float32 or not np.isfinite(stored).all():
            _log.warning("%s is computed again: %s of shape %s", path, stored.dtype, stored.shape)
            return None
        return stored

    def write(self, number: int, rows: npt.NDArray[np.float32]) -> None:
        """Keep a block."""
        with atomic_file(self._path(number)) as file:
            np.save(file, rows)

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:06d}.npy"


def _read_header(folder: Path) -> Mapping[str, object] | None:
    path = folder / _HEADER_NAME
    if not path.is_file():
        return None
    with path.open("rb") as file:
        text = file.read(_MAX_HEADER_BYTES + 1)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"{path} is damaged; remove the folder, or name another")
    return content


def _shown(value: object) -> str:
    text = ascii(str(value))[1:-1]
    return text if len(text) <= 16 else f"{text[:12]}..."
