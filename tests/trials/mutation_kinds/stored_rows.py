"""Trials of what we store ourselves and share: teacher caches, packed stores, and `.npy` files of other toolkits."""

from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from adadistill.core.npy_files import NpyFileError, open_npy
from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.packed_images import DAMAGED_NAME, PackedStore
from adadistill.loaders.block_store.packing import pack_records
from adadistill.loaders.block_store.teacher_cache import PLAIN, CacheHeader, CacheWriter, TeacherCache
from adadistill.loaders.records.image_records import ImageRecords
from trials.mutation_kinds.damage import Rng, damage_bytes
from trials.mutation_kinds.records import SIDE, record_originals
from trials.mutation_kinds.trial import READ, BrokenPromiseError, Ending, judge

_VALUES: tuple[Any, ...] = (
    -1,
    0,
    1,
    1 << 31,
    1 << 62,
    10**18,
    10**400,
    1.5,
    True,
    None,
    "1",
    [],
    {},
    "x" * 100_000,
    "../x",
)


class StoredRows:
    """A store in blocks: opened as training does, every block then read against its checksum."""

    damage = "bit flips, cuts, splices of any of its files; headers that lie, with their own sha256 right"

    def __init__(self, *, packed: bool) -> None:
        self.group = "packed store" if packed else "teacher cache"
        self.promise = "an error of the store names the folder, or every row as it was written"
        self._packed = packed
        self._files: dict[str, bytes] = {}

    def prepare(self, folder: Path) -> None:
        store = folder / "store"
        if self._packed:
            record_originals(folder)
            records = ImageRecords(folder / "insightface" / "train.rec")
            binding = {
                "fingerprint": records.fingerprint(),
                "num_records": len(records),
                "num_classes": records.num_classes,
                "name": "train.rec",
            }
            pack_records(records, store, binding=binding, layout="rgb", image_size=SIDE, workers=1)
        else:
            _write_cache(store)
        listed = [path for path in store.iterdir() if path.name != DAMAGED_NAME]  # is for people; no reader opens it
        self._files = {path.name: path.read_bytes() for path in listed}
        self._read(store)

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        store = folder / "store"
        store.mkdir()
        files = dict(self._files)
        if rng.random() < 0.4:
            damage, files["header.json"] = _lying_header(rng, files["header.json"])
        else:
            name = sorted(files)[int(rng.integers(len(files)))]
            damage, files[name] = damage_bytes(rng, files[name], list(self._files.values()))
            damage = f"{name}: {damage}"
        for name, body in files.items():
            (store / name).write_bytes(body)
        unchanged = files == self._files

        def read() -> str:
            self._read(store)
            if not unchanged and not damage.startswith("header"):
                raise BrokenPromiseError("a changed store was read whole")
            return READ if unchanged else "read under another description"

        return judge(damage, read, (StoreError, StoreError), named="store")

    def _read(self, store: Path) -> None:
        opened = PackedStore(store) if self._packed else TeacherCache(store)
        opened.check()
        ids = np.arange(min(len(opened), 64))
        rows = opened.gather(ids) if isinstance(opened, PackedStore) else opened.gather(ids, np.zeros_like(ids))
        if len(rows) != len(ids):
            raise BrokenPromiseError(f"{len(rows)} rows of {len(ids)}")


def _write_cache(folder: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((23, 1, 8))
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16)
    preprocessing = {"color": "rgb", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    teacher: dict[str, Any] = {"kind": "weights", "name": "a", "arch": "ir50", "sha256": "ab" * 32, "embedding_dim": 8,
               "image_size": 112, "preprocessing": preprocessing}  # fmt: skip
    header = CacheHeader(
        num_records=23,
        embedding_dim=8,
        views=(PLAIN,),
        block_records=5,
        built={"precision": "float32", "decoder": "cpu"},
        teacher=teacher,
        records={"fingerprint": "cd" * 32, "num_records": 23, "num_classes": 7, "name": "train.rec"},
    )
    with CacheWriter(folder, header, main=True) as writer:
        for block in writer.pending().tolist():
            ids = header.block_record_range(block)
            writer.write_block(block, rows[ids.start : ids.stop])


def _lying_header(rng: Rng, body: bytes) -> tuple[str, bytes]:
    """The header with one field of its tree changed, stating its own sha256 by the rule of the format."""
    content: Any = json.loads(body)
    target = content
    while True:
        keys = sorted(target) if isinstance(target, dict) else range(len(target))
        key: Any = list(keys)[int(rng.integers(len(keys)))]
        if not isinstance(target[key], (dict, list)) or not target[key] or rng.random() < 0.3:
            break
        target = target[key]
    if isinstance(target, dict) and rng.random() < 0.15:
        del target[key]
    else:
        target[key] = _VALUES[int(rng.integers(len(_VALUES)))]
    content["header_sha256"] = "0" * 64
    try:
        text = json.dumps(content, indent=2, sort_keys=True)
    except ValueError:  # a number of more digits than Python writes
        text = body.decode().replace("23", "9" * 5000, 1)
    return "header: a field", text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


class NpyFiles:
    """`.npy` files as `cache import` and a recipe's `teacher.embeddings` map them."""

    group = ".npy file"
    damage = "bit flips, cuts; headers of huge shapes, object dtypes, deep literals and odd escapes"
    promise = "an NpyFileError, to which the caller adds the path, or numbers that the file really holds"

    def __init__(self) -> None:
        self._originals: list[bytes] = []

    def prepare(self, folder: Path) -> None:
        for array in (np.arange(12, dtype=np.float16).reshape(3, 4), np.ones((2, 2, 2), order="F"), np.arange(5)):
            out = io.BytesIO()
            np.save(out, array)
            self._originals.append(out.getvalue())
        path = folder / "rows.npy"
        path.write_bytes(self._originals[0])
        open_npy(path)

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        path = folder / "rows.npy"
        original = self._originals[number % len(self._originals)]
        damage, body = damage_bytes(rng, original, self._originals)
        if rng.random() < 0.5:
            damage, body = _npy_attack(rng)
        path.write_bytes(body)

        def read() -> str:
            found = open_npy(path)
            if found.dtype.kind not in "biufc" or math.prod(found.shape) * found.itemsize > len(body):
                raise BrokenPromiseError(f"{found.dtype} {found.shape} from {len(body)} bytes")
            return READ if body == original else "read as other numbers"

        return judge(damage, read, (NpyFileError,), named="")


def _shaped(shape: str, descriptor: str = "'<f4'") -> str:
    return f"{{'descr': {descriptor}, 'fortran_order': False, 'shape': {shape}}}"


def _npy_attack(rng: Rng) -> tuple[str, bytes]:
    headers = {
        "huge shape": _shaped(f"({1 << 62}, {1 << 62})"),
        "shape of thousands of digits": _shaped(f"({'9' * 4000}, {'9' * 4000})"),
        "negative shape": _shaped("(-1, -4)"),
        "boolean shape": _shaped("(True,)"),
        "no sides": _shaped("()"),
        "66 sides": _shaped(f"({'1,' * 66})"),
        "look-alike digits": _shaped("(\uff11,)"),
        "objects": _shaped("(1,)", "'|O'"),
        "structured": _shaped("(1,)", "[('a', '<f4')]"),
        "a dtype of many": _shaped("(1,)", "'(1000000000,)f4'"),
        "a dtype by commas": _shaped("(1,)", "'f4,f4'"),
        "text": _shaped("(1,)", "'<U4'"),
        "a NUL": _shaped("(1,)", "'<f4\0'"),
        "an odd escape": _shaped("(1,)", "'\\d'"),
        "a call": _shaped("(1,)", "__import__('os').system('true')"),
        "deep": "(" * 4000 + ")" * 4000,
        "minus signs": "-" * 9000 + "1",
        "a set": "{1, 2}",
    }
    name = sorted(headers)[int(rng.integers(len(headers)))]
    text = headers[name].encode()
    version = int(rng.integers(1, 4))
    return name, b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(
        2 if version == 1 else 4, "little"
    ) + text + bytes(4)
