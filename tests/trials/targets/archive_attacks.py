"""Weight files that are hostile as archives, as torch's pickles or by the header of their tensors."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from functools import cache
from typing import Any

import torch

from trials.targets.damage import safetensors


def archive(pickled: bytes, *, compression: int = zipfile.ZIP_STORED, members: int = 0, name: str = "archive") -> bytes:
    """A zip archive as `torch.save` lays it out."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression, compresslevel=1) as file:
        file.writestr(f"{name}/data.pkl", pickled)
        file.writestr(f"{name}/version", "3\n")
        for member in range(members):
            file.writestr(f"{name}/data/{member}", b"")
    return out.getvalue()


@cache
def archive_attacks() -> dict[str, bytes]:
    """Name -> archive that is hostile before its pickle is looked at."""
    plain = pickle.dumps({"name": "IJBB", "fars": [1e-6, 1e-4]}, 2)
    good = archive(plain)
    return {
        "compressed zeros": archive(bytes(200_000_000), compression=zipfile.ZIP_DEFLATED),
        "compressed by LZMA": archive(plain, compression=zipfile.ZIP_LZMA),
        "100,000 members": archive(plain, members=100_000),
        "two pickles": archive(plain, name="data.pkl/x") + good,
        "a name that is no UTF-8": archive(plain, name="archivé").replace("é".encode(), b"\xff\xfe"),
        "a name that leads out": archive(plain, name="../../out"),
        "an absolute name": archive(plain, name="/etc"),
        "a name with a NUL": good.replace(b"archive/data.pkl", b"archive\0data.pkl"),
        "encrypted": good.replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00").replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
        ),
        "version 99 of the format": good.replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\x63"),
        "an empty archive": archive(plain)[-22:],
        "no archive, a bare pickle": plain,
        "nothing": b"",
    }


def storage_archives() -> dict[str, bytes]:
    """A state dict of torch's whose storage is enormous: unpacked from little, or a number shown repeatedly."""
    out = io.BytesIO()
    torch.save({"a": torch.zeros(16)}, out)
    with zipfile.ZipFile(out) as saved:
        members = {name: saved.read(name) for name in saved.namelist()}
    pickle_name = next(name for name in members if name.endswith("data.pkl"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, body in members.items():
            if not name.endswith("/data/0"):
                file.writestr(name, body.replace(b"K\x10", b"J\x00\x00\x00\x0a") if name == pickle_name else body)
        with file.open(next(name for name in members if name.endswith("/data/0")), "w", force_zip64=True) as storage:
            for _ in range(40):
                storage.write(bytes(16 << 20))
    repeated = io.BytesIO()
    torch.save({"a": torch.zeros(1).expand(1 << 28)}, repeated)
    return {
        "a storage that unpacks to 640 MiB": packed.getvalue(),
        "one number shown 268 million times": repeated.getvalue(),
    }


def tensor_pickles() -> dict[str, bytes]:
    """Pickles that torch's restricted unpickler understands, with tensors that are not what they seem."""

    def rebuilt(function: str, *arguments: Any) -> bytes:
        body = b"".join(_spelt(argument) for argument in arguments)
        return b"\x80\x02}X\x01\x00\x00\x00a" + b"ctorch._utils\n" + function.encode() + b"\n(" + body + b"tRs."

    f32 = "ctorch\nfloat32\n"
    return {
        "a meta tensor of 4 EiB": rebuilt("_rebuild_meta_tensor_no_storage", f32, (1 << 30,) * 2, (1 << 30, 1), False),
        "a sparse tensor of 4 EiB": rebuilt(
            "_rebuild_sparse_tensor", "ctorch.serialization\n_get_layout\n(X\x0c\x00\x00\x00torch.sparse_tR", ()
        ),
        "a set of a million": b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nset\n](" + b"K\x01" * 100_000 + b"e\x85Rs.",
        "numbers for tensors": pickle.dumps({"a": 1.0, "b": [1, 2]}, 2),
        "no mapping": pickle.dumps([1, 2], 2),
        "keys that are numbers": pickle.dumps({1: 2}, 2),
        "a state dict in itself": b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.",
        "deep containers": b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 100_000 + b"a" * 99_999 + b"s.",
    }


def _spelt(value: Any) -> bytes:
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
    if isinstance(value, tuple):
        return b"(" + b"".join(_spelt(one) for one in value) + b"t"
    return str(value).encode()


def tensor_headers() -> dict[str, bytes]:
    """Name -> `.safetensors` file whose header lies."""
    slot = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    empty = slot | {"data_offsets": [0, 0]}
    return {
        "overlapping tensors": safetensors({"a": slot, "b": slot}, bytes(4)),
        "a hole": safetensors({"a": slot, "b": slot | {"data_offsets": [8, 12]}}, bytes(12)),
        "backwards offsets": safetensors({"a": slot | {"data_offsets": [4, 0]}}, bytes(4)),
        "offsets past the end": safetensors({"a": slot | {"data_offsets": [0, 1 << 62]}}, bytes(4)),
        "no elements, huge sides": safetensors({"a": empty | {"shape": [0, 1 << 40, 1 << 40]}}),
        "no elements, a side of 64 bits": safetensors({"a": empty | {"shape": [0, (1 << 64) - 1]}}),
        "65,000 dimensions": safetensors({"a": slot | {"shape": [1] * 65_000}}, bytes(4)),
        "a header of 1 TiB": safetensors(b"{}", length=1 << 40),
        "a header of 99 MB": safetensors(b'{"__metadata__":{' + b'"":"",' * 14_000_000 + b'"a":"b"}}'),
        "nested metadata": safetensors(b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "deep braces": safetensors(b'{"a":' * 100_000),
        "one name twice": safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(slot).encode(),) * 2), bytes(4)),
        "no UTF-8": safetensors(b'{"\xff": 1}'),
        "a NUL in a name": safetensors({"a\0b": slot}, bytes(4)),
        "no tensors": safetensors({}),
        "nothing": b"",
    }
