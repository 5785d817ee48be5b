"""CVLface's IR networks as teachers, from the Hugging Face Hub or a folder, without any of the code they come with.

CVLface publishes each network as a repository whose `wrapper.py` transformers would run. Here the network is ours,
built from the few values of `model.yaml`, and filled strictly from the tensors (`model.net.*` in model.safetensors,
`net.*` in model.pt). ViT and KPRPE networks are not built here; their embeddings can be imported.

Source: CVLface. A network takes RGB in [-1, 1] and gives raw embeddings; with color_space BGR it turns the channels
around itself, first thing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from torch import nn

from adadistill.core.backbones import backbone_skeleton
from adadistill.core.backbones.public_weights import convert_public_weights
from adadistill.core.backbones.weight_files import WeightFileError, read_weight_file
from adadistill.core.config.yaml_tree import show_text
from adadistill.core.distributed import Ranks, run_on_main
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.cvlface_description import (
    CvlfaceDescription,
    not_built_error,
    read_config_colors,
    read_description,
    settle_color,
)
from adadistill.core.teachers.cvlface_files import READ_FILES, CvlfaceFiles, folder_files, repository_files
from adadistill.core.teachers.hub_files import REPOSITORY_ID, HubRepository
from adadistill.core.teachers.interface import LoadedTeacher, NetworkSource, TeacherError, TeacherIdentity
from adadistill.core.teachers.preprocessing import Color, Preprocessing
from adadistill.core.teachers.teacher_lock import LockEntry, add_entry, check_writable, read_lock

SHORT_NAMES: Final[Mapping[str, str]] = {
    "cvlface_ir50": "minchul/cvlface_adaface_ir50_webface4m",
    "cvlface_ir101": "minchul/cvlface_adaface_ir101_webface12m",
}
"""The two teachers that the geometry-aware margin was published with, under the names it gives them."""

IR_REPOSITORIES: Final[tuple[str, ...]] = (
    "minchul/cvlface_adaface_ir18_casia",
    "minchul/cvlface_adaface_ir18_vgg2",
    "minchul/cvlface_adaface_ir18_webface4m",
    "minchul/cvlface_adaface_ir50_casia",
    "minchul/cvlface_adaface_ir50_ms1mv2",
    "minchul/cvlface_adaface_ir50_webface4m",
    "minchul/cvlface_adaface_ir101_ms1mv2",
    "minchul/cvlface_adaface_ir101_ms1mv3",
    "minchul/cvlface_adaface_ir101_webface4m",
    "minchul/cvlface_adaface_ir101_webface12m",
    "minchul/cvlface_arcface_ir101_webface4m",
)
"""What CVLface publishes and we build. Other repositories that are laid out like these load as well."""

VIT_REPOSITORIES: Final[tuple[str, ...]] = (
    "minchul/cvlface_adaface_vit_base_webface4m",
    "minchul/cvlface_adaface_vit_base_kprpe_webface4m",
    "minchul/cvlface_adaface_vit_base_kprpe_webface12m",
)
"""What CVLface publishes and we do not build."""

# The largest published network has 261 MB of tensors; the texts have a few hundred bytes.
_MAX_WEIGHT_BYTES: Final = 1 << 30
_MAX_YAML_BYTES: Final = 1 << 16
_MAX_JSON_BYTES: Final = 1 << 20

_Connect: TypeAlias = Callable[[str], HubRepository]


def load_cvlface(
    source: str,
    *,
    revision: str | None,
    lock: Path,
    color: str | None,
    ranks: Ranks,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> LoadedTeacher:
    """Load a CVLface IR network. All ranks call it together and get the same bytes, or all get rank 0's error.

    Rank 0 decides, downloads, checks and locks. It then tells the others commit and hashes; they read the same files,
    from its cache or one of their own, and check them against these.

    Args:
        source: a folder, `cvlface_ir50`, `cvlface_ir101`, or `owner/name` on the Hub. An existing folder goes first.
        revision: commit that the recipe asks for, 40 hex digits; None for the lock file's, a known one, or the newest.
        lock: the lock file; a new source is added once its network has loaded.
        color: of the recipe. Anything but None settles a `config.json` that contradicts `model.yaml`.
        ranks: of the run.
        endpoint: address of the Hub; None for HF_ENDPOINT, else huggingface.co.
        cache_dir: where downloads are kept; None for HF_HUB_CACHE.

    Returns:
        The network, float32, on the CPU, in evaluation mode, with its identity. `stated_color` is None where the files
        say nothing of it or contradict each other.

    Raises:
        TeacherError: it cannot be had, is no such network, or is not what was locked.
    """

    loaded: list[LoadedTeacher] = []

    def connect(repo_id: str) -> HubRepository:
        return HubRepository(repo_id, endpoint=endpoint, cache_dir=cache_dir)

    def first() -> LockEntry:
        network, entry = _load_and_lock(source, revision, lock, color, connect)
        loaded.append(network)
        return entry

    entry = run_on_main(first, ranks)
    return loaded[0] if loaded else _load_as_told(source, entry, lock, color, connect)


def _load_and_lock(
    source: str, revision: str | None, lock: Path, color: str | None, connect: _Connect
) -> tuple[LoadedTeacher, LockEntry]:
    """What rank 0 does: find the source, load it, and lock it where it is new."""
    folder, key = _found(source)
    if folder is not None and revision is not None:
        raise TeacherError(
            f"teacher.revision is for repositories on the Hub, but {folder} is a folder here, which goes first; remove "
            "it (a folder is locked by the hashes of its files), or rename the folder"
        )
    entry = read_lock(lock).get(key)
    if entry is None:
        check_writable(lock)
    else:
        _check_entry(key, entry, revision, lock, is_folder=folder is not None)
    files = folder_files(folder, entry) if folder is not None else repository_files(connect(key), revision, entry, lock)
    if entry is not None:
        remedy = f"If the change is meant, remove the entry `{key}` from {lock}; if not, delete or restore the file"
        files.statements.append((f"{lock} says", entry.files, remedy))
    loaded = _load(files, color)
    if entry is None:
        entry = LockEntry(revision=files.revision, files=files.found)
        add_entry(lock, key, entry)
    return loaded, entry


def _load_as_told(source: str, entry: LockEntry, lock: Path, color: str | None, connect: _Connect) -> LoadedTeacher:
    """What the other ranks do: load the very bytes that rank 0 has loaded."""
    if entry.revision is None:
        files = folder_files(Path(source), entry)
    else:
        files = repository_files(connect(repository_id(source)), None, entry, lock)
    remedy = "The ranks do not see the same files; give every machine the same folder, or a cache of its own"
    files.statements.append(("rank 0 read", entry.files, remedy))
    return _load(files, color)


def _found(source: str) -> tuple[Path | None, str]:
    """The folder that a source means, if it is one, and what the lock file calls it."""
    folder = existing_folder(source)
    return folder, source if folder is not None else repository_id(source)


def existing_folder(source: str) -> Path | None:
    """The folder that a source means, which goes before a repository of that name; None where there is none."""
    try:
        return Path(source) if Path(source).is_dir() else None
    except (OSError, ValueError):  # too long, a NUL
        return None


def repository_id(source: str) -> str:
    """The repository that a source names. Raises TeacherError for what is none, or holds a network we do not build."""
    repo_id = SHORT_NAMES.get(source, source)
    if not REPOSITORY_ID.fullmatch(repo_id):
        raise TeacherError(
            f"teacher.cvlface `{show_text(source)}` is no folder here, none of {', '.join(SHORT_NAMES)}, and no "
            f"repository `owner/name` on the Hub{_suggestion(source)}"
        )
    if repo_id in VIT_REPOSITORIES:
        needs_keypoints = "kprpe" in repo_id
        what = "a vision transformer with KPRPE" if needs_keypoints else "a vision transformer"
        raise not_built_error(repo_id, what, needs_keypoints=needs_keypoints)
    return repo_id


def _suggestion(source: str) -> str:
    """Most slips leave out the owner, or a letter."""
    for spelling in (source, f"minchul/{source}"):
        for name in difflib.get_close_matches(spelling, [*SHORT_NAMES, *IR_REPOSITORIES], n=1, cutoff=0.8):
            return f"; did you mean {name}?"
    return ""


def _check_entry(key: str, entry: LockEntry, revision: str | None, lock: Path, *, is_folder: bool) -> None:
    """Refuse a lock entry that is about something else than the recipe asks for."""
    accept = f"remove the entry `{key}` from {lock} to lock it anew"
    if is_folder and entry.revision is not None:
        raise TeacherError(
            f"{key} is locked in {lock} as a repository at revision {entry.revision}, but is a folder here, which goes "
            f"first; rename the folder, or {accept}"
        )
    if not is_folder and entry.revision is None:
        raise TeacherError(
            f"{key} is locked in {lock} as a folder, but there is no such folder; put it there, or {accept}"
        )
    if revision is not None and revision != entry.revision:
        raise TeacherError(
            f"{key}: teacher.revision is {revision}, but {lock} says {entry.revision}; correct the recipe, or {accept}"
        )
    strangers = sorted(entry.files.keys() - READ_FILES)
    if strangers:
        raise TeacherError(
            f"{lock}, entry `{key}`: {show_text(strangers[0])} is none of the files of a CVLface teacher "
            f"({', '.join(sorted(READ_FILES))}); {accept}"
        )


def _load(files: CvlfaceFiles, color: str | None) -> LoadedTeacher:
    """Read and check the files, the texts first: what is not built here is refused before its weights are fetched."""
    description = read_description(
        files.checked(files.description, _MAX_YAML_BYTES).read_bytes(), files.where(files.description)
    )
    of_config: frozenset[Color] = frozenset()
    if files.config is not None:
        of_config = read_config_colors(
            files.checked(files.config, _MAX_JSON_BYTES).read_bytes(), files.where(files.config)
        )
    stated_color = settle_color(description.color, of_config, color, files.title)
    network = _build(description, files.checked(files.weights, _MAX_WEIGHT_BYTES), files)
    identity = TeacherIdentity(
        kind="cvlface",
        name=files.title,
        arch=description.backbone.arch,
        sha256=files.found[files.weights],
        embedding_dim=description.backbone.embedding_dim,
        image_size=description.image_size,
        preprocessing=Preprocessing(color=stated_color or description.color or "rgb"),
    )
    return LoadedTeacher(network, identity, stated_color)


def _build(description: CvlfaceDescription, path: Path, files: CvlfaceFiles) -> nn.Module:
    """Our own network with the tensors of the file in it, every one and no other."""
    # Without memory first: its size comes from a stranger, and a file can state tensors far larger than itself.
    skeleton = backbone_skeleton(description.backbone, description.image_size)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in skeleton.state_dict().values())
    if num_bytes > _MAX_WEIGHT_BYTES:
        raise TeacherError(
            f"{files.where(files.description)} describes a network of {num_bytes:,} bytes, more than the "
            f"{_MAX_WEIGHT_BYTES:,} that one can have"
        )
    try:
        tensors = convert_public_weights(read_weight_file(path), skeleton)
        # The conversion gives every tensor that the network has, so no memory of it stays as it was found.
        network = skeleton.to_empty(device="cpu")
        network.load_state_dict(tensors)
    except (WeightFileError, OSError) as error:
        raise TeacherError(str(error)) from None
    except (ValueError, RuntimeError) as error:  # RuntimeError: sparse tensors and others that torch cannot compare
        raise TeacherError(f"{files.where(files.weights)}, as {files.description} describes it: {error}") from None
    return network.eval()


class _Cvlface(NetworkSource):
    def load(self, config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
        assert config.cvlface is not None
        return load_cvlface(
            config.cvlface, revision=config.revision, lock=Path(config.lock), color=config.color, ranks=ranks
        )

    def writes(self, config: TeacherConfig) -> bool:
        """Whether it is downloaded or locked where it is used first.

        Raises:
            TeacherError: it is none, or the lock file cannot be written.
        """
        assert config.cvlface is not None
        (folder, key), lock = _found(config.cvlface), Path(config.lock)
        entry = read_lock(lock).get(key)
        if folder is not None:
            folder_files(folder, entry)
        else:
            repository = HubRepository(key)
            if entry is not None and entry.revision is not None and not repository.offline:
                return any(repository.cached(entry.revision, name) is None for name in entry.files)
            if repository.offline:
                repository_files(repository, config.revision, entry, lock)
        if entry is None:
            check_writable(lock)
        return entry is None


SOURCE = _Cvlface()
