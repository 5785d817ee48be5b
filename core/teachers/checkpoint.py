"""Teachers from our own checkpoints: what was trained here teaches the next student."""

from __future__ import annotations

from pathlib import Path

import torch

from adadistill.core.checkpoints.files import MODEL_NAME, read_manifest
from adadistill.core.checkpoints.network_checkpoint import load_network
from adadistill.core.distributed import Ranks
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import LoadedTeacher, NetworkSource, TeacherIdentity
from adadistill.core.teachers.preprocessing import Preprocessing


class _Checkpoint(NetworkSource):
    def load(self, config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
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


SOURCE = _Checkpoint()
