"""Backbones: networks from face images to embeddings, built from a small config and a seed.

`build_backbone` is the only door: students, teachers and converted public weights all come through it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import nn

from adadistill.core.backbones.ir import IR
from adadistill.core.backbones.iresnet import IResNet
from adadistill.core.backbones.mobilefacenet import MBF, MBF_LARGE, MOBILEFACENET, MobileFaceNet

BackboneName: TypeAlias = Literal[
    "mobilefacenet",
    "mbf",
    "mbf_large",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "iresnet200",
    "ir18",
    "ir34",
    "ir50",
    "ir101",
]

BACKBONE_NAMES: Final[tuple[str, ...]] = get_args(BackboneName)

_Network: TypeAlias = MobileFaceNet | IResNet | IR

_CONSTRUCTORS: Final[dict[str, Callable[..., _Network]]] = {
    "mobilefacenet": partial(MobileFaceNet, MOBILEFACENET),
    "mbf": partial(MobileFaceNet, MBF),
    "mbf_large": partial(MobileFaceNet, MBF_LARGE),
    "iresnet18": partial(IResNet, 18),
    "iresnet34": partial(IResNet, 34),
    "iresnet50": partial(IResNet, 50),
    "iresnet100": partial(IResNet, 100),
    "iresnet200": partial(IResNet, 200),
    "ir18": partial(IR, 18),
    "ir34": partial(IR, 34),
    "ir50": partial(IR, 50),
    "ir101": partial(IR, 100),
}

MAX_EMBEDDING_DIM: Final = 16384
"""Eight times the longest embedding that is published; beyond it a typing slip would take all memory there is."""

_IR_DROPOUT = 0.4  # what AdaFace and CVLface train with


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Which network, and how large."""

    arch: BackboneName = "mobilefacenet"
    """Architecture: `mobilefacenet` is AdaDistill's 1.2 M student (the default, as the method was published with it),
    `mbf` and `mbf_large` insightface's of 2.06 and 6.31 M, `iresnet*` insightface's, `ir*` AdaFace's and CVLface's."""
    embedding_dim: int = 512
    """Length D of an embedding, 1 to 16384; 512 is what every public teacher has."""
    width: float = 1.0
    """Multiplies all channel counts, hidden ones too, each rounded to a multiple of 8. In (0, 8]; 1 is the published
    network, 0.5 makes a student for small images and CPUs."""
    dropout: float | None = None
    """Probability of dropping an input of the last linear layer in training, in [0, 1). None takes the architecture's
    own: 0.4 for `ir*`, 0 for the others."""
    se: bool = False
    """Squeeze and excitation at the end of every block of an `iresnet*`, as AdaDistill's copy of it can have."""

    def __post_init__(self) -> None:
        if self.arch not in BACKBONE_NAMES:
            raise ValueError(f"arch must be one of {', '.join(BACKBONE_NAMES)}, got {self.arch!r}")
        if not 1 <= self.embedding_dim <= MAX_EMBEDDING_DIM:
            raise ValueError(f"embedding_dim must be in [1, {MAX_EMBEDDING_DIM}], got {self.embedding_dim}")
        if not 0.0 < self.width <= 8.0:
            raise ValueError(f"width must be in (0, 8], got {self.width}")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1) or null, got {self.dropout}")
        if self.se and not self.arch.startswith("iresnet"):
            raise ValueError(
                f"se is an option of the iresnet networks, arch is {self.arch}; set one of them, or se: false"
            )


def build_backbone(
    config: BackboneConfig, image_size: int, *, generator: torch.Generator | int | None = None
) -> nn.Module:
    """Return a freshly initialised network in float32 on the CPU, in training mode.

    It maps images (B, 3, image_size, image_size), RGB in [-1, 1], to raw embeddings (B, config.embedding_dim).

    Args:
        config: architecture and size.
        image_size: side of the square images in pixels, a multiple of 16.
        generator: source of the initial weights: a CPU generator, or a seed for a new one. The same seed gives the same
            weights, and torch's global generator is then not touched. None draws from the global one.

    Raises:
        ValueError: image_size is no positive multiple of 16.
    """
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    network = backbone_skeleton(config, image_size)
    network.to_empty(device="cpu")
    network.initialise_(generator)
    return network


def backbone_skeleton(config: BackboneConfig, image_size: int) -> _Network:
    """Return the network on the meta device: names and shapes without memory, drawn from no generator.

    Raises:
        ValueError: image_size is no positive multiple of 16.
    """
    # Modules initialise themselves from the global generator when they are made; on the meta device that draws nothing.
    with torch.device("meta"):
        return _CONSTRUCTORS[config.arch](
            image_size=image_size,
            embedding_dim=config.embedding_dim,
            width=config.width,
            dropout=_dropout(config),
            **({"se": True} if config.se else {}),
        )


def _dropout(config: BackboneConfig) -> float:
    if config.dropout is not None:
        return config.dropout
    return _IR_DROPOUT if config.arch.startswith("ir") and not config.arch.startswith("iresnet") else 0.0
