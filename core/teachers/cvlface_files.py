"""Which files a CVLface teacher is made of, and where they are: in a folder, or in a repository on the Hub at a commit.

Never more than these are opened, whatever else lies beside them or is listed: the tensors (model.safetensors, else
model.pt), `model.yaml`, and `config.json` where there is one. Where the lock file has an entry, exactly its files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adadistill.core.teachers.hub_files import HubRepository
from adadistill.core.teachers.interface import TeacherError
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Where the files lie in a repository or folder."""

    description: str
    weights: tuple[str, ...]
    """In order of preference."""

    def names(self) -> tuple[str, ...]:
        return (self.description, *self.weights)


_PUBLISHED: Final = _Layout(
    description="pretrained_model/model.yaml", weights=("model.safetensors", "pretrained_model/model.pt")
)
_TRAINED: Final = _Layout(description="model.yaml", weights=("model.safetensors", "model.pt"))
_CONFIG: Final = "config.json"

PUBLISHED_FILES: Final = _PUBLISHED.names()
"""Of a repository on the Hub: the description, then the tensors in order of preference."""

READ_FILES: Final = frozenset((_CONFIG, *_PUBLISHED.names(), *_TRAINED.names()))
"""Every path that is ever opened, relative to the repository or folder."""

_DAMAGED: Final = "The file was damaged on its way or in the cache: delete it there and run again"


@dataclass(frozen=True, slots=True)
class HashStatement:
    """What somebody says the sha256 of some files is, and what to do where a file has another."""

    by: str
    """Subject and verb: `teachers.lock.json says`."""
    sha256: Mapping[str, str]
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
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
    stated: tuple[HashStatement, ...] = ()
    """What others than the lock file say of the hashes."""

    def where(self, name: str) -> str:
        """What errors call a file."""
        return f"{self.title}, {name}"


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
    layouts = (_PUBLISHED, _TRAINED)
    chosen = _choose(present, layouts) if entry is None else _choose_locked(entry, layouts, str(folder))
    if chosen is None:
        raise TeacherError(
            f"{folder} holds no CVLface network: it must have pretrained_model/model.yaml, and model.safetensors or "
            "pretrained_model/model.pt, as on the Hub, or model.yaml and model.pt directly inside, as CVLface trains; "
            f"found {_listed(present)}"
        )

    def open_file(name: str, max_bytes: int) -> Path:
        return _file_inside(folder, name, max_bytes)

    title = folder.name or folder.resolve().name
    return chosen.at(title, None, open_file)


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
    if entry is not None:
        return locked_repository_files(repository, entry)
    pin = KNOWN_PINS.get(repository.repo_id)
    wanted = revision or (pin.revision if pin is not None else None)
    if pin is not None and pin.revision != wanted:
        pin = None
    commit, present, stated = _offline(repository, wanted, lock) if repository.offline else _online(repository, wanted)
    if pin is not None:
        stated = (HashStatement("this version of adadistill knows", pin.files, _DAMAGED), *stated)
    chosen = _choose(present, (_PUBLISHED,), preferred=pin.files if pin is not None else ())
    if chosen is None:
        where = f"in {repository.cache_dir} (HF_HUB_OFFLINE is set)" if repository.offline else "on the Hub"
        raise TeacherError(
            f"{repository.repo_id} at revision {commit} holds no CVLface network {where}: it needs "
            f"{_PUBLISHED.description}, and {' or '.join(_PUBLISHED.weights)}; found {_listed(present)}"
        )
    return _at_commit(repository, commit, chosen, stated)


def locked_repository_files(repository: HubRepository, entry: LockEntry) -> CvlfaceFiles:
    """The teacher of a lock entry with a revision. Raises TeacherError where its files make no network."""
    assert entry.revision is not None
    chosen = _choose_locked(entry, (_PUBLISHED,), repository.repo_id)
    return _at_commit(repository, entry.revision, chosen, ())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chosen:
    description: str
    weights: str
    config: str | None

    def at(
        self,
        title: str,
        revision: str | None,
        open_file: Callable[[str, int], Path],
        stated: tuple[HashStatement, ...] = (),
    ) -> CvlfaceFiles:
        return CvlfaceFiles(
            title=title,
            revision=revision,
            description=self.description,
            weights=self.weights,
            config=self.config,
            open=open_file,
            stated=stated,
        )


def _choose(present: Collection[str], layouts: Sequence[_Layout], preferred: Collection[str] = ()) -> _Chosen | None:
    """The files to read of those that are there, None where they make no network."""
    for layout in layouts:
        weights = [name for name in layout.weights if name in present]
        if layout.description in present and weights:
            best = next((name for name in weights if name in preferred), weights[0])
            return _Chosen(description=layout.description, weights=best, config=_CONFIG if _CONFIG in present else None)
    return None


def _choose_locked(entry: LockEntry, layouts: Sequence[_Layout], source: str) -> _Chosen:
    chosen = _choose(entry.files, layouts)
    if chosen is None:
        raise TeacherError(
            f"{source}: its lock entry lists {_listed(entry.files)}, which make no CVLface network; remove the entry "
            "to lock it anew"
        )
    return chosen


def _online(repository: HubRepository, wanted: str | None) -> tuple[str, frozenset[str], tuple[HashStatement, ...]]:
    listing = repository.listing(wanted)
    return listing.revision, READ_FILES & listing.files, (HashStatement("the Hub states", listing.sha256, _DAMAGED),)


def _offline(
    repository: HubRepository, wanted: str | None, lock: Path
) -> tuple[str, frozenset[str], tuple[HashStatement, ...]]:
    if wanted is None:
        raise TeacherError(
            f"{repository.repo_id}: HF_HUB_OFFLINE is set, and neither {lock} nor teacher.revision says which commit "
            f"to use. Run it once where the Hub can be reached, which writes {lock} and fills {repository.cache_dir}, "
            "and bring both here"
        )
    return wanted, frozenset(name for name in READ_FILES if repository.cached(wanted, name) is not None), ()


def _at_commit(
    repository: HubRepository, revision: str, chosen: _Chosen, stated: tuple[HashStatement, ...]
) -> CvlfaceFiles:
    def open_file(name: str, max_bytes: int) -> Path:
        return repository.fetch(revision, name, max_bytes=max_bytes)

    return chosen.at(f"{repository.repo_id}@{revision[:12]}", revision, open_file, stated)


def _file_inside(folder: Path, name: str, max_bytes: int) -> Path:
    path = folder / name
    try:
        target = path.resolve(strict=True)
        regular, size = target.is_file(), target.stat().st_size
    except FileNotFoundError:
        raise TeacherError(f"{path} is missing") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise TeacherError(f"{path} cannot be read: {error}") from None
    if not target.is_relative_to(_boundary(folder)):
        raise TeacherError(f"{path} leads out of its folder, to {target}; put the file itself there")
    if not regular:
        raise TeacherError(f"{path} is no regular file")
    if size > max_bytes:
        raise TeacherError(f"{path} has {size:,} bytes, more than the {max_bytes:,} that such a file can have")
    return path


def _boundary(folder: Path) -> Path:
    """What the links of a folder must not leave: itself, or for a snapshot in the Hub's cache its repository's part."""
    folder = folder.resolve()
    repository = folder.parent.parent
    return repository if folder.parent.name == "snapshots" and repository.name.startswith("models--") else folder


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none of these"
