"""Public weight files as teachers: insightface's and AdaDistill's `.pth`, AdaFace's `.ckpt`, CVLface's tensors.

Read as data alone (`core/backbones/weight_files.py`), converted strictly: a tensor too many or too few is an error,
since a teacher of which one layer stayed random still trains a student, only a worse one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from adadistill.core.backbones import BACKBONES, BackboneConfig, BackboneName, build_backbone
from adadistill.core.backbones.public_formats import FORMATS, Publisher, recognise_backbone, resolve_publisher
from adadistill.core.backbones.public_weights import load_public_weights
from adadistill.core.backbones.weight_files import WeightFileError, read_weight_file
from adadistill.core.distributed import Ranks
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import LoadedTeacher, NetworkSource, TeacherError, teacher_of_file
from adadistill.core.teachers.preprocessing import Color


class _Weights(NetworkSource):
    def load(self, config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
        """Into our own network.

        Raises:
            FileNotFoundError, WeightFileError: the file cannot be read.
            TeacherError: it is another network, or nothing tells its colour order.
        """
        assert config.weights is not None
        path = Path(config.weights)
        try:
            found = read_public_network(path, arch=config.arch, weight_format=config.format, image_size=image_size)
        except WeightFileError:
            raise
        except ValueError as error:
            raise TeacherError(f"{path}: {error}") from None
        backbone, publisher = found.backbone, found.publisher
        stated: Color | None = None if publisher is None else FORMATS[publisher].color
        if stated is None and config.color is None:
            raise TeacherError(
                f"{path}: the names of these {backbone.arch} tensors do not tell whether AdaFace (bgr) or CVLface "
                "(rgb) trained them, and the wrong colour order costs accuracy silently; set teacher.format to adaface "
                "or cvlface, or teacher.color to rgb, bgr, or auto, which tries both"
            )
        return teacher_of_file(
            path,
            found.network,
            kind="weights",
            arch=backbone.arch,
            embedding_dim=backbone.embedding_dim,
            image_size=image_size,
            stated_color=stated,
        )


SOURCE = _Weights()


@dataclass(frozen=True, slots=True)
class PublicNetwork:
    """A public weight file in our own network, images as they were in its training."""

    network: nn.Module
    backbone: BackboneConfig
    publisher: Publisher | None
    """None where nothing tells."""


def read_public_network(path: Path, *, arch: BackboneName | None, weight_format: str, image_size: int) -> PublicNetwork:
    """Read and convert a public weight file, strictly.

    Args:
        path: `.pth`, `.pt`, `.ckpt` or `.safetensors`.
        arch: what it holds; None to recognise it.
        weight_format: who published it, or `auto`.
        image_size: pixels it was trained on; another size does not fit the last layer.

    Raises:
        FileNotFoundError, WeightFileError: the file cannot be read.
        ValueError: it is another network, with the list of what does not fit.
    """
    public = read_weight_file(path)
    backbone = recognise_backbone(public)
    if arch is not None:
        backbone = BackboneConfig(
            arch=arch, embedding_dim=backbone.embedding_dim, se=backbone.se and BACKBONES[arch].takes_se
        )
    publisher = resolve_publisher(weight_format, backbone, public)
    network = build_backbone(backbone, image_size, generator=0)
    load_public_weights(network, public)
    return PublicNetwork(network, backbone, publisher)
