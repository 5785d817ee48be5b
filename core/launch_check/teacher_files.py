"""Whether a recipe's teacher is where the recipe says, by files and headers alone: no network is loaded or run.

What only the weights can tell (that they are the network they are taken for, its colour order, that a cache was made
by these very ones) is checked when the run starts, or by `adadistill teacher check`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch

from adadistill.core.checkpoints import CheckpointError, list_checkpoints
from adadistill.core.checkpoints.files import MANIFEST_NAME, step_of
from adadistill.core.checkpoints.peek import peek_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.launch_check.findings import Findings, ReadFile, stat_of
from adadistill.core.npy_files import open_npy
from adadistill.core.precision import resolve_precision
from adadistill.core.recipe import Recipe, recipe_augmentation
from adadistill.core.teachers import TeacherConfig, build_teacher
from adadistill.core.teachers.cvlface import existing_folder, repository_id
from adadistill.core.teachers.cvlface_files import KNOWN_PINS, folder_files
from adadistill.core.teachers.hub_files import HubRepository
from adadistill.core.teachers.teacher_lock import check_writable, read_lock
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.teacher_cache import TeacherCache


def check_teacher_files(recipe: Recipe, records: ImageSource | None, findings: Findings) -> list[tuple[str, str]]:
    """Look for what the teacher is made of, and note what is missing or does not fit.

    Returns:
        Paths that the teacher would write, each with what for: downloads and the lock file.
    """
    config = recipe.teacher
    if config is None:
        return []
    if config.embeddings is not None and findings.will_read("teacher.embeddings", config.embeddings):
        _check_stored(recipe, TeacherConfig(embeddings=config.embeddings, check=config.check), records, findings)
    if config.cache is not None and findings.will_read("teacher.cache", config.cache, a_folder=True):
        stored = TeacherConfig(cache=config.cache, cache_verify=False, check=config.check)
        _check_stored(recipe, stored, records, findings)
        if config.source is not None:
            findings.notes.append("whether teacher.cache was made by these very weights is checked when the run starts")
    if config.color == "auto" and config.color_set is not None:
        findings.will_read("teacher.color_set", config.color_set)
    if config.checkpoint is not None:
        _check_checkpoint(config.checkpoint, recipe, findings)
    if config.source in ("weights", "onnx"):
        findings.will_read(f"teacher.{config.source}", getattr(config, config.source))
    if config.onnx is not None and importlib.util.find_spec("onnxruntime") is None:
        findings.problems.append("teacher.onnx needs onnxruntime, which is not installed: pip install '.[onnx]'")
    return [] if config.cvlface is None else _check_cvlface(config, findings)


def _check_stored(recipe: Recipe, stored: TeacherConfig, records: ImageSource | None, findings: Findings) -> None:
    """Embeddings on disk, against records, views and student where the records are there; else by their header."""
    with findings.collected():
        if records is not None:
            build_teacher(
                stored,
                records=records,
                data=recipe.data,
                augmentation=recipe_augmentation(recipe),
                embedding_dim=recipe.student.embedding_dim,
                precision=resolve_precision(recipe.precision, torch.device("cpu")),
                ranks=Ranks(),  # files alone are looked at: one process does for all
            )
        elif stored.cache is not None:
            TeacherCache(stored.cache)
        elif stored.embeddings is not None:
            open_npy(Path(stored.embeddings))


def _check_checkpoint(source: str, recipe: Recipe, findings: Findings) -> None:
    path = Path(source)
    if not findings.will_read("teacher.checkpoint", path, a_folder=True):
        return
    is_checkpoint = stat_of(path / MANIFEST_NAME) is not None or step_of(path) is not None
    reasons = []
    candidates = [path]
    if not is_checkpoint:
        with findings.collected():
            candidates = list_checkpoints(path)[::-1]
    for candidate in candidates:
        try:
            network = peek_checkpoint(candidate).state.get("network")
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        _compare_network(network, candidate, recipe, findings)
        return
    findings.problems.append("\n  ".join([f"teacher.checkpoint: {path} holds no valid checkpoint", *reasons]))


def _compare_network(network: object, path: Path, recipe: Recipe, findings: Findings) -> None:
    """Hold what a checkpoint says of its network to the student and the images."""
    if not isinstance(network, dict):
        findings.problems.append(f"teacher.checkpoint: {path} does not say what network it holds")
        return
    wanted = {"embedding_dim": recipe.student.embedding_dim, "image_size": recipe.data.image_size}
    names = {"embedding_dim": "student.embedding_dim", "image_size": "data.image_size"}
    for key, value in wanted.items():
        if network.get(key) != value:
            said = json.dumps(network.get(key))[:40]
            findings.problems.append(
                f"teacher.checkpoint: {path} has {key} {said}, the recipe's {names[key]} is {value}"
            )


def _check_cvlface(config: TeacherConfig, findings: Findings) -> list[tuple[str, str]]:
    """A CVLface network in a folder, in the Hub's cache, or on the Hub, which is not asked."""
    assert config.cvlface is not None
    writes: list[tuple[str, str]] = []
    with findings.collected():
        lock = Path(config.lock)
        folder = existing_folder(config.cvlface)
        key = config.cvlface if folder is not None else repository_id(config.cvlface)
        entry = read_lock(lock).get(key)
        findings.will_read("teacher.lock", lock, needed=False)
        if entry is None:
            check_writable(lock)
            writes.append((str(lock), "the teacher's commit and hashes, once it has loaded"))
        if folder is not None:
            files = folder_files(folder, entry)
            for name in (files.description, files.weights):
                findings.will_read("teacher.cvlface", folder / name)
            return writes
        repository = HubRepository(key)
        pin = KNOWN_PINS.get(key)
        revision = entry.revision if entry is not None else config.revision or (pin.revision if pin else None)
        cached = [] if revision is None else _cached_files(repository, revision)
        if cached:
            for path in cached:
                findings.will_read("teacher.cvlface", path)
            return writes
        where = f"{key} at {revision[:12] if revision else 'its newest commit'}"
        if repository.offline:
            findings.problems.append(
                f"teacher.cvlface: {where} is not in {repository.cache_dir}, and HF_HUB_OFFLINE forbids fetching it"
            )
        findings.reads.append(ReadFile("teacher.cvlface", where, "download", None))
        writes.append((str(repository.cache_dir), f"download of {where}"))
    return writes


def _cached_files(repository: HubRepository, revision: str) -> list[Path]:
    """The description and the tensors in the Hub's cache; empty where one is not there."""
    description, *weights = "pretrained_model/model.yaml", "model.safetensors", "pretrained_model/model.pt"
    found = repository.cached(revision, description)
    tensors = [path for name in weights if (path := repository.cached(revision, name)) is not None]
    return [found, tensors[0]] if found is not None and tensors else []
