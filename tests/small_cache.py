"""Small caches of teacher embeddings for tests, and processes that die while they write them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheHeader, CacheWriter

NAMES = ("blocks.bin", "embeddings.bin", "header.json")

TEACHER = {
    "kind": "weights",
    "name": "ir50.pth",
    "arch": "ir50",
    "sha256": "ab" * 32,
    "embedding_dim": 8,
    "image_size": 112,
    "preprocessing": {"color": "rgb", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}


def small_header(**changes: Any) -> CacheHeader:
    """23 records, 2 views, 8-d, in blocks of 5 (the last has 3), unless changed."""
    fields: dict[str, Any] = {
        "num_records": 23,
        "embedding_dim": 8,
        "views": (PLAIN, MIRRORED),
        "block_records": 5,
        "built": {"precision": "float32", "decoder": "cpu"},
    }
    fields |= changes
    fields.setdefault("teacher", TEACHER | {"embedding_dim": fields["embedding_dim"]})
    records = {"fingerprint": "cd" * 32, "num_records": fields["num_records"], "num_classes": 7, "name": "train.rec"}
    fields.setdefault("records", records)
    return CacheHeader(**fields)


def unit_rows(header: CacheHeader, seed: int = 0) -> npt.NDArray[np.float16]:
    """(N, V, D) unit vectors."""
    shape = (header.num_records, header.num_views, header.embedding_dim)
    rows = np.random.default_rng(seed).standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16)


def block_rows(header: CacheHeader, rows: npt.NDArray[np.float16], block: int) -> npt.NDArray[np.float16]:
    """The (n, V, D) rows of one block."""
    ids = header.block_record_range(block)
    return rows[ids.start : ids.stop]


def build(
    folder: Path,
    header: CacheHeader | None = None,
    *,
    seed: int = 0,
    rows: npt.NDArray[Any] | None = None,
    blocks: int | None = None,
) -> Path:
    """Build a cache, or finish one, in this process: of drawn rows unless they are given, of `blocks` blocks or all."""
    header = header or small_header()
    rows = unit_rows(header, seed) if rows is None else rows.astype(np.float16)
    with CacheWriter(folder, header, main=True) as writer:
        for block in writer.pending().tolist()[:blocks]:
            writer.write_block(block, block_rows(header, rows, block))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def signed(content: dict[str, Any], **style: Any) -> bytes:
    """A header as another program would write it, its own sha256 put in by the rule of the format."""
    text = json.dumps(content | {"header_sha256": "0" * 64}, **style)
    return text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()).encode()


def start_child(action: Callable[[], Any]) -> int:
    """Fork a process that runs `action` and exits with 0, or with 3 where it raised. Returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end_of_child(pid: int) -> int:
    """Wait for a child: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_in_child(action: Callable[[], Any]) -> int:
    """Fork, run, wait."""
    return end_of_child(start_child(action))


def die() -> None:
    """Be killed as by `kill -9`: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
