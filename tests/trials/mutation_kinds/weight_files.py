"""Trials of weight files from the network: `.pth`, `.ckpt` (zip and legacy) and `.safetensors`."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.weight_files import WeightFileError, read_weight_file
from adadistill.core.distributed import Ranks
from adadistill.core.teachers import TeacherConfig, TeacherError, load_source
from trials.mutation_kinds.damage import Rng, damage_bytes
from trials.mutation_kinds.metadata_files import archive, archive_attacks
from trials.mutation_kinds.pickle_attacks import executing_pickles, exhausting_pickles
from trials.mutation_kinds.trial import READ, BrokenPromiseError, Ending, attack_of, judge

_NUMBERS: tuple[Any, ...] = (-1, 0, 1 << 31, 1 << 62, (1 << 64) - 1, 1 << 64, 1.5, "1", None, [], True)
_DTYPES = ("F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64", "U64", "BOOL", "I128", "f32", "", 3)


class WeightFiles:
    """Public weights as `convert`, `evaluate` and a recipe's `teacher.weights` read them."""

    group = "weight file"
    damage = "bit flips, cuts, splices; pickles that execute; compressed and overlapping archives; headers that lie"
    promise = "a WeightFileError names the file, or named tensors no larger than it; nothing runs"

    def __init__(self) -> None:
        self._originals: list[tuple[str, bytes]] = []
        self._attacks: list[tuple[str, str, bytes]] = []
        self._network: list[tuple[str, bytes]] = []
        self._tensors: dict[str, torch.Tensor] = {}

    def prepare(self, folder: Path) -> None:
        self._tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3), "n": torch.tensor(7)}
        self._originals = _forms(self._tensors)
        pickles = {**executing_pickles(folder.parent / "canary"), **exhausting_pickles(), **_tensor_pickles()}
        self._attacks = [(f"weights{suffix}", name, body) for name, one in pickles.items() for suffix, body in
                         ((".pth", archive(one)), (".ckpt", one))]  # fmt: skip
        self._attacks += [("weights.pth", name, body) for name, body in archive_attacks().items()]
        self._attacks += [("weights.pth", name, body) for name, body in _storage_archives().items()]
        self._attacks += [("weights.safetensors", name, body) for name, body in _headers().items()]
        backbone = BackboneConfig(arch="mobilefacenet", embedding_dim=16)
        self._network = _forms(dict(build_backbone(backbone, 112, generator=0).state_dict()))
        for name, body in self._originals:
            path = folder / name
            path.write_bytes(body)
            read_weight_file(path)

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        choice = rng.random()
        attack = attack_of(number, len(self._attacks))
        if attack is not None:
            name, damage, body = self._attacks[attack]
        else:
            originals = self._network if choice < 0.05 else self._originals
            name, original = originals[number % len(originals)]
            if name.endswith(".safetensors") and choice > 0.6:
                damage, body = _lying_header(rng, original)
            else:
                damage, body = damage_bytes(rng, original, [one for _, one in originals])
        path = folder / name
        path.write_bytes(body)

        def read() -> str:
            tensors = read_weight_file(path)
            if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
                raise BrokenPromiseError("no named tensors")
            held = sum(value.untyped_storage().nbytes() for value in tensors.values() if value.layout == torch.strided)
            if held > 64 * len(body) + 4096 and len({value.data_ptr() for value in tensors.values()}) == len(tensors):
                raise BrokenPromiseError(f"{held} bytes of tensors from a file of {len(body)}")
            if len(body) > 100_000:
                load_source(TeacherConfig(weights=str(path), color="rgb"), image_size=112, ranks=Ranks())
            same = tensors.keys() == self._tensors.keys() and all(
                value.dtype == self._tensors[key].dtype and torch.equal(value, self._tensors[key])
                for key, value in tensors.items()
            )
            return READ if same else "read as other tensors, as these files hold no checksums"

        return judge(f"{name}: {damage}", read, (WeightFileError, TeacherError), named=name)


def _forms(tensors: dict[str, torch.Tensor]) -> list[tuple[str, bytes]]:
    forms = []
    for name, content, zipped in (
        ("weights.pth", tensors, True),
        ("legacy.pth", tensors, False),
        ("weights.ckpt", {"state_dict": tensors, "epoch": 3}, True),
    ):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=zipped)
        forms.append((name, out.getvalue()))
    return [*forms, ("weights.safetensors", save(tensors))]


def _storage_archives() -> dict[str, bytes]:
    """A state dict of torch's whose storage is a gigabyte: unpacked from a megabyte, or a number shown repeatedly."""
    out = io.BytesIO()
    torch.save({"a": torch.zeros(16)}, out)
    with zipfile.ZipFile(out) as saved:
        members = {name: saved.read(name) for name in saved.namelist()}
    pickle_name = next(name for name in members if name.endswith("data.pkl"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in members.items():
            if not name.endswith("/data/0"):
                file.writestr(name, body.replace(b"K\x10", b"J\x00\x00\x00\x10") if name == pickle_name else body)
        with file.open(next(name for name in members if name.endswith("/data/0")), "w", force_zip64=True) as storage:
            for _ in range(64):
                storage.write(bytes(16 << 20))
    repeated = io.BytesIO()
    torch.save({"a": torch.zeros(1).expand(1 << 28)}, repeated)
    return {
        "a storage that unpacks to 1 GiB": packed.getvalue(),
        "one number shown 268 million times": repeated.getvalue(),
    }


def _tensor_pickles() -> dict[str, bytes]:
    """Pickles that torch's restricted unpickler understands, with tensors that are not what they seem."""

    def rebuilt(function: str, *arguments: Any) -> bytes:
        body = b"".join(_spelt(argument) for argument in arguments)
        return b"\x80\x02}X\x01\x00\x00\x00a" + b"ctorch._utils\n" + function.encode() + b"\n(" + body + b"tRs."

    f32 = "ctorch\nfloat32\n"
    return {
        "a meta tensor of 4 EiB": rebuilt(
            "_rebuild_meta_tensor_no_storage", f32, (1 << 30, 1 << 30), (1 << 30, 1), False
        ),
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


def _safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _headers() -> dict[str, bytes]:
    slot = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {
        "overlapping tensors": _safetensors({"a": slot, "b": slot}, bytes(4)),
        "a hole": _safetensors({"a": slot, "b": slot | {"data_offsets": [8, 12]}}, bytes(12)),
        "backwards offsets": _safetensors({"a": slot | {"data_offsets": [4, 0]}}, bytes(4)),
        "offsets past the end": _safetensors({"a": slot | {"data_offsets": [0, 1 << 62]}}, bytes(4)),
        "no elements, huge sides": _safetensors({"a": slot | {"shape": [0, 1 << 40, 1 << 40], "data_offsets": [0, 0]}}),
        "no elements, a side of 64 bits": _safetensors(
            {"a": slot | {"shape": [0, (1 << 64) - 1], "data_offsets": [0, 0]}}
        ),
        "65,000 dimensions": _safetensors({"a": slot | {"shape": [1] * 65_000}}, bytes(4)),
        "a header of 1 TiB": _safetensors(b"{}", length=1 << 40),
        "a header of 99 MB": _safetensors(b'{"__metadata__":{' + b'"":"",' * 14_000_000 + b'"a":"b"}}'),
        "nested metadata": _safetensors(b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "deep braces": _safetensors(b'{"a":' * 100_000),
        "one name twice": _safetensors(
            b'{"a":' + json.dumps(slot).encode() + b',"a":' + json.dumps(slot).encode() + b"}", bytes(4)
        ),
        "no UTF-8": _safetensors(b'{"\xff": 1}'),
        "a NUL in a name": _safetensors({"a\0b": slot}, bytes(4)),
        "no tensors": _safetensors({}),
        "nothing": b"",
    }


def _lying_header(rng: Rng, body: bytes) -> tuple[str, bytes]:
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    names = sorted(set(header) - {"__metadata__"})
    slot = header[names[int(rng.integers(len(names)))]]
    field = ("dtype", "shape", "data_offsets")[int(rng.integers(3))]
    if field == "dtype":
        slot[field] = _DTYPES[int(rng.integers(len(_DTYPES)))]
    else:
        slot[field] = [_NUMBERS[int(rng.integers(len(_NUMBERS)))] for _ in range(int(rng.integers(4)))]
    return f"header: {field}", _safetensors(header, body[8 + length :])
