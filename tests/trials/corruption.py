"""Damage to saved checkpoints: each file in turn, in every way that disks, copies and people do it.

A flipped bit, also where no reader would mind (the white space of a JSON file); a file cut off, longer, empty, full of
zeros from somewhere on, missing, swapped with another, taken from another checkpoint; something else in its place that
must not be followed or waited for. Each time the newest checkpoint must be passed over, by a text that names the file,
and the one before it loaded with the bits that were saved; then the same with two of them damaged.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from adadistill.core.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    Snapshot,
    list_checkpoints,
    load_checkpoint,
    newest_valid_checkpoint,
    resolve_checkpoint,
)
from trials.outcome import TrialOutcome
from trials.small_run import difference, ending_of, write_small_run
from trials.tally import Tally
from trials.training_process import TrainingProcess

Damage = Callable[[Path, Random], list[str]]
"""Does something to a file of a checkpoint; returns the names of the files that are no longer what they were."""

_FOUND = "found, the file named, the newest undamaged checkpoint used"
_STEPS = (1, 2, 3)
_LIMIT_S = 180.0


def run(*, tiny: bool, seed: int, folder: Path) -> list[TrialOutcome]:
    """All trials of this family; `tiny` damages each file once in each way."""
    good = folder / "good"
    write_checkpoints(good)
    outcomes = [
        damage_each_file(name, damage, good, folder / "damaged", Random(f"{seed} {name}"), times=_times(name, tiny))
        for name, damage in DAMAGES.items()
    ]
    outcomes.append(_damage_two(good, folder / "damaged", Random(f"{seed} two"), count=8 if tiny else 100))
    if not tiny:
        outcomes.append(_train_on(folder / "training", Random(f"{seed} train"), count=14))
    return outcomes


def write_checkpoints(folder: Path) -> None:
    """Three checkpoints with every kind of file, of a network large enough that bits land in its tensors."""
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(folder, keep=len(_STEPS)) as writer:
        for step in _STEPS:
            snapshot = Snapshot(
                model={"weight": torch.randn(64, 32, generator=generator), "count": torch.tensor(step)},
                optimiser={"momentum.weight": torch.randn(64, 32, generator=generator)},
                optimiser_json={"lr": 0.1, "step": step},
                row_sharded={"centres": torch.randn(50, 16, generator=generator)},
                rank_state={"rng": f"{step:02x}" * 200},
                state={"step": step, "position": {"epoch": 0, "step": step}},
            )
            writer.save(step, snapshot)


def damage_each_file(
    name: str, damage: Damage, good: Path, folder: Path, random: Random, *, times: int = 1
) -> TrialOutcome:
    """Damage each file of the newest checkpoint in turn.

    Args:
        good: folder of checkpoints, as `write_checkpoints` leaves it.
        folder: of the damaged copy; made anew for each trial.
    """
    tally = Tally("checkpoint", name, _FOUND)
    newest, expected = list_checkpoints(good)[-1], load_checkpoint(list_checkpoints(good)[-2])
    for file in sorted(path.name for path in newest.iterdir()):
        for _ in range(times):
            if damage is _flip_white_space and not file.endswith(".json"):
                continue
            _copy(good, folder)
            touched = damage(folder / newest.name / file, random)
            broken = _what_is_wrong(folder, expected, {newest.name: touched})
            tally.add("passed over by name", broken and f"{file}: {broken}")
    return tally.outcome()


def _damage_two(good: Path, folder: Path, random: Random, *, count: int) -> TrialOutcome:
    tally = Tally("checkpoint", "the two newest damaged, each in a random way", _FOUND)
    oldest, *others = list_checkpoints(good)
    expected = load_checkpoint(oldest)
    files = sorted(path.name for path in oldest.iterdir())
    for number in range(count):
        _copy(good, folder)
        damaged = {}
        for path in others:
            name = random.choice(list(DAMAGES))
            file = "state.json" if DAMAGES[name] is _flip_white_space else random.choice(files)
            damaged[path.name] = DAMAGES[name](folder / path.name / file, random)
        broken = _what_is_wrong(folder, expected, damaged)
        tally.add("both passed over by name", broken and f"trial {number}, {damaged}: {broken}")
    return tally.outcome()


def _what_is_wrong(folder: Path, expected: Checkpoint, damaged: Mapping[str, list[str]]) -> str:
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
    ours, theirs = _tensors(one), _tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _tensors(checkpoint: Checkpoint) -> dict[tuple[str, str], Tensor]:
    """All of them, by part and name."""
    arrays = {name: array for name, array in checkpoint.row_sharded.items() if isinstance(array, Tensor)}
    parts: dict[str, dict[str, Tensor]] = {
        "model": checkpoint.model, "optimiser": checkpoint.optimiser, "row_sharded": arrays
    }  # fmt: skip
    return {(part, name): tensor for part, named in parts.items() for name, tensor in named.items()}


def _train_on(folder: Path, random: Random, *, count: int) -> TrialOutcome:
    """The same through `adadistill train --resume auto`: it says what it passed over, and ends in the same bits."""
    tally = Tally(
        "training run", "one bit flipped in its newest checkpoint", "resumes from the one before, ends in the same bits"
    )
    small = write_small_run(folder / "data", epochs=2, identities=4096)
    half = folder / "half"
    _train(small.arguments(folder / "whole"), folder / "whole.log")
    expected = ending_of(folder / "whole")
    _train(small.arguments(half), folder / "half.log")
    files = sorted(path.name for path in list_checkpoints(half)[-1].iterdir())
    for number in range(count):
        file = files[number % len(files)]
        victim = folder / f"run-{number}"
        shutil.copytree(half, victim)
        newest = list_checkpoints(victim)[-1]
        _flip_bit(newest / file, random)
        try:
            told = _train(small.arguments(victim), folder / f"run-{number}.log")
            named = any(newest.name in line and file in line for line in told.splitlines())
            broken = difference(ending_of(victim), expected) if named else f"not named: {told[-300:]}"
        except (CheckpointError, RuntimeError) as error:
            broken = str(error)
        tally.add("went on from the one before", broken and f"trial {number}, {file}: {broken}")
        shutil.rmtree(victim)
    return tally.outcome()


def _train(arguments: list[str], log: Path) -> str:
    """What the command said. Raises RuntimeError where it failed."""
    process = TrainingProcess(arguments, log)
    code = process.wait(_LIMIT_S)
    if code != 0:
        raise RuntimeError(f"ended with {code}: {process.told()[-300:]}")
    return process.told()


def _copy(good: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(good, folder)


def _flip_bit(path: Path, random: Random, positions: Sequence[int] | None = None) -> list[str]:
    body = bytearray(path.read_bytes())
    body[random.choice(positions or range(len(body)))] ^= 1 << random.randrange(8)
    path.write_bytes(body)
    return [path.name]


def _flip_white_space(path: Path, random: Random) -> list[str]:
    return _flip_bit(path, random, [place for place, byte in enumerate(path.read_bytes()) if byte in b" \n"])


def _cut_off(path: Path, random: Random) -> list[str]:
    os.truncate(path, random.randrange(path.stat().st_size))
    return [path.name]


def _lengthen(path: Path, random: Random) -> list[str]:
    with path.open("ab") as file:
        file.write(random.randbytes(random.randint(1, 100)))
    return [path.name]


def _empty(path: Path, random: Random) -> list[str]:
    os.truncate(path, 0)
    return [path.name]


def _zero_the_rest(path: Path, random: Random) -> list[str]:
    """What some file systems leave after a power cut: the right length, no content."""
    body = path.read_bytes()
    begin = random.randrange(len(body.rstrip(b"\0")))
    path.write_bytes(body[:begin] + bytes(len(body) - begin))
    return [path.name]


def _delete(path: Path, random: Random) -> list[str]:
    path.unlink()
    return [path.name]


def _swap(path: Path, random: Random) -> list[str]:
    other = random.choice(sorted(one for one in path.parent.iterdir() if one != path))
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return [path.name, other.name]


def _take_from_another(path: Path, random: Random) -> list[str]:
    """The file of the same name of the oldest checkpoint: every file there is valid, of its own step."""
    oldest = list_checkpoints(path.parent.parent)[0]
    shutil.copyfile(oldest / path.name, path)
    return [path.name]


def _link(path: Path, random: Random) -> list[str]:
    """To the very bytes that should be there; what it points to may change later."""
    target = path.parent.with_name(f"moved-{path.parent.name}-{path.name}")
    path.rename(target)
    path.symlink_to(target)
    return [path.name]


def _pipe(path: Path, random: Random) -> list[str]:
    path.unlink()
    os.mkfifo(path)
    return [path.name]


def _folder(path: Path, random: Random) -> list[str]:
    path.unlink()
    path.mkdir()
    return [path.name]


DAMAGES: dict[str, Damage] = {
    "one bit flipped": _flip_bit,
    "one bit flipped in white space of a JSON file": _flip_white_space,
    "cut off": _cut_off,
    "bytes added": _lengthen,
    "emptied": _empty,
    "zeros from some byte on": _zero_the_rest,
    "deleted": _delete,
    "swapped with another file": _swap,
    "taken from an older checkpoint": _take_from_another,
    "replaced by a link to itself": _link,
    "replaced by a pipe": _pipe,
    "replaced by a folder": _folder,
}


def _times(name: str, tiny: bool) -> int:
    """Trials for each file: many where something is drawn, a few where the damage is always the same."""
    if tiny:
        return 1
    return 50 if "bit" in name else 10 if name in ("cut off", "bytes added", "zeros from some byte on") else 3
