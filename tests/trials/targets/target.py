"""What a target of damage is, and how one trial of it is done: a mutant is written, read as users read it, and judged.

Everything that a trial does follows from its seed and its number, which also make it again.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any

from trials.targets.damage import BYTES, BytesDamage

REFUSED, READ = "refused by name", "read as it was"
_STEP = 103  # a prime larger than any group of like attacks, and no divisor of their number

Files = dict[str, Any]
"""Content by name below the folder of a trial: bytes, the path that it links to, or one of `Odd`."""
Lie = Callable[[Random, Files], None]
"""Changes files as only one who knows the format can."""


class Odd(Enum):
    """What may stand where a file should, and must not be waited for."""

    PIPE = "pipe"
    FOLDER = "folder"


class BrokenPromiseError(Exception):
    """A reader returned what it must not return; the text says what."""


@dataclass(frozen=True, slots=True)
class Original:
    """Files as they should be; or an attack, which is hostile as it is."""

    name: str
    files: Files
    named: str
    """What the text of an error must hold: the file's name, mostly."""
    hit: Sequence[str] = ()
    """Files that meet damage to bytes."""
    lies: Mapping[str, Lie] = field(default_factory=dict)
    """Half of the trials tell one of these instead; all, where no file is hit."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """An original after its damage, in the folder of its trial."""

    original: Original
    damage: str
    files: Files
    folder: Path

    @property
    def changed(self) -> bool:
        """Whether any byte is another one."""
        return self.files != self.original.files

    @property
    def path(self) -> Path:
        """The first file, which is the only one of most formats."""
        return self.folder / next(iter(self.files))


@dataclass(frozen=True, slots=True)
class Material:
    """What trials of a target are made of."""

    originals: Sequence[Original]
    read: Callable[[Mutant], str]
    """Returns the outcome in words, raises what the reader raises, or BrokenPromiseError."""
    attacks: Sequence[Original] = ()
    every: int = 2
    """Of so many trials one is an attack, where there are any."""
    damages: Mapping[str, BytesDamage] = field(default_factory=lambda: BYTES)


@dataclass(frozen=True, slots=True)
class Target:
    """A format, as a line of the table of targets."""

    group: str
    damage: str
    """Empty where every kind of damage is counted by itself."""
    promise: str
    refusals: tuple[type[Exception], ...]
    """Errors of ours that refuse such a file."""
    make: Callable[[Path], Material]
    """Makes the originals below a folder and reads them once: readers import lazily. The canary lies beside it."""
    trials: int = 1000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one trial."""

    outcome: str
    held: bool
    damage: str = ""
    note: str = ""
    """Of one that did not hold: what was seen."""


def try_one(target: Target, material: Material, seed: int, number: int, folder: Path) -> Verdict:
    """Write a mutant into an empty folder, read and judge it."""
    original, damage, files = mutate(material, Random(f"{seed}/{number}"), number)
    return judge(target, material, Mutant(original, damage, files, folder))


def mutate(material: Material, rng: Random, number: int) -> tuple[Original, str, Files]:
    """Draw a mutant: from what it was made, what was done, and its files."""
    every = material.every if material.attacks else 1
    if material.attacks and number % every == 0:
        # Taken in steps, so that a few trials meet attacks of all sorts and a few times their number meets each.
        attack = material.attacks[number // every * _STEP % len(material.attacks)]
        return attack, "as it is", attack.files
    original = material.originals[number // every % len(material.originals)]
    files = dict(original.files)
    if original.lies and (not original.hit or rng.random() < 0.5):
        damage = rng.choice(list(original.lies))
        original.lies[damage](rng, files)
    else:
        damage, name = rng.choice(list(material.damages)), rng.choice(original.hit)
        others = [one.files[hit] for one in material.originals for hit in one.hit]
        files[name] = material.damages[damage](rng, files[name], others)
    return original, damage, files


def judge(target: Target, material: Material, mutant: Mutant) -> Verdict:
    """Read a mutant: as it should be, refused by an error of ours that names it, or the promise is broken."""
    write_files(mutant.folder, mutant.files)
    damage = mutant.damage
    try:
        return Verdict(material.read(mutant), True, damage)
    except BrokenPromiseError as broken:
        return _broken("wrong result", mutant, str(broken))
    except Exception as error:
        text, kind = str(error), type(error).__name__
        # The commands report plain ones too, but only our own texts name the file.
        if not isinstance(error, (*target.refusals, OSError)) and type(error) is not ValueError:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return _broken("another error", mutant, f"{kind} at {Path(frame.filename).name}:{frame.lineno}: {text}")
        if mutant.original.named not in text:
            return _broken("refused without the file's name", mutant, f"{kind}: {text}")
        if len(text) > 20_000:
            return _broken("refused at great length", mutant, f"{kind}: {len(text)} characters")
        return Verdict(REFUSED, True, damage)


def write_files(folder: Path, files: Files) -> None:
    """Make the files, links, pipes and folders in a folder."""
    for name, content in files.items():
        path = folder / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        if content is Odd.PIPE:
            os.mkfifo(path)
        elif content is Odd.FOLDER:
            path.mkdir()
        elif isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def read_files(folder: Path, below: str = "") -> Files:
    """Every file of a folder by its name below it, behind `below`."""
    return {
        f"{below}{path.relative_to(folder)}": path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def attacks(bodies: Mapping[str, bytes], file: str) -> list[Original]:
    """Hostile contents of one file, by their names."""
    return [Original(name, {file: body}, file) for name, body in bodies.items()]


def _broken(outcome: str, mutant: Mutant, note: str) -> Verdict:
    return Verdict(outcome, False, mutant.damage, f"{mutant.original.name}: {note[:300]}")
