"""Trials of CVLface's `metadata.pt`: the archive, the pickle in it, and dictionaries made to hang or overflow."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np

from adadistill.loaders.safe_pickle import TorchMetadataError, read_torch_metadata
from trials.mutation_kinds.damage import Rng, damage_bytes
from trials.mutation_kinds.pickle_attacks import PROTOCOLS, executing_pickles, exhausting_pickles
from trials.mutation_kinds.trial import READ, BrokenPromiseError, Ending, attack_of, judge

_CONTENT: dict[str, Any] = {
    "image_paths": [f"loose_crop/{index}.jpg" for index in range(20)],
    "templates": np.arange(20, dtype=np.int64),
    "scores": np.linspace(0, 1, 20, dtype=np.float32),
    "name": "IJBB",
    "fars": [1e-6, 1e-4],
}


class MetadataFiles:
    """`metadata.pt` files as the readers of IJB and TinyFace open them."""

    group = "metadata.pt"
    damage = "bit flips, cuts, splices of archive and pickle; pickles that execute; keys that hang; compressed bombs"
    promise = "a TorchMetadataError names the file, or a dictionary of plain values by text; nothing runs"

    def __init__(self) -> None:
        self._originals: list[bytes] = []
        self._attacks: list[tuple[str, bytes]] = []

    def prepare(self, folder: Path) -> None:
        self._originals = [archive(pickle.dumps(_CONTENT, protocol)) for protocol in PROTOCOLS]
        pickles = {**executing_pickles(folder.parent / "canary"), **exhausting_pickles()}
        self._attacks = [(name, archive(body)) for name, body in pickles.items()]
        self._attacks += archive_attacks().items()
        path = folder / "metadata.pt"
        path.write_bytes(self._originals[-1])
        read_torch_metadata(path)

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        attack = attack_of(number, len(self._attacks))
        if attack is not None:
            damage, body = self._attacks[attack]
        elif rng.random() < 0.5:
            damage, body = damage_bytes(rng, self._originals[number % len(self._originals)], self._originals)
        else:  # inside the archive, whose checksums would else hide the pickle's reader from most damage
            protocol = PROTOCOLS[number % len(PROTOCOLS)]
            bodies = [pickle.dumps(_CONTENT, one) for one in PROTOCOLS]
            damage, inner = damage_bytes(rng, bodies[protocol], bodies)
            damage, body = f"pickle: {damage}", archive(inner)
        path = folder / "metadata.pt"
        path.write_bytes(body)

        def read() -> str:
            found = cast("dict[str, Any]", read_torch_metadata(path))
            if not all(isinstance(key, str) for key in found):
                raise BrokenPromiseError("keys that are no text")
            same = found.keys() == _CONTENT.keys() and all(np.array_equal(found[key], _CONTENT[key]) for key in found)
            return READ if same else "read as other plain values"

        return judge(damage, read, (TorchMetadataError,), named="metadata.pt")


def archive(pickled: bytes, *, compression: int = zipfile.ZIP_STORED, members: int = 0, name: str = "archive") -> bytes:
    """A zip archive as `torch.save` lays it out."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr(f"{name}/data.pkl", pickled)
        file.writestr(f"{name}/version", "3\n")
        for member in range(members):
            file.writestr(f"{name}/data/{member}", b"")
    return out.getvalue()


def archive_attacks() -> dict[str, bytes]:
    """Name -> archive that is hostile before its pickle is looked at."""
    plain = pickle.dumps(_CONTENT, 2)
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
