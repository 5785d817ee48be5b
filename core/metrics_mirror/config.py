"""Which copies a run has, and whether they can be made here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal


from adadistill.loaders.errors import Refused

class MirrorError(Refused, RuntimeError):
    """A copy cannot be made here; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WandbConfig:
    """Where in Weights & Biases a run is shown. The key comes from the environment or from `wandb login`, never from
    here."""

    project: str
    """Name of the project."""
    entity: str | None = None
    """User or team that owns it. Left out: the key's own."""
    mode: Literal["online", "offline"] = "online"
    """offline keeps the copy in the run folder, for `wandb sync`."""

    def __post_init__(self) -> None:
        if not self.project.strip() or "/" in self.project:
            raise ValueError(f"project must be a name without '/', got {self.project!r}; the owner goes into entity")
        if self.mode not in ("online", "offline"):
            raise ValueError(f"mode must be online or offline, got {self.mode!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorConfig:
    """The copies that are made."""

    tensorboard: bool = False
    wandb: WandbConfig | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """Packages that the copies need."""
        names = (("tensorboard", self.tensorboard), ("wandb", self.wandb is not None))
        return tuple(name for name, on in names if on)

    def require_packages(self) -> None:
        """See that what makes the copies is installed; nothing is imported.

        Raises:
            MirrorError: a package is missing.
        """
        missing = [name for name in self.wanted if importlib.util.find_spec(name) is None]
        if missing:
            raise MirrorError(
                f"log.{missing[0]} is asked for, and its package is not installed: "
                f"pip install 'adadistill[{','.join(missing)}]', or leave it out"
            )
