"""Which files a CVLface teacher is made of, and where they are: in a folder, or in a repository on the Hub at a commit.

Never more than these are opened, whatever else lies beside them or is listed: the tensors (model.safetensors, else
model.pt), `model.yaml`, and `config.json` where there is one. Where the lock file has an entry, exactly its files. Each
is checked by its sha256, before anything is made of it, against the lock file, a known pin and what the Hub states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from adadistill.core.teachers.hub_files import HubRepository
from adadistill.core.teachers.interface import TeacherError, file_sha256
from adadistill.core.teachers.teacher_lock import LockEntry

KNOWN_PINS: Final[Mapping[str, LockEntry]] = {
    "minchul/cvlface_adaface_ir101_webface12m": LockEntry(
        revision="54f602a0737bd1ee4a4e7e9fd089a485f397fefd",
        files={"pretrained_model/model.pt": "e312d79222d28027f146ed495e182e48fe0dddf404cdbbdabcccdbdd07cc3758"},
    )
}
"""Commits whose weights are known: used where neither the recipe nor the lock file says otherwise.

model.safetensors of that commit has no sha256 that was published elsewhere, so there the file that has one is taken:
the restricted unpickler on known bytes is worth more than a safer format whose first download has to be believed.
"""


class _Layout(NamedTuple):
    """Where the files lie in a repository or folder."""

    description: str
    weights: tuple[str, str]
    """In order of preference."""


_PUBLISHED: Final = _Layout("pretrained_model/model.yaml", ("model.safetensors", "pretrained_model/model.pt"))
_TRAINED: Final = _Layout("model.yaml", ("model.safetensors", "model.pt"))
_CONFIG: Final = "config.json"

READ_FILES: Final = frozenset((_CONFIG, *(name for one, two in (_PUBLISHED, _TRAINED) for name in (one, *two))))
"""Every path that is ever opened, relative to the repository or folder."""

_DAMAGED: Final = "The file was damaged on its way or in the cache: delete it there and run again"


@dataclass(kw_only=True, slots=True)
class CvlfaceFiles:
    """The files of one teacher, chosen but not yet read."""

    title: str
    """For people, in identities and errors: a folder's name, a repository at a commit. Never a whole path."""
    revision: str | None
    """Full commit; None for a folder."""
    description: str
    """Path of model.yaml in the repository or folder."""
    weights: str
    config: str | None
    """Path of config.json, None where there is none."""
    open: Callable[[str, int], Path]
    """(path in it, most bytes) -> path of a regular file in this file system; raises TeacherError."""
    statements: list[tuple[str, Mapping[str, str], str]] = field(default_factory=list)
    """Who says what sha256 some files have (`teachers.lock.json says`), and what to do where a file has another."""
    found: dict[str, str] = field(default_factory=dict)
    """sha256 of every file that was checked so far."""

    def where(self, name: str) -> str:
        """What errors call a file."""
        return f"{self.title}, {name}"

    def checked(self, name: str, max_bytes: int) -> Path:
        """Where a file lies, once its sha256 is what everybody says. Raises TeacherError."""
        path = self.open(name, max_bytes)
        try:
            if (size := path.stat().st_size) > max_bytes:
                raise TeacherError(f"{path} has {size:,} bytes, more than the {max_bytes:,} that such a file can have")
            sha256 = file_sha256(path)
        except OSError as error:
            raise TeacherError(f"{path} cannot be read: {error.strerror}") from None
        for by, stated, remedy in self.statements:
            if stated.get(name, sha256) != sha256:
                raise TeacherError(
                    f"{self.where(name)} has sha256 {sha256}, {by} {stated[name]}; it is not the teacher that was "
                    f"meant. {remedy} ({path})"
                )
        self.found[name] = sha256
        return path


def folder_files(folder: Path, entry: LockEntry | None) -> CvlfaceFiles:
    """The teacher in a folder: one laid out like a repository, or a checkpoint of CVLface's training.

    Args:
        folder: an existing one.
        entry: of the lock file; None where it has none.

    Raises:
        TeacherError: there is none in it.
    """
    # A link that leads nowhere counts as present: it is refused when it is opened, not passed over for another file.
    present = {name for name in READ_FILES if (folder / name).is_symlink() or (folder / name).exists()}
    files = _choose(present, entry, (_PUBLISHED, _TRAINED), str(folder))
    if files is None:
        raise TeacherError(
            f"{folder} holds no CVLface network: it must have pretrained_model/model.yaml, and model.safetensors or "
            "pretrained_model/model.pt, as on the Hub, or model.yaml and model.pt directly inside, as CVLface trains; "
            f"found {_listed(present)}"
        )
    files.title = folder.name or folder.resolve().name
    files.open = lambda name, max_bytes: _file_inside(folder, name)
    return files


def repository_files(
    repository: HubRepository, revision: str | None, entry: LockEntry | None, lock: Path
) -> CvlfaceFiles:
    """The teacher in a repository, at the commit of the lock file, else the recipe, else a known pin, else the newest.

    Nothing is downloaded yet, and with an entry the Hub is not even asked.

    Args:
        revision: of the recipe; agrees with `entry`, where both are.
        entry: of the lock file; None where it has none.
        lock: the lock file, for errors.

    Raises:
        TeacherError: the Hub cannot be asked, or the repository holds no such network.
    """
    pin = KNOWN_PINS.get(repository.repo_id) if entry is None else None
    commit = entry.revision if entry is not None else revision or (pin.revision if pin is not None else None)
    if pin is not None and pin.revision != commit:
        pin = None
    present: Collection[str] = ()
    if entry is None and not repository.offline:
        commit, present = repository.listing(commit)
    elif commit is None:
        raise TeacherError(
            f"{repository.repo_id}: HF_HUB_OFFLINE is set, and neither {lock} nor teacher.revision says which commit "
            f"to use. Run it once where the Hub can be reached, which writes {lock} and fills {repository.cache_dir}, "
            "and bring both here"
        )
    elif entry is None:
        present = [name for name in READ_FILES if repository.cached(commit, name) is not None]
    files = _choose(present, entry, (_PUBLISHED,), repository.repo_id, preferred=() if pin is None else pin.files)
    if files is None:
        where = f"in {repository.cache_dir} (HF_HUB_OFFLINE is set)" if repository.offline else "on the Hub"
        raise TeacherError(
            f"{repository.repo_id} at revision {commit} holds no CVLface network {where}: it needs "
            f"{_PUBLISHED.description}, and {' or '.join(_PUBLISHED.weights)}; found {_listed(READ_FILES & {*present})}"
        )
    assert commit is not None
    at: str = commit
    files.title, files.revision = f"{repository.repo_id}@{at[:12]}", at
    files.open = lambda name, max_bytes: repository.fetch(at, name, max_bytes=max_bytes)
    if pin is not None:
        files.statements.append(("this version of adadistill knows", pin.files, _DAMAGED))
    files.statements.append(("the Hub states", repository.stated, _DAMAGED))
    return files


def _choose(
    present: Collection[str],
    entry: LockEntry | None,
    layouts: Collection[_Layout],
    source: str,
    *,
    preferred: Collection[str] = (),
) -> CvlfaceFiles | None:
    """The files to read of those that are there, or exactly those of an entry; None where they make no network."""
    names = present if entry is None else entry.files
    for description, candidates in layouts:
        weights = sorted((name for name in candidates if name in names), key=lambda name: name not in preferred)
        if description in names and weights:
            config = _CONFIG if _CONFIG in names else None
            return CvlfaceFiles(
                title="", revision=None, description=description, weights=weights[0], config=config, open=_unopened
            )
    if entry is not None:
        raise TeacherError(
            f"{source}: its lock entry lists {_listed(entry.files)}, which make no CVLface network; remove the entry "
            "to lock it anew"
        )
    return None


def _unopened(name: str, max_bytes: int) -> Path:
    raise AssertionError("its place is known first")


def _file_inside(folder: Path, name: str) -> Path:
    path = folder / name
    try:
        target = path.resolve(strict=True)
        regular = target.is_file()
    except FileNotFoundError:
        raise TeacherError(f"{path} is missing") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise TeacherError(f"{path} cannot be read: {error}") from None
    # What links must not leave: the folder, or for a snapshot in the Hub's cache its repository's part of the cache.
    boundary = folder.resolve()
    repository = boundary.parent.parent
    if boundary.parent.name == "snapshots" and repository.name.startswith("models--"):
        boundary = repository
    if not target.is_relative_to(boundary):
        raise TeacherError(f"{path} leads out of its folder, to {target}; put the file itself there")
    if not regular:
        raise TeacherError(f"{path} is no regular file")
    return path


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none of these"
