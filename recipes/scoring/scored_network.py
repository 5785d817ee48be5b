"""What `adadistill evaluate` can score: a checkpoint of ours, or any network that could be a teacher.

A command line or a recipe names a network; here it is told what kind of network that is, loaded, and described for the
reports. Importing this file loads no torch, so that --help answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import nn

    from adadistill.core.distributed import Ranks
    from adadistill.core.precision import Precision
    from adadistill.core.teachers import TeacherConfig
    from adadistill.loaders.pipelines.pipeline import DataConfig

SourceKind: TypeAlias = Literal["checkpoint", "weights", "cvlface", "onnx"]

WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".pth.tar")
NAMED_SUFFIXES = (*WEIGHT_SUFFIXES, ".bin", ".pkl", ".onnx")
"""Those that --suffix can ask for; files that end in .bin or .pkl are more often something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSource:
    """A network as a recipe's `teacher` section names it."""

    config: TeacherConfig
    image_size: int
    """Side of the images it is given, in pixels."""
    data: DataConfig | None = None
    """Training images of the recipe that it comes from, of which `color: auto` makes pairs; None without a recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredNetwork:
    """A network to be scored, with what its reports say of it."""

    network: nn.Module
    """Images (B, 3, H, W), RGB in [-1, 1] -> raw embeddings (B, D)."""
    image_size: int
    name: str
    """The reports are `verification-<name>`."""
    folder: Path
    """Where they go by default."""
    facts: Mapping[str, Any]
    """JSON values: what it is and where it came from."""
    announcement: str | None = None
    """Lines for people, where the name alone does not say how its images are made."""


def source_kind(network: str, revision: str | None = None) -> SourceKind:
    """Which field of `TeacherConfig` names such a network.

    Folders are told by what lies in them, files are ONNX networks by their suffix, else weights. What is not there
    is a checkpoint that is missing, unless its name is like CVLface's or a revision goes with it.
    """
    path = Path(network)
    if path.is_dir():
        like_cvlface = any((path / name).is_file() for name in ("model.yaml", "pretrained_model/model.yaml"))
        return "cvlface" if like_cvlface else "checkpoint"
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if path.is_file() or path.name.lower().endswith(NAMED_SUFFIXES):
        return "weights"
    if not path.exists() and (revision is not None or path.name.startswith("cvlface_")):
        return "cvlface"
    return "checkpoint"


def teacher_of_recipe(recipe: str) -> TeacherSource:
    """The network that a recipe has for its teacher.

    Raises:
        RecipeError: it cannot be read.
        ValueError: it has no teacher, or one of embeddings alone.
    """
    from adadistill.core.recipe import load_recipe

    loaded = load_recipe(recipe)
    if loaded.teacher is None or loaded.teacher.source is None:
        what = "no teacher" if loaded.teacher is None else "embeddings on disk for a teacher, and no network"
        raise ValueError(f"{recipe} has {what}; there is nothing to run on images")
    return TeacherSource(config=loaded.teacher, image_size=loaded.data.image_size, data=loaded.data)


def load_scored(source: Path | TeacherSource, ranks: Ranks) -> ScoredNetwork:
    """Load a checkpoint or another network. All ranks call it together.

    Raises:
        CheckpointError, TeacherError, WeightFileError, OSError: it cannot be had; what `color: auto` reads may be at
            fault too, with its own error.
    """
    return _teacher(source, ranks) if isinstance(source, TeacherSource) else _checkpoint(source, ranks)


def prepare_(network: nn.Module, precision: Precision, ranks: Ranks) -> None:
    """Bring a network to its device and formats; one with a runtime of its own keeps its formats."""
    import torch

    from adadistill.core.teachers import computes_in_torch

    network.eval().to(ranks.device)
    if computes_in_torch(network):
        network.to(dtype=precision.dtype)
        if precision.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def report_folder(checkpoint: Path) -> Path:
    """`RUN/report` for a checkpoint `RUN/checkpoints/step-*`; `report` beside any other checkpoint directory."""
    parent = checkpoint.resolve().parent
    return (parent.parent if parent.name == "checkpoints" else parent) / "report"


def _checkpoint(path: Path, ranks: Ranks) -> ScoredNetwork:
    from adadistill.core.checkpoints.files import MODEL_NAME, read_manifest
    from adadistill.core.checkpoints.network_checkpoint import load_network

    loaded = load_network(path, device=ranks.device)
    facts = {
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        "model_sha256": read_manifest(loaded.path)[MODEL_NAME].sha256,
        "network": dataclasses.asdict(loaded.backbone),
        "image_size": loaded.image_size,
    }
    return ScoredNetwork(
        network=loaded.network,
        image_size=loaded.image_size,
        name=loaded.path.name,
        folder=report_folder(loaded.path),
        facts=facts,
    )


def _teacher(source: TeacherSource, ranks: Ranks) -> ScoredNetwork:
    from adadistill.core.teachers import load_source
    from adadistill.core.teachers.color_check import resolve_color
    from adadistill.loaders.pipelines.pipeline import named_records

    loaded = load_source(source.config, image_size=source.image_size, ranks=ranks)
    colours = None
    if source.data is not None:
        records = named_records(source.data)
        loaded, colours = resolve_color(
            loaded, source.config, records=records, image_size=source.image_size, ranks=ranks
        )
    facts: dict[str, Any] = {"identity": loaded.identity.to_json()}
    announcement = loaded.identity.summary()
    if colours is not None:
        facts["colour_check"] = colours.to_json()
        announcement += "\n" + colours.summary()
    name, folder = _report_place(source.config)
    return ScoredNetwork(
        network=loaded.network(),
        image_size=source.image_size,
        name=name,
        folder=folder,
        facts=facts,
        announcement=announcement,
    )


def _report_place(config: TeacherConfig) -> tuple[str, Path]:
    """Name and default folder of the reports on a teacher: beside what it was read from, here where that is the Hub."""
    from adadistill.core.checkpoints import resolve_checkpoint

    assert config.source is not None
    path = Path(getattr(config, config.source))
    if config.source == "checkpoint":
        path = resolve_checkpoint(path)
        return path.name, report_folder(path)
    name = path.name if config.source == "cvlface" else path.stem
    return name, path.resolve().parent / "report" if path.exists() else Path("report")
