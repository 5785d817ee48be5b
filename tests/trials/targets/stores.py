"""What we store ourselves and share, teacher caches and packed stores, and `.npy` files of other toolkits."""

from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from adadistill.core.npy_files import open_npy
from adadistill.loaders.block_store.packed_images import DAMAGED_NAME, PackedStore
from adadistill.loaders.block_store.packing import pack_records
from adadistill.loaders.block_store.teacher_cache import PLAIN, CacheHeader, CacheWriter, TeacherCache
from adadistill.loaders.records.image_records import ImageRecords
from trials.targets.damage import spoil
from trials.targets.records import SIDE, record_originals
from trials.targets.target import READ, BrokenPromiseError, Files, Material, Mutant, Original, attacks, read_files

_HEADER, _LIE = "store/header.json", "header: a field"


def stored_rows(folder: Path, *, packed: bool) -> Material:
    """A store in blocks: opened as training does, every block then read against its checksum."""
    store = folder / "store"
    if packed:
        _pack(folder, store)
    else:
        _write_cache(store)
    files = read_files(store, "store/")
    files.pop(f"store/{DAMAGED_NAME}", None)  # is for people; no reader opens it
    original = Original("store", files, "store", hit=sorted(files), lies={_LIE: _lying_header})

    def read(mutant: Mutant) -> str:
        _read_rows(mutant.folder / "store", packed)
        if mutant.changed and mutant.damage != _LIE:
            raise BrokenPromiseError("a changed store was read whole")
        return "read under another description" if mutant.changed else READ

    _read_rows(store, packed)
    return Material([original], read)


def _read_rows(store: Path, packed: bool) -> None:
    opened = PackedStore(store) if packed else TeacherCache(store)
    opened.check()
    ids = np.arange(min(len(opened), 64))
    rows = opened.gather(ids) if isinstance(opened, PackedStore) else opened.gather(ids, np.zeros_like(ids))
    if len(rows) != len(ids):
        raise BrokenPromiseError(f"{len(rows)} rows of {len(ids)}")


def _pack(folder: Path, store: Path) -> None:
    record_originals(folder)
    records = ImageRecords(folder / "insightface" / "train.rec")
    binding = {"fingerprint": records.fingerprint(), "num_records": len(records), "num_classes": records.num_classes,
               "name": "train.rec"}  # fmt: skip
    pack_records(records, store, binding=binding, layout="rgb", image_size=SIDE, workers=1)


def _write_cache(folder: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((23, 1, 8))
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16)
    preprocessing = {"color": "rgb", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    teacher: dict[str, Any] = {"kind": "weights", "name": "a", "arch": "ir50", "sha256": "ab" * 32, "embedding_dim": 8,
               "image_size": 112, "preprocessing": preprocessing}  # fmt: skip
    header = CacheHeader(
        num_records=23, embedding_dim=8, views=(PLAIN,), block_records=5, teacher=teacher,
        built={"precision": "float32", "decoder": "cpu"},
        records={"fingerprint": "cd" * 32, "num_records": 23, "num_classes": 7, "name": "train.rec"},
    )  # fmt: skip
    with CacheWriter(folder, header, main=True) as writer:
        for block in writer.pending().tolist():
            ids = header.block_record_range(block)
            writer.write_block(block, rows[ids.start : ids.stop])


def _lying_header(rng: Random, files: Files) -> None:
    """One field of the header's tree is another, and it states its own sha256 by the rule of the format."""
    content = {**spoil(rng, json.loads(files[_HEADER])), "header_sha256": "0" * 64}
    text = json.dumps(content, indent=2, sort_keys=True)
    if rng.random() < 0.05:  # a number of more digits than Python writes
        text = text.replace("23", "9" * 5000, 1)
    files[_HEADER] = text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def npy_files(folder: Path) -> Material:
    """`.npy` files as `cache import` and a recipe's `teacher.embeddings` map them; the caller adds the path."""
    originals = []
    for array in (np.arange(12, dtype=np.float16).reshape(3, 4), np.ones((2, 2, 2), order="F"), np.arange(5)):
        out = io.BytesIO()
        np.save(out, array)
        originals.append(Original(str(array.dtype), {"rows.npy": out.getvalue()}, "", hit=["rows.npy"]))
    (folder / "rows.npy").write_bytes(originals[0].files["rows.npy"])
    open_npy(folder / "rows.npy")
    hostile = [Original(one.name, one.files, "") for one in attacks(_npy_attacks(), "rows.npy")]
    return Material(originals, _read_npy, hostile)


def _read_npy(mutant: Mutant) -> str:
    found, size = open_npy(mutant.path), mutant.path.stat().st_size
    if found.dtype.kind not in "biufc" or math.prod(found.shape) * found.itemsize > size:
        raise BrokenPromiseError(f"{found.dtype} {found.shape} from {size} bytes")
    return "read as other numbers" if mutant.changed or not mutant.original.hit else READ


def _npy_attacks() -> dict[str, bytes]:
    """Name -> header of each version that no array of numbers has, and four bytes."""

    def shaped(shape: str, descriptor: str = "'<f4'") -> str:
        return f"{{'descr': {descriptor}, 'fortran_order': False, 'shape': {shape}}}"

    headers = {
        "huge shape": shaped(f"({1 << 62}, {1 << 62})"),
        "shape of thousands of digits": shaped(f"({'9' * 4000}, {'9' * 4000})"),
        "negative shape": shaped("(-1, -4)"),
        "boolean shape": shaped("(True,)"),
        "no sides": shaped("()"),
        "66 sides": shaped(f"({'1,' * 66})"),
        "look-alike digits": shaped("(\uff11,)"),
        "objects": shaped("(1,)", "'|O'"),
        "structured": shaped("(1,)", "[('a', '<f4')]"),
        "a dtype of many": shaped("(1,)", "'(1000000000,)f4'"),
        "a dtype by commas": shaped("(1,)", "'f4,f4'"),
        "text": shaped("(1,)", "'<U4'"),
        "a NUL": shaped("(1,)", "'<f4\0'"),
        "an odd escape": shaped("(1,)", "'\\d'"),
        "a call": shaped("(1,)", "__import__('os').system('true')"),
        "deep": "(" * 4000 + ")" * 4000,
        "minus signs": "-" * 9000 + "1",
        "a set": "{1, 2}",
    }
    attacks = {}
    for version, width in ((1, 2), (2, 4), (3, 4)):
        for name, text in headers.items():
            body = text.encode()
            head = b"\x93NUMPY" + bytes([version, 0]) + len(body).to_bytes(width, "little")
            attacks[f"{name}, version {version}"] = head + body + bytes(4)
    return attacks
