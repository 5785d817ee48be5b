"""Who published a state dict, and of which network: told from the names and shapes of its tensors.

The depth of a network changes its tensor names, so the names alone decide the architecture. They do not decide who
trained it: AdaFace and CVLface name their layers alike and differ in colour order, which only the wrappers around the
names tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

from torch import Tensor, nn

from adadistill.core.backbones import BACKBONE_NAMES, BackboneConfig, BackboneName, backbone_skeleton
from adadistill.core.backbones.public_weights import public_names, strip_wrappers

Publisher: TypeAlias = Literal["adadistill", "insightface", "adaface", "cvlface"]

_IMAGE_SIZE = 112  # changes shapes, not names
_LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicFormat:
    """One project's way of publishing networks."""

    families: tuple[str, ...]
    """Our architectures, without the depth, whose weights it publishes."""
    color: Literal["rgb", "bgr"]
    """Channel order of the images that it feeds them."""


FORMATS: Final[Mapping[Publisher, PublicFormat]] = {
    "adadistill": PublicFormat(families=("mobilefacenet", "iresnet"), color="rgb"),
    "insightface": PublicFormat(families=("mbf", "iresnet"), color="rgb"),
    "adaface": PublicFormat(families=("ir",), color="bgr"),  # reads images with OpenCV and keeps its order
    "cvlface": PublicFormat(families=("ir",), color="rgb"),
}


def recognise_backbone(public: Mapping[str, Tensor]) -> BackboneConfig:
    """The network whose tensors these are, at width 1, by their names; its embedding length by their shapes.

    A few missing or unexpected tensors do not hide a network: the strict conversion that follows lists them.

    Raises:
        ValueError: the names are those of none of our networks.
    """
    bare = strip_wrappers(public)
    shares = {arch: _shared(bare.keys(), _names_of(arch).values()) for arch in BACKBONE_NAMES}
    best = max(BACKBONE_NAMES, key=lambda arch: shares[arch])
    if shares[best] < _LEAST_SHARE:
        shown = ", ".join(list(bare)[:4])
        raise ValueError(
            f"these {len(bare)} tensors ({shown}, ...) are those of no network we know: {', '.join(BACKBONE_NAMES)}; "
            "another network can teach as an ONNX file, or through its embeddings (`adadistill cache import`)"
        )
    linear = bare.get(_names_of(best)["embed.linear.weight"])
    if linear is None or linear.ndim != 2:
        return BackboneConfig(arch=_checked_name(best))
    return BackboneConfig(arch=_checked_name(best), embedding_dim=max(1, linear.shape[0]))


def resolve_publisher(wanted: str, arch: str, names: Iterable[str]) -> Publisher | None:
    """Who published weights of `arch`: as `wanted` says, or with `auto` by the names; None where nothing tells.

    Raises:
        ValueError: `wanted` does not publish this architecture.
    """
    family = arch.rstrip("0123456789")
    candidates = [publisher for publisher, format in FORMATS.items() if family in format.families]
    if wanted != "auto":
        chosen = next((publisher for publisher in candidates if publisher == wanted), None)
        if chosen is None:
            raise ValueError(f"{wanted} publishes no {arch}; its format must be one of {', '.join(candidates)}")
        return chosen
    if family != "ir":
        # AdaDistill's iresnets are insightface's, name by name and colour by colour.
        return candidates[-1]
    names = list(names)
    if any(name.startswith(("net.", "model.net.")) for name in names):
        return "cvlface"
    return "adaface" if "head.kernel" in names else None


@cache
def _names_of(arch: str) -> dict[str, str]:
    """Our names of an architecture's tensors with the public ones."""
    network: nn.Module = backbone_skeleton(BackboneConfig(arch=_checked_name(arch)), _IMAGE_SIZE)
    return public_names(network)


def _checked_name(arch: str) -> BackboneName:
    assert arch in BACKBONE_NAMES
    return arch  # type: ignore[return-value]


def _shared(found: Iterable[str], wanted: Iterable[str]) -> float:
    """Share of all names of both sides that both have."""
    one, other = set(found), set(wanted)
    return len(one & other) / max(1, len(one | other))
