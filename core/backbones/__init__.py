"""Backbones: networks from face images to embeddings, built from a small config and a seed.

`build_backbone` is the only door: students, teachers and converted public weights all come through it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from adadistill.core.backbones.ir import IR, IR_NAMES
from adadistill.core.backbones.iresnet import IRESNET_NAMES, IResNet
from adadistill.core.backbones.mobilefacenet import (
    MBF,
    MBF_LARGE,
    MBF_NAMES,
    MOBILEFACENET,
    MOBILEFACENET_NAMES,
    MobileFaceNet,
)
from adadistill.core.backbones.public_weights import NameRules


class Network(Protocol):
    """What a registered class makes: an `nn.Module` from images to raw embeddings, and its initialisation."""

    def __call__(self, images: Tensor, /) -> Any: ...

    def initialise_(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter and buffer, which may be uninitialised memory, drawing from the generator alone."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """One registered architecture: all that anything else asks about it."""

    make: Callable[..., Network]
    """Takes image_size, embedding_dim, width and dropout by name, and `se` where `takes_se`."""
    names: NameRules | None
    """How public files name its tensors. None: no public file holds it, and none is taken for it."""
    publishers: tuple[str, ...] = ()
    """Keys of `public_formats.FORMATS`: who publishes weights of it."""
    dropout: float = 0.0
    """Where the config leaves it out."""
    takes_se: bool = False


BACKBONES: Final[dict[str, Backbone]] = {
    "mobilefacenet": Backbone(
        make=partial(MobileFaceNet, MOBILEFACENET), names=MOBILEFACENET_NAMES, publishers=("adadistill",)
    ),
    "mbf": Backbone(make=partial(MobileFaceNet, MBF), names=MBF_NAMES, publishers=("insightface",)),
    "mbf_large": Backbone(make=partial(MobileFaceNet, MBF_LARGE), names=MBF_NAMES, publishers=("insightface",)),
    **{
        f"iresnet{depth}": Backbone(
            make=partial(IResNet, depth),
            names=IRESNET_NAMES,
            # AdaDistill's copy ends at 100.
            publishers=("insightface",) if depth > 100 else ("adadistill", "insightface"),
            takes_se=True,
        )
        for depth in (18, 34, 50, 100, 200)
    },
    **{
        # 101 is how they name the one of 100; the dropout is what AdaFace and CVLface train with.
        f"ir{name}": Backbone(make=partial(IR, depth), names=IR_NAMES, publishers=("adaface", "cvlface"), dropout=0.4)
        for name, depth in {18: 18, 34: 34, 50: 50, 101: 100}.items()
    },
}
"""Every architecture by the name that recipes give it; docs/extending.md adds one."""

BACKBONE_NAMES: Final[tuple[str, ...]] = tuple(BACKBONES)
if TYPE_CHECKING:
    BackboneName: TypeAlias = str
else:
    BackboneName = Literal[BACKBONE_NAMES]

MAX_EMBEDDING_DIM: Final = 16384
"""Eight times the longest embedding that is published; beyond it a typing slip would take all memory there is."""


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
        if self.arch not in BACKBONES:
            raise ValueError(f"arch must be one of {', '.join(BACKBONES)}, got {self.arch!r}")
        if not 1 <= self.embedding_dim <= MAX_EMBEDDING_DIM:
            raise ValueError(f"embedding_dim must be in [1, {MAX_EMBEDDING_DIM}], got {self.embedding_dim}")
        if not 0.0 < self.width <= 8.0:
            raise ValueError(f"width must be in (0, 8], got {self.width}")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1) or null, got {self.dropout}")
        if self.se and not BACKBONES[self.arch].takes_se:
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
    network.initialise_(generator)  # type: ignore[operator]
    return network


def backbone_skeleton(config: BackboneConfig, image_size: int) -> nn.Module:
    """Return the network on the meta device: names and shapes without memory, drawn from no generator.

    Raises:
        ValueError: image_size is no positive multiple of 16.
    """
    backbone = BACKBONES[config.arch]
    # Modules initialise themselves from the global generator when they are made; on the meta device that draws nothing.
    with torch.device("meta"):
        network = backbone.make(
            image_size=image_size,
            embedding_dim=config.embedding_dim,
            width=config.width,
            dropout=backbone.dropout if config.dropout is None else config.dropout,
            **({"se": True} if config.se else {}),
        )
    assert isinstance(network, nn.Module), f"{config.arch} makes a {type(network).__name__}"
    network.name_rules = backbone.names  # type: ignore[assignment]
    return network
