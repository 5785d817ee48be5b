"""The teacher of a training run: opened, checked against student and records, and ready for the loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from adadistill.core.distributed import Ranks, run_on_main
from adadistill.core.precision import Precision
from adadistill.core.teachers.color_check import ColorResult, resolve_color
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import BuiltTeacher, LoadedTeacher, RecordTeacher, TeacherUse, refuse_other_dim
from adadistill.core.teachers.knows_people import check_network, check_rows
from adadistill.core.teachers.network_teacher import in_loop_teacher
from adadistill.core.teachers.sources import load_source, row_source
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.pipelines.pipeline import DataConfig
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)


def build_teacher(
    config: TeacherConfig,
    *,
    records: ImageSource,
    data: DataConfig,
    augmentation: Augmentation,
    embedding_dim: int,
    precision: Precision,
    ranks: Ranks,
    sets: Sequence[str] = (),
) -> BuiltTeacher:
    """Load the teacher of a recipe and check that it fits student and records. All ranks call it together.

    Args:
        records, data, augmentation, embedding_dim, precision, ranks: as `TeacherUse` says.
        sets: verification sets of the recipe, see `resolve_color`.

    Raises:
        TeacherError: it does not fit, or does not know the people of the records. Loading errors keep
            their own types, with the path in their text.
    """
    use = TeacherUse(
        records=records,
        data=data,
        augmentation=augmentation,
        embedding_dim=embedding_dim,
        precision=precision,
        ranks=ranks,
    )
    rows_from = row_source(config)
    if rows_from is None:
        return _network(config, use, sets)
    built = rows_from.open(config, use)
    if config.check:
        assert isinstance(built.teacher, RecordTeacher)
        rows, name = built.teacher, config.embeddings or f"cache {config.cache}"
        run_on_main(lambda: check_rows(rows, augmentation, name=name, records=records), ranks)
    return built


def check_loaded(
    config: TeacherConfig,
    loaded: LoadedTeacher,
    colors: ColorResult | None,
    *,
    records: ImageSource,
    image_size: int,
    ranks: Ranks,
) -> None:
    """Try a network on the records, see `check_network`; not again where its colour order was found on them."""
    if config.check:
        score = None
        if colors is not None and config.color_set is None:
            score = colors.of(loaded.identity.preprocessing.color)
        check_network(loaded, records=records, image_size=image_size, ranks=ranks, score=score)


def _network(config: TeacherConfig, use: TeacherUse, sets: Sequence[str]) -> BuiltTeacher:
    size, ranks, records = use.data.image_size, use.ranks, use.records
    loaded = load_source(config, image_size=size, ranks=ranks)
    refuse_other_dim(f"teacher {loaded.identity.name}", loaded.identity.embedding_dim, use.embedding_dim)
    loaded, colors = resolve_color(loaded, config, records=records, image_size=size, ranks=ranks, sets=sets)
    check_loaded(config, loaded, colors, records=records, image_size=size, ranks=ranks)
    if ranks.is_main:
        logger.info("teacher: %s", loaded.identity.summary())
        for line in [] if colors is None else colors.summary().splitlines():
            logger.info("  %s", line)
    local_batch_size = use.data.global_batch_size // ranks.world_size
    batch_size = local_batch_size // use.data.parts(local_batch_size)
    teacher = in_loop_teacher(loaded, config, precision=use.precision, device=ranks.device, batch_size=batch_size)
    return BuiltTeacher(teacher, loaded.identity.name, loaded.identity.sha256)
