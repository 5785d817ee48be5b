"""Who published a state dict, and of which network: told from the names and shapes of its tensors.

The depth of a network changes its tensor names, so the names alone decide the architecture. They do not decide who
trained it: AdaFace and CVLface name their layers alike and differ in colour order, which only the wrappers around the
names tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal, TypeAlias

from torch import Tensor, nn

from adadistill.core.backbones import BACKBONE_NAMES, BACKBONES, BackboneConfig, backbone_skeleton
from adadistill.core.backbones.public_weights import public_names, strip_wrappers, wrapper_prefixes

Publisher: TypeAlias = Literal["adadistill", "insightface", "adaface", "cvlface"]


def known_configs() -> tuple[BackboneConfig, ...]:
    """Every network that a public file can hold."""
    return (
        *(BackboneConfig(arch=arch) for arch, known in BACKBONES.items() if known.names is not None),
        *(BackboneConfig(arch=arch, se=True) for arch, known in BACKBONES.items() if known.names and known.takes_se),
    )


_KNOWN: Final = known_configs()
_IMAGE_SIZE = 112  # changes shapes, not names
_LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicFormat:
    """One project's way of publishing networks."""

    color: Literal["rgb", "bgr"]
    """Channel order of the images that it feeds them."""
    prefixes: Mapping[str, str]
    """Ends of the files that its code opens -> what that code strips from the names in them."""


FORMATS: Final[Mapping[Publisher, PublicFormat]] = {
    "adadistill": PublicFormat(color="rgb", prefixes={".pth": "", ".pt": "", ".safetensors": ""}),
    "insightface": PublicFormat(color="rgb", prefixes={".pt": "", ".pth": "", ".safetensors": ""}),
    "adaface": PublicFormat(color="bgr", prefixes={".ckpt": "model."}),  # reads with OpenCV and keeps its order
    "cvlface": PublicFormat(color="rgb", prefixes={".pt": "net.", ".safetensors": "model.net."}),
}


def recognise_backbone(public: Mapping[str, Tensor]) -> BackboneConfig:
    """The network whose tensors these are, at width 1, by their names; its embedding length by their shapes.

    A few missing or unexpected tensors do not hide a network: the strict conversion that follows lists them.

    Raises:
        ValueError: the names are those of none of our networks, or of two.
    """
    counts = {config: wrapper_prefixes(public, _names_of(config).values()) for config in _KNOWN}
    prefixes = {
        prefix
        for config, found in counts.items()
        for prefix, count in found.items()
        if count >= _LEAST_SHARE * len(_names_of(config))
    }
    networks: dict[str, BackboneConfig] = {}
    for prefix in sorted(prefixes):
        inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        names = [name.removeprefix(prefix) for name in public if name.startswith(prefix) and not name.startswith(inner)]
        shares = {config: _shared(names, _names_of(config).values()) for config in _KNOWN}
        likeliest = max(_KNOWN, key=lambda config: shares[config])
        if shares[likeliest] >= _LEAST_SHARE:
            networks[prefix] = likeliest
    if len(networks) > 1:
        listed = " and ".join(f"{config.arch} under `{prefix[:80]}`" for prefix, config in networks.items())
        raise ValueError(f"two networks are here, {listed}; save the tensors of the one that is meant alone")
    if not networks:
        shown = ", ".join(list(public)[:4])
        raise ValueError(
            f"these {len(public)} tensors ({shown}, ...) are those of no network we know: {', '.join(BACKBONE_NAMES)}; "
            "another network can teach as an ONNX file, or through its embeddings (`adadistill cache import`)"
        )
    best = next(iter(networks.values()))
    bare, _ = strip_wrappers(public, _names_of(best).values())
    linear = bare.get(_names_of(best)["embed.linear.weight"])
    if linear is None or linear.ndim != 2:
        return best
    return replace(best, embedding_dim=max(1, linear.shape[0]))


def publishers_of(config: BackboneConfig) -> list[Publisher]:
    """Who publishes weights of such a network."""
    if config.se:
        return ["adadistill"]
    return [publisher for publisher in FORMATS if publisher in BACKBONES[config.arch].publishers]


def resolve_publisher(wanted: str, config: BackboneConfig, names: Iterable[str]) -> Publisher | None:
    """Who published weights of a network: as `wanted` says, or with `auto` by the names; None where nothing tells.

    Raises:
        ValueError: `wanted` does not publish this architecture, or no public file can hold it.
    """
    candidates = publishers_of(config)
    if BACKBONES[config.arch].names is None:
        raise ValueError(
            f"no public names are known for {config.arch}, so no public file holds it; its weights are read from "
            "checkpoints of ours"
        )
    if wanted != "auto":
        chosen = next((publisher for publisher in candidates if publisher == wanted), None)
        if chosen is None:
            known = ", ".join(candidates) or "auto, as nobody publishes it"
            raise ValueError(f"{wanted} publishes no {config.arch}; its format must be one of {known}")
        return chosen
    if "adaface" not in candidates:
        # AdaDistill's iresnets are insightface's, name by name and colour by colour.
        return candidates[-1] if candidates else None
    names = list(names)
    if any(name.startswith(tuple(FORMATS["cvlface"].prefixes.values())) for name in names):
        return "cvlface"
    return "adaface" if "head.kernel" in names else None


@cache
def _names_of(config: BackboneConfig) -> dict[str, str]:
    """Our names of an architecture's tensors with the public ones."""
    network: nn.Module = backbone_skeleton(config, _IMAGE_SIZE)
    return public_names(network)


def _shared(found: Iterable[str], wanted: Iterable[str]) -> float:
    """Share of all names of both sides that both have."""
    one, other = set(found), set(wanted)
    return len(one & other) / max(1, len(one | other))
