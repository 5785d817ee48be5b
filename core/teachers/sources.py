"""Where teachers come from: one class a file, registered by the field of `TeacherConfig` that names it.

A source's module is imported where it is used, so a run loads no more than its own. docs/extending.md adds one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from adadistill.core.distributed import Ranks
from adadistill.core.teachers.interface import LoadedTeacher, TeacherError

if TYPE_CHECKING:
    from adadistill.core.teachers.config import TeacherConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """A source as a field of `TeacherConfig` registers it."""

    module: str
    """File of `core/teachers` that holds it, as `SOURCE`: a `NetworkSource`, or a `RowSource`."""
    options: tuple[str, ...] = ("compile",)
    """Fields of `TeacherConfig` that say something of a network, beside `color`, `mean`, `std` and `sha256`."""
    states_input: bool = True
    """Whether a network says how it wants its images; else `color`, `mean` and `std` must."""
    gives_rows: bool = False
    """Whether it gives stored embeddings in place of a network."""

    def source(self) -> Any:
        """The source itself."""
        return import_module(f"adadistill.core.teachers.{self.module}").SOURCE


def from_source(module: str, **facts: Any) -> Any:
    """The field of `TeacherConfig` that makes a source known by the field's name; left out by default.

    Args:
        module: as `Registered.module`; `facts` are its other fields.
    """
    registered = Registered(module=module, **facts)
    return field(default=None, metadata={"source": registered})


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
    loaded: LoadedTeacher = config.network_source.load(config, image_size, ranks)
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
