"""Trials of checkpoints: damaged files, which hashes must find, and forged ones, whose hashes are right."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    Snapshot,
    load_checkpoint,
    newest_valid_checkpoint,
)
from adadistill.core.checkpoints.network_checkpoint import describe_network, load_network
from trials.mutation_kinds.damage import Rng, damage_bytes
from trials.mutation_kinds.trial import READ, BrokenPromiseError, Ending, judge

_BACKBONE = BackboneConfig(arch="mobilefacenet", embedding_dim=8, width=0.125)
_IMAGE_SIZE = 32
_NAMES: tuple[Any, ...] = (
    "../out",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    "a\0b",
    ".hidden",
    "MANIFEST.json",
    "x" * 300,
    "\ud800",
    "é",
    3,
    None,
    [],
)
_NUMBERS: tuple[Any, ...] = (
    -1,
    0,
    1,
    1 << 31,
    1 << 62,
    1 << 64,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    True,
    None,
    "1",
    [],
    {},
)
_NESTED = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"[" * 900 + b"]" * 900,
    b'{"a": ' + b"9" * 5000 + b"}",
    b"\xff\xfe",
    b"",
    b"NaN",
)


class CheckpointFolders:
    """Checkpoint directories as `--resume auto`, `evaluate` and a recipe's `teacher.checkpoint` read them."""

    def __init__(self, *, forged: bool) -> None:
        self.group = "forged checkpoint" if forged else "checkpoint"
        self.damage = (
            "names that leave the folder, sizes, shapes and JSON of every kind, links and pipes, with matching hashes"
            if forged
            else "bit flips, edits, cuts, splices of any of its files"
        )
        self.promise = (
            "a CheckpointError names the folder, or a network of finite size; nothing outside is read or written"
            if forged
            else "a CheckpointError names the folder, and the checkpoint before it is taken, every bit as it was saved"
        )
        self._forged = forged
        self._files: dict[str, dict[str, bytes]] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def prepare(self, folder: Path) -> None:
        network = build_backbone(_BACKBONE, _IMAGE_SIZE, generator=0)
        self._tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with CheckpointWriter(folder / "checkpoints", keep=3) as writer:
            for step in (1, 2):
                writer.save(step, _snapshot(network, step))
        for path in sorted((folder / "checkpoints").iterdir()):
            self._files[path.name] = {file.name: file.read_bytes() for file in path.iterdir()}
        load_network(folder, device=torch.device("cpu"))

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        for name, files in self._files.items():
            (folder / "checkpoints" / name).mkdir(parents=True)
            for file, body in files.items():
                (folder / "checkpoints" / name / file).write_bytes(body)
        newest = folder / "checkpoints" / max(self._files)
        if self._forged:
            damage = _forge(rng, newest)
            return judge(damage, lambda: _read_forged(newest, folder), (CheckpointError,), named=newest.name)
        names = sorted(self._files[newest.name])
        target = newest / names[int(rng.integers(len(names)))]
        damage, body = damage_bytes(rng, target.read_bytes(), [newest.joinpath(name).read_bytes() for name in names])
        changed = body != target.read_bytes()
        target.write_bytes(body)
        return judge(
            f"{target.name}: {damage}",
            lambda: self._read(newest, folder, changed),
            (CheckpointError,),
            named=newest.name,
        )

    def _read(self, newest: Path, folder: Path, changed: bool) -> str:
        found, skipped = newest_valid_checkpoint(folder)
        if found is None or found.step != (1 if changed else 2) or len(skipped) != changed:
            raise BrokenPromiseError(
                f"took step {None if found is None else found.step} and passed over {len(skipped)}"
            )
        self._require_saved(found)
        load_checkpoint(newest)  # raises, where it was changed
        if changed:
            raise BrokenPromiseError("a changed checkpoint was loaded")
        return READ

    def _require_saved(self, found: Checkpoint) -> None:
        for name, tensor in self._tensors.items():
            if not torch.equal(found.model[name], tensor):
                raise BrokenPromiseError(f"{name} is not what was saved")


def _snapshot(network: torch.nn.Module, step: int) -> Snapshot:
    return Snapshot(
        model=network.state_dict(),
        optimiser={"momentum.a": torch.arange(4.0)},
        optimiser_json={"lr": 0.1},
        row_sharded={"centres": torch.arange(12.0).reshape(3, 4)},
        rank_state={"random": "00ff"},
        state={
            "network": describe_network(_BACKBONE, _IMAGE_SIZE),
            "position": {"epoch": 0, "step": step},
            "recipe": "x",
        },
    )


def _read_forged(newest: Path, folder: Path) -> str:
    """Everything that a stranger's checkpoint is read for; a stop at the first error, whichever reader raises it."""
    load_checkpoint(newest)
    newest_valid_checkpoint(folder)
    network = load_network(newest, device=torch.device("cpu")).network
    if sum(parameter.numel() for parameter in network.parameters()) > 10_000_000:
        raise BrokenPromiseError("a network far larger than its file")
    return "read as another checkpoint"


def _forge(rng: Rng, path: Path) -> str:
    """Change a checkpoint as one who means harm would: the hashes are made to fit afterwards."""
    manifest = json.loads((path / "MANIFEST.json").read_text())
    kinds = (
        "name",
        "size",
        "field",
        "state",
        "header",
        "raw json",
        "link",
        "pipe",
        "extra",
        "lacks",
        "network",
        "big text",
    )
    kind = kinds[int(rng.integers(len(kinds)))]
    entry = manifest["files"][int(rng.integers(len(manifest["files"])))]
    number = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    if kind == "name":
        entry["name"] = _NAMES[int(rng.integers(len(_NAMES)))]
    elif kind == "size":
        entry["size"] = number
    elif kind == "field":
        manifest[("step", "world_size", "attempt", "files", "version", "format")[int(rng.integers(6))]] = number
    elif kind == "state":
        _rewrite(path, manifest, "state.json", spoil(rng, json.loads((path / "state.json").read_text())))
    elif kind == "network":
        state = json.loads((path / "state.json").read_text())
        state["network"][str(rng.choice(sorted(state["network"])))] = rng.choice(
            [10**6, 10**9, 1 << 40, -16, 1600, 0], size=None
        ).item()
        _rewrite(path, manifest, "state.json", state)
    elif kind == "header":
        name = ("model.safetensors", "centres-00-of-01.safetensors")[int(rng.integers(2))]
        _rewrite_bytes(path, manifest, name, _other_header(rng, (path / name).read_bytes(), number))
    elif kind == "raw json":
        body = _NESTED[int(rng.integers(len(_NESTED)))]
        if rng.random() < 0.5:
            (path / "MANIFEST.json").write_bytes(body)
            return "raw JSON as manifest"
        _rewrite_bytes(path, manifest, "state.json", body)
    elif kind in ("link", "pipe"):
        file = path / str(entry["name"])
        file.unlink()
        if kind == "link":
            file.symlink_to("/etc/hostname" if rng.random() < 0.5 else "/dev/zero")
        else:
            os.mkfifo(file)
        return kind
    elif kind == "extra":
        manifest["files"].append({"name": "rank-00-of-99.json", "size": 0, "sha256": hashlib.sha256().hexdigest()})
    elif kind == "lacks":
        manifest["files"].remove(entry)
    else:
        manifest["format" if rng.random() < 0.5 else "attempt"] = "x" * 3_000_000
    _sign(path, manifest)
    return kind


def rewrite_state(path: Path, name: str, content: Any) -> None:
    """Replace a JSON file of a checkpoint and make the manifest fit."""
    manifest = json.loads((path / "MANIFEST.json").read_text())
    _rewrite(path, manifest, name, content)
    _sign(path, manifest)


def spoil(rng: Rng, state: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with one value of its tree replaced by another kind of value, or gone."""
    value = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    target: Any = state
    while isinstance(target, dict) and target:
        key = sorted(target)[int(rng.integers(len(target)))]
        if not isinstance(target[key], dict) or rng.random() < 0.3:
            if rng.random() < 0.2:
                del target[key]
            else:
                target[key] = value
            break
        target = target[key]
    return state


def _other_header(rng: Rng, body: bytes, value: Any) -> bytes:
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    names = sorted(header)
    slot = header[names[int(rng.integers(len(names)))]]
    kind = int(rng.integers(7))
    if kind == 0:
        slot["shape"] = [value]
    elif kind == 1:
        slot["data_offsets"] = [value, value]
    elif kind == 2:
        slot["dtype"] = ("F4", "I128", "F64", "BOOL", value)[int(rng.integers(5))]
    elif kind == 3:
        slot["shape"] = [0, 1 << 40, 1 << 40]
        slot["data_offsets"] = [0, 0]
    elif kind == 4:
        header["x" * int(rng.integers(1, 10_000))] = slot
    elif kind == 5:
        header["__metadata__"] = value
    else:
        return ((1 << 63) - 1 if rng.random() < 0.5 else len(body)).to_bytes(8, "little") + body[8:]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body[8 + length :]


def _rewrite(path: Path, manifest: dict[str, Any], name: str, content: Any) -> None:
    _rewrite_bytes(path, manifest, name, json.dumps(content).encode())


def _rewrite_bytes(path: Path, manifest: dict[str, Any], name: str, body: bytes) -> None:
    (path / name).write_bytes(body)
    for entry in manifest["files"]:
        if entry["name"] == name:
            entry.update(size=len(body), sha256=hashlib.sha256(body).hexdigest())


def _sign(path: Path, manifest: dict[str, Any]) -> None:
    """By the rule of `write_manifest_text`, which itself would refuse to write these."""
    manifest.pop("sha256", None)
    blank = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    manifest["sha256"] = hashlib.sha256(blank).hexdigest()
    (path / "MANIFEST.json").write_bytes((json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
