"""The sources that a recipe's `teacher` section names, and its network, held to what the recipe says of it."""

from __future__ import annotations

from dataclasses import replace

from adadistill.core.distributed import Ranks
from adadistill.core.teachers.config import NETWORK_SOURCES, ROW_SOURCES, TeacherConfig
from adadistill.core.teachers.interface import LoadedTeacher, NetworkSource, RowSource, TeacherError


def network_source(config: TeacherConfig) -> NetworkSource | None:
    """Where the network comes from, None where there is only a cache or embeddings."""
    return None if config.source is None else NETWORK_SOURCES[config.source].source()


def row_source(config: TeacherConfig) -> RowSource | None:
    """Where stored embeddings are read from; they go before a network, which then tells what they must be of."""
    return next((known.source() for name, known in ROW_SOURCES.items() if getattr(config, name) is not None), None)


def load_source(config: TeacherConfig, *, image_size: int, ranks: Ranks) -> LoadedTeacher:
    """Load the network that a recipe's `teacher` section names. All ranks call it together.

    Args:
        config: must name a network (`config.source` is not None). `color: auto` is taken as what the source states.
        image_size: side of the images that it will be given, in pixels.

    Raises:
        TeacherError: it cannot be read, is not that network, or takes other images. FileNotFoundError, CheckpointError,
            WeightFileError: with the path in their text.
    """
    source = network_source(config)
    if source is None:
        raise TeacherError("the recipe names no network as its teacher, only embeddings on disk")
    loaded = source.load(config, image_size, ranks)
    identity = loaded.identity
    if identity.image_size != image_size:
        raise TeacherError(
            f"teacher {identity.name} takes {identity.image_size} x {identity.image_size} images, "
            f"the recipe's are {image_size} x {image_size}"
        )
    if config.sha256 is not None and identity.sha256 != config.sha256:
        raise TeacherError(
            f"teacher {identity.name} has sha256 {identity.sha256}, the recipe wants {config.sha256}; "
            "this is another file than the one that was pinned"
        )
    wanted = identity.preprocessing
    if config.color in ("rgb", "bgr"):
        wanted = replace(wanted, color=config.color)
    if config.mean is not None and config.std is not None:
        wanted = replace(wanted, mean=config.mean, std=config.std)
    return replace(loaded, identity=replace(identity, preprocessing=wanted))
