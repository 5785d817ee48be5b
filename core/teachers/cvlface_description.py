"""What CVLface writes down about a network: `model.yaml`, and the colour order in `config.json`.

Both come from strangers and are read as plain data, within limits, without the loaders they were written for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from adadistill.core.backbones import BackboneConfig, BackboneName
from adadistill.core.config.yaml_tree import ListNode, MapNode, Node, ScalarNode, YamlError, parse_document, show_text
from adadistill.core.teachers.interface import TeacherError
from adadistill.core.teachers.preprocessing import Color

ARCHITECTURES: Final[Mapping[str, BackboneName]] = {"ir18": "ir18", "ir34": "ir34", "ir50": "ir50", "ir101": "ir101"}
"""CVLface's names of the networks that we build -> ours."""

# Far beyond any network, small enough that sizes computed from them cannot overflow.
_MAX_IMAGE_SIZE: Final = 1024
_MAX_EMBEDDING_DIM: Final = 1 << 14


@dataclass(frozen=True, kw_only=True, slots=True)
class CvlfaceDescription:
    """What `model.yaml` says of a network."""

    backbone: BackboneConfig
    image_size: int
    """Side of the square input, in pixels."""
    color: Color | None
    """Order of the input channels, None where it is not said."""


def read_description(body: bytes, where: str) -> CvlfaceDescription:
    """Read a `model.yaml`.

    Args:
        body: bytes of the file.
        where: what errors call it.

    Raises:
        TeacherError: it is no such file, or describes a network that is not built here.
    """
    try:
        parsed = parse_document(body, where)
    except YamlError as error:
        raise TeacherError(str(error)) from None
    root = parsed.root
    if not isinstance(root, MapNode):
        raise TeacherError(f"{where} is no mapping of keys to values, as a CVLface model.yaml is")
    arch = _architecture(root, where)
    problems = list(parsed.problems)
    image_size = _image_size(root, problems)
    embedding_dim = _embedding_dim(root, problems)
    color = _color(root, problems)
    if problems:
        raise TeacherError("\n  ".join([f"{where} does not describe a network:", *problems]))
    backbone = BackboneConfig(arch=arch, embedding_dim=embedding_dim)
    return CvlfaceDescription(backbone=backbone, image_size=image_size, color=color)


def read_config_colors(body: bytes, where: str) -> frozenset[Color]:
    """The colour orders that a `config.json` states in its `conf`, at any depth; usually one, or none.

    Raises:
        TeacherError: it is no JSON object, or states something else than RGB or BGR.
    """
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise TeacherError(f"{where} is no JSON: {reason}") from None
    if not isinstance(document, dict):
        raise TeacherError(f"{where} is no JSON object")
    stated = list(_color_spaces(document.get("conf")))
    strangers = [value for value in stated if _as_color(value) is None]
    if strangers:
        raise TeacherError(f"{where}: color_space must be RGB or BGR, got {_shown(strangers[0])}")
    return frozenset(color for value in stated if (color := _as_color(value)) is not None)


def settle_color(
    of_description: Color | None, of_config: Collection[Color], wanted: str | None, title: str
) -> Color | None:
    """The colour order that the files agree on; None where they say nothing, or contradict each other.

    Args:
        of_description: from `model.yaml`; `of_config`: from `config.json`.
        wanted: `color` of the recipe; anything but None settles a contradiction.
        title: what errors call the teacher.

    Raises:
        TeacherError: a contradiction that nothing settles.
    """
    stated = {*of_config} | ({of_description} if of_description is not None else set())
    if len(stated) > 1 and wanted is None:
        config = " and ".join(sorted(color.upper() for color in of_config))
        description = "nothing" if of_description is None else of_description.upper()
        raise TeacherError(
            f"{title}: model.yaml says that the network takes {description}, config.json says {config}. The wrong "
            "order costs accuracy silently; set teacher.color to auto, which tries both, or to rgb or bgr if you know"
        )
    return next(iter(stated)) if len(stated) == 1 else None


def not_built_error(where: str, what: str, *, needs_keypoints: bool) -> TeacherError:
    """The error for a network of CVLface's that we do not build: what is missing, and what to do instead."""
    keypoints = " KPRPE networks also need the five facial keypoints of every image, which records do not hold."
    return TeacherError(
        f"{where} is {what}; of CVLface's networks only {', '.join(ARCHITECTURES)} are built here."
        f"{keypoints if needs_keypoints else ''} Its embeddings can teach all the same: compute them with CVLface, and "
        "read them with `adadistill cache import`"
    )


def _architecture(root: MapNode, where: str) -> BackboneName:
    name = _scalar(root.entries.get("name"))
    if not isinstance(name, str):
        raise TeacherError(f"{where} names no network: `name` must be one of {', '.join(ARCHITECTURES)}")
    arch = ARCHITECTURES.get(name.lower().replace("_", ""))  # the classes are IR_50, the files say ir50
    if arch is None:
        # KPRPE networks are called `base` like the plain ViT; what tells them is their own section.
        needs_keypoints = "rpe_config" in root.entries or "kprpe" in name.lower()
        what = f"a KPRPE network, `{show_text(name)}`" if needs_keypoints else f"the network `{show_text(name)}`"
        raise not_built_error(where, what, needs_keypoints=needs_keypoints)
    return arch


def _image_size(root: MapNode, problems: list[str]) -> int:
    node = root.entries.get("input_size")
    sizes = [_scalar(item) for item in node.items] if isinstance(node, ListNode) else []
    numbers = [size for size in sizes if type(size) is int]
    if not (len(sizes) == len(numbers) == 3 and numbers[0] == 3 and numbers[1] == numbers[2]):
        problems.append("input_size must be [3, side, side], in pixels")
        return 0
    if not 16 <= numbers[1] <= _MAX_IMAGE_SIZE or numbers[1] % 16:
        problems.append(f"input_size must be a multiple of 16 up to {_MAX_IMAGE_SIZE}, got {numbers[1]}")
    return numbers[1]


def _embedding_dim(root: MapNode, problems: list[str]) -> int:
    dim = _scalar(root.entries.get("output_dim"))
    if type(dim) is not int or not 1 <= dim <= _MAX_EMBEDDING_DIM:
        problems.append(f"output_dim must be a length from 1 to {_MAX_EMBEDDING_DIM}, got {_shown(dim)}")
        return 0
    return dim


def _color(root: MapNode, problems: list[str]) -> Color | None:
    node = root.entries.get("color_space")
    if node is None:
        return None
    color = _as_color(_scalar(node))
    if color is None:
        problems.append(f"color_space must be RGB or BGR, got {_shown(_scalar(node))}")
    return color


def _scalar(node: Node | None) -> Any:
    return node.value if isinstance(node, ScalarNode) else None


def _color_spaces(value: Any) -> Iterator[Any]:
    """Every `color_space` in JSON values. Their depth is bounded by what the JSON reader can recurse into."""
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if "color_space" in node:
                yield node["color_space"]
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _as_color(value: Any) -> Color | None:
    colors: dict[str, Color] = {"rgb": "rgb", "bgr": "bgr"}
    return colors.get(value.lower()) if isinstance(value, str) else None


def _shown(value: Any) -> str:
    return show_text(repr(value))
