"""Loads a teacher's network from wherever the recipe says, strictly, and says what it is.

Every source ends in a `LoadedTeacher`: the network, float32 on the CPU, with its identity: where it came from, its
sha256, and how it wants its images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadistill.core.checkpoints.files import MODEL_NAME, read_manifest
from adadistill.core.checkpoints.network_checkpoint import load_network
from adadistill.core.distributed import Ranks
from adadistill.core.teachers.interface import LoadedTeacher, TeacherError, TeacherIdentity
from adadistill.core.teachers.preprocessing import Preprocessing

if TYPE_CHECKING:
    from adadistill.core.teachers.config import TeacherConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSource:
    """One place that a teacher's network can come from. A field of `TeacherConfig` registers it, see `from_source`."""

    load: Callable[[TeacherConfig, int, Ranks], LoadedTeacher]
    """Reads the network that the config's field names, for images of so many pixels a side. All ranks call it."""
    options: tuple[str, ...] = ("compile",)
    """Fields of `TeacherConfig` that say something of it, beside `color`, `mean`, `std` and `sha256`."""
    states_input: bool = True
    """Whether it says how it wants its images; else `color`, `mean` and `std` must."""
    is_file: bool = True
    """Whether the field names one file, whose presence is then all that a dry run looks for."""


def from_source(source: NetworkSource) -> Any:
    """The field of `TeacherConfig` that makes a source known by the field's name; left out by default."""
    return field(default=None, metadata={"source": source})


def load_source(config: TeacherConfig, *, image_size: int, ranks: Ranks) -> LoadedTeacher:
    """Load the network that a recipe's `teacher` section names. All ranks call it together.

    Args:
        config: must name a network (`config.source` is not None). `color: auto` is taken as what the source states.
        image_size: side of the images that it will be given, in pixels.

    Raises:
        TeacherError: it cannot be read, is not that network, or takes other images. FileNotFoundError, CheckpointError,
            WeightFileError: with the path in their text.
    """
    if config.network_source is None:
        raise TeacherError("the recipe names no network as its teacher, only embeddings on disk")
    loaded = config.network_source.load(config, image_size, ranks)
    if loaded.identity.image_size != image_size:
        raise TeacherError(
            f"teacher {loaded.identity.name} takes {loaded.identity.image_size} x {loaded.identity.image_size} images, "
            f"the recipe's are {image_size} x {image_size}"
        )
    if config.sha256 is not None and loaded.identity.sha256 != config.sha256:
        raise TeacherError(
            f"teacher {loaded.identity.name} has sha256 {loaded.identity.sha256}, the recipe wants {config.sha256}; "
            "this is another file than the one that was pinned"
        )
    return with_preprocessing(loaded, config)


def with_preprocessing(loaded: LoadedTeacher, config: TeacherConfig) -> LoadedTeacher:
    """The teacher with the colour order and normalisation that the recipe states in place of the source's."""
    wanted = loaded.identity.preprocessing
    if config.color in ("rgb", "bgr"):
        wanted = replace(wanted, color=config.color)
    if config.mean is not None and config.std is not None:
        wanted = replace(wanted, mean=config.mean, std=config.std)
    return replace(loaded, identity=replace(loaded.identity, preprocessing=wanted))


def _checkpoint(config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
    assert config.checkpoint is not None
    found = load_network(config.checkpoint, device=torch.device("cpu"))
    identity = TeacherIdentity(
        kind="checkpoint",
        name=f"{Path(config.checkpoint).name} step {found.step}",
        arch=found.backbone.arch,
        sha256=read_manifest(found.path)[MODEL_NAME].sha256,
        embedding_dim=found.backbone.embedding_dim,
        image_size=found.image_size,
        preprocessing=Preprocessing(),
    )
    return LoadedTeacher(found.network, identity, stated_color="rgb")


def _weights(config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
    from adadistill.core.teachers.weight_source import load_weights

    assert config.weights is not None
    return load_weights(
        Path(config.weights), arch=config.arch, weight_format=config.format, color=config.color, image_size=image_size
    )


def _cvlface(config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
    from adadistill.core.teachers.cvlface import load_cvlface

    assert config.cvlface is not None
    return load_cvlface(
        config.cvlface, revision=config.revision, lock=Path(config.lock), color=config.color, ranks=ranks
    )


def _onnx(config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
    from adadistill.core.teachers.onnx_network import load_onnx

    assert config.onnx is not None
    return load_onnx(Path(config.onnx), image_size=image_size, device=ranks.device, provider=config.provider)


CHECKPOINT = NetworkSource(load=_checkpoint, is_file=False)
WEIGHTS = NetworkSource(load=_weights, options=("arch", "format", "compile"))
CVLFACE = NetworkSource(load=_cvlface, options=("revision", "compile"), is_file=False)
ONNX = NetworkSource(load=_onnx, options=("provider",), states_input=False)
