"""Checkpoints: damage that hashes must find, in any file, and forgeries, whose hashes are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints import (
    Checkpoint,
    CheckpointWriter,
    Snapshot,
    list_checkpoints,
    load_checkpoint,
    newest_valid_checkpoint,
    resolve_checkpoint,
)
from adadistill.core.checkpoints.network_checkpoint import describe_network, load_network
from trials.targets.damage import BYTES, ODD_VALUES, BytesDamage, flip_bits, lying_tensors, spoil
from trials.targets.target import READ, BrokenPromiseError, Files, Lie, Material, Mutant, Odd, Original, read_files

_BACKBONE = BackboneConfig(arch="mobilefacenet", embedding_dim=8, width=0.125)
_IMAGE_SIZE = 32
_STEPS = (1, 2, 3)
_MANIFEST, _STATE = "MANIFEST.json", "state.json"
_NAMES: tuple[Any, ...] = (
    *("../out", "/etc/passwd", "a/b", "..", ".", "", "a\0b", ".hidden", _MANIFEST, "x" * 300, "\ud800", "é"),
    *(3, None, []),
)
_TEXTS = (
    *(b"[" * 100_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900, b'{"a": ' + b"9" * 5000 + b"}"),
    *(b"\xff\xfe", b"", b"NaN"),
)


def write_checkpoints(folder: Path) -> None:
    """Three checkpoints with every kind of file, none of which two of them share."""
    network = build_backbone(_BACKBONE, _IMAGE_SIZE, generator=0)
    with CheckpointWriter(folder, keep=len(_STEPS)) as writer:
        for step in _STEPS:
            snapshot = Snapshot(
                model={name: tensor + step for name, tensor in network.state_dict().items()},
                optimiser={"momentum.a": torch.arange(4.0) + step},
                optimiser_json={"lr": 0.1, "step": step},
                row_sharded={"centres": torch.arange(12.0).reshape(3, 4) + step},
                rank_state={"random": f"{step:02x}" * 200},
                state={
                    "network": describe_network(_BACKBONE, _IMAGE_SIZE),
                    "position": {"epoch": 0, "step": step},
                    "recipe": "x",
                },
            )
            writer.save(step, snapshot)


def damaged_checkpoints(folder: Path) -> Material:
    """As `--resume auto` reads them: any damage to any file of the newest, or of each of the two newest."""
    write_checkpoints(folder / "checkpoints")
    saved = [load_checkpoint(path) for path in list_checkpoints(folder)]
    files = read_files(folder / "checkpoints", "checkpoints/")
    names = sorted(path.name for path in saved[-1].path.iterdir())
    lies: dict[str, Lie] = {way: partial(_damage_one, damage, names) for way, damage in WAYS.items()}
    lies["the two newest damaged, each in a random way"] = partial(_damage_two, names)
    return Material([Original("damaged", files, "step-", lies=lies)], lambda mutant: _read_damaged(mutant, saved))


def _damage_one(damage: Callable[[Random, Files, str], None], names: list[str], rng: Random, files: Files) -> None:
    damage(rng, files, f"checkpoints/step-{_STEPS[-1]:08d}/{rng.choice(names)}")


def _damage_two(names: list[str], rng: Random, files: Files) -> None:
    for step in _STEPS[1:]:
        WAYS[rng.choice(list(WAYS))](rng, files, f"checkpoints/step-{step:08d}/{rng.choice(names)}")


def _in_bytes(damage: BytesDamage, rng: Random, files: Files, name: str) -> None:
    beside = [body for other, body in files.items() if name.rsplit("/", 1)[0] in other and isinstance(body, bytes)]
    files[name] = damage(rng, files[name], beside)


def _flip_white_space(rng: Random, files: Files, name: str) -> None:
    """Where no reader of JSON would mind; in a JSON file beside the one that is named."""
    folder = name.rsplit("/", 1)[0]
    name = rng.choice([f"{folder}/{file}" for file in (_MANIFEST, _STATE, "optimiser.json", "rank-00-of-01.json")])
    files[name] = flip_bits(rng, files[name], [place for place, byte in enumerate(files[name]) if byte in b" \n"])


def _swap(rng: Random, files: Files, name: str) -> None:
    other = rng.choice([one for one in files if one.rsplit("/", 1)[0] == name.rsplit("/", 1)[0] and one != name])
    files[name], files[other] = files[other], files[name]


def _take_from_another(rng: Random, files: Files, name: str) -> None:
    """The file of the same name of the oldest checkpoint: every file there is valid, of its own step."""
    files[name] = files[f"checkpoints/step-{_STEPS[0]:08d}/{name.rsplit('/', 1)[1]}"]


def _link(rng: Random, files: Files, name: str) -> None:
    """To the very bytes that should be there; what it points to may change later."""
    moved = f"moved-{name.replace('/', '-')}"
    files[moved], files[name] = files[name], Path("../" * name.count("/"), moved)


def _put(odd: Odd, rng: Random, files: Files, name: str) -> None:
    files[name] = odd


WAYS: dict[str, Callable[[Random, Files, str], None]] = {
    **{name: partial(_in_bytes, damage) for name, damage in BYTES.items()},
    "one bit flipped in white space of a JSON file": _flip_white_space,
    "deleted": lambda rng, files, name: files.pop(name),
    "swapped with another file": _swap,
    "taken from an older checkpoint": _take_from_another,
    "replaced by a link to itself": _link,
    "replaced by a pipe": partial(_put, Odd.PIPE),
    "replaced by a folder": partial(_put, Odd.FOLDER),
}
"""Damage to a file of a checkpoint, given its name."""


def _read_damaged(mutant: Mutant, saved: list[Checkpoint]) -> str:
    changed: dict[str, list[str]] = {}
    for name, body in mutant.original.files.items():
        _, checkpoint, file = name.split("/")
        if mutant.files.get(name) != body:
            changed.setdefault(checkpoint, []).append(file)
    expected = next(one for one in reversed(saved) if one.path.name not in changed)
    if broken := what_is_wrong(mutant.folder, expected, changed):
        raise BrokenPromiseError(f"{changed}: {broken}")
    return f"{'both ' if len(changed) > 1 else ''}passed over by name" if changed else READ


def what_is_wrong(folder: Path, expected: Checkpoint, damaged: dict[str, list[str]]) -> str:
    """Whether damage was found and the expected checkpoint used; empty if so.

    Args:
        damaged: files by checkpoint; one of them must be named.
    """
    found, skipped = newest_valid_checkpoint(folder)
    told = {path.name: reason for path, reason in skipped}
    for checkpoint, files in damaged.items():
        if checkpoint not in told:
            return f"{checkpoint} was not passed over"
        if not any(file in told[checkpoint] for file in files):
            return f"the text does not name {files}: {told[checkpoint]}"
    if len(told) != len(damaged):
        return f"also passed over: {sorted(told)}"
    if found is None or found.step != expected.step:
        return f"used {found and found.step} for {expected.step}"
    if not _same_bits(found, expected):
        return "the checkpoint used has other bits than were saved"
    used = resolve_checkpoint(folder)
    return "" if used.name == expected.path.name else f"resolved to {used.name}"


def _same_bits(one: Checkpoint, other: Checkpoint) -> bool:
    if (one.state, one.rank_states, one.optimiser_json) != (other.state, other.rank_states, other.optimiser_json):
        return False
    return all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        for ours, theirs in (
            (one.model, other.model),
            (one.optimiser, other.optimiser),
            (one.row_sharded, other.row_sharded),
        )
    )


def forged_checkpoints(folder: Path) -> Material:
    """A stranger's checkpoint, as `evaluate` and a recipe's `teacher.checkpoint` read it."""
    write_checkpoints(folder / "checkpoints")
    load_network(folder, device=torch.device("cpu"))
    newest = f"checkpoints/step-{_STEPS[-1]:08d}/"
    lies: dict[str, Lie] = {kind: partial(_forge, newest, kind) for kind in _FORGERIES}
    files = read_files(folder / "checkpoints", "checkpoints/")
    return Material([Original("forged", files, newest[-14:-1], lies=lies)], lambda mutant: _read_forged(mutant.folder))


def _read_forged(folder: Path) -> str:
    """Everything that a stranger's checkpoint is read for; a stop at the first error, whichever reader raises it."""
    newest = folder / "checkpoints" / f"step-{_STEPS[-1]:08d}"
    load_checkpoint(newest)
    newest_valid_checkpoint(folder)
    network = load_network(newest, device=torch.device("cpu")).network
    if sum(parameter.numel() for parameter in network.parameters()) > 10_000_000:
        raise BrokenPromiseError("a network far larger than its file")
    return "read as another checkpoint"


_FORGERIES = (
    *("name", "size", "field", "state", "network", "header", "raw JSON", "raw JSON as manifest"),
    *("link", "pipe", "extra", "lacks", "big text"),
)


def _forge(folder: str, kind: str, rng: Random, files: Files) -> None:
    """Change a checkpoint as one who means harm would: the hashes are made to fit afterwards."""
    manifest, state = (json.loads(files[folder + name]) for name in (_MANIFEST, _STATE))
    entry, number = rng.choice(manifest["files"]), rng.choice(ODD_VALUES)
    name = folder + entry["name"]
    if kind == "name":
        entry["name"] = rng.choice(_NAMES)
    elif kind == "size":
        entry["size"] = number
    elif kind == "field":
        manifest[rng.choice(("step", "world_size", "attempt", "files", "version", "format"))] = number
    elif kind == "state":
        _replace(manifest, files, folder + _STATE, json.dumps(spoil(rng, state)).encode())
    elif kind == "network":
        state["network"][rng.choice(sorted(state["network"]))] = rng.choice((10**6, 10**9, 1 << 40, -16, 1600, 0))
        _replace(manifest, files, folder + _STATE, json.dumps(state).encode())
    elif kind == "header":
        name = folder + rng.choice(("model.safetensors", "centres-00-of-01.safetensors"))
        _replace(manifest, files, name, lying_tensors(rng, files[name]))
    elif kind == "raw JSON":
        _replace(manifest, files, folder + _STATE, rng.choice(_TEXTS))
    elif kind == "link":
        files[name] = rng.choice((Path("/etc/hostname"), Path("/dev/zero")))
    elif kind == "pipe":
        files[name] = Odd.PIPE
    elif kind == "extra":
        manifest["files"].append({"name": "rank-00-of-99.json", "size": 0, "sha256": hashlib.sha256().hexdigest()})
    elif kind == "lacks":
        manifest["files"].remove(entry)
    elif kind == "big text":
        manifest[rng.choice(("format", "attempt"))] = "x" * 3_000_000
    files[folder + _MANIFEST] = rng.choice(_TEXTS) if kind == "raw JSON as manifest" else _signed(manifest)


def forge_json(rng: Random, files: Files, folder: str, name: str) -> None:
    """Spoil a JSON file of a checkpoint and make the manifest fit."""
    manifest = json.loads(files[folder + _MANIFEST])
    _replace(manifest, files, folder + name, json.dumps(spoil(rng, json.loads(files[folder + name]))).encode())
    files[folder + _MANIFEST] = _signed(manifest)


def _replace(manifest: dict[str, Any], files: Files, name: str, body: bytes) -> None:
    files[name] = body
    for entry in manifest["files"]:
        if name.endswith(f"/{entry['name']}"):
            entry.update(size=len(body), sha256=hashlib.sha256(body).hexdigest())


def _signed(manifest: dict[str, Any]) -> bytes:
    """By the rule of `write_manifest_text`, which itself would refuse to write these."""
    manifest.pop("sha256", None)
    blank = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    manifest["sha256"] = hashlib.sha256(blank).hexdigest()
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
