"""The teacher of a training run: loaded, checked against student and records, and ready for the loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adadistill.core.distributed import Ranks, run_on_main
from adadistill.core.precision import Precision
from adadistill.core.scoring.evaluation import rank_share
from adadistill.core.teachers.cache_views import needed_views
from adadistill.core.teachers.cached_teacher import CachedTeacher
from adadistill.core.teachers.color_check import ColorResult, resolve_color
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import ImageTeacher, LoadedTeacher, RecordTeacher, TeacherError, TeacherIdentity
from adadistill.core.teachers.knows_people import check_network, check_rows
from adadistill.core.teachers.network_teacher import in_loop_teacher
from adadistill.core.teachers.preprocessing import Color
from adadistill.core.teachers.sources import load_source
from adadistill.core.teachers.stored_embeddings import StoredEmbeddings
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.pipelines.pipeline import DataConfig
from adadistill.loaders.records.image_source import ImageSource
from adadistill.loaders.teacher_cache import TeacherCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltTeacher:
    """The teacher of a run, and which one it is."""

    teacher: ImageTeacher | RecordTeacher
    name: str
    """For people; never a whole path."""
    sha256: str | None
    """Of its weights, also where only their embeddings are read; None for rows that nothing binds."""


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
        records: the training images; `data` and `augmentation` say how they are read and what is done to them.
        embedding_dim: of the student.
        precision: of the run.
        sets: verification sets of the recipe, see `resolve_color`.

    Raises:
        TeacherError: it does not fit, or does not know the people of the records. Loading errors keep
            their own types, with the path in their text.
    """
    if config.embeddings is not None:
        if augmentation.alters_pixels:
            raise TeacherError(
                f"{config.embeddings} holds embeddings of images as stored and mirrored, and the recipe augments "
                "images; build a cache of its views (teacher.cache, augment.views), or set augment.policy to none"
            )
        stored = StoredEmbeddings(
            config.embeddings,
            num_records=len(records),
            embedding_dim=embedding_dim,
            mirrors=data.mirror_probability > 0.0,
            device=ranks.device,
            dtype=precision.dtype,
        )
        built = BuiltTeacher(stored, Path(config.embeddings).name, None)
        _check_stored(config, stored, config.embeddings, augmentation, records, ranks)
        return built
    if config.cache is not None:
        built = _cached(
            config,
            records=records,
            data=data,
            augmentation=augmentation,
            embedding_dim=embedding_dim,
            precision=precision,
            ranks=ranks,
        )
        assert isinstance(built.teacher, CachedTeacher)
        _check_stored(config, built.teacher, f"cache {config.cache}", augmentation, records, ranks)
        return built
    loaded = load_source(config, image_size=data.image_size, ranks=ranks)
    _refuse_other_dim(loaded.identity.name, loaded.identity.embedding_dim, embedding_dim)
    size = data.image_size
    loaded, colors = resolve_color(loaded, config, records=records, image_size=size, ranks=ranks, sets=sets)
    check_loaded(config, loaded, colors, records=records, image_size=size, ranks=ranks)
    if ranks.is_main:
        _announce(loaded.identity, colors)
    local_batch_size = data.global_batch_size // ranks.world_size
    batch_size = local_batch_size // data.parts(local_batch_size)
    teacher = in_loop_teacher(loaded, config, precision=precision, device=ranks.device, batch_size=batch_size)
    return BuiltTeacher(teacher, loaded.identity.name, loaded.identity.sha256)


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


def _check_stored(
    config: TeacherConfig,
    stored: RecordTeacher,
    name: str,
    augmentation: Augmentation,
    records: ImageSource,
    ranks: Ranks,
) -> None:
    """Refuse rows that do not know the people of the records; rank 0 looks."""
    if config.check:
        run_on_main(lambda: check_rows(stored, augmentation, name=name, records=records), ranks)


def _cached(
    config: TeacherConfig,
    *,
    records: ImageSource,
    data: DataConfig,
    augmentation: Augmentation,
    embedding_dim: int,
    precision: Precision,
    ranks: Ranks,
) -> BuiltTeacher:
    """Open the recipe's cache and check that it is of this teacher, these records and the views training needs."""
    assert config.cache is not None
    cache = TeacherCache(config.cache)
    _refuse_other_dim(f"cache {config.cache}", cache.header.embedding_dim, embedding_dim)
    cache.require(
        teacher=None if config.source is None else expected_identity(config, cache, data.image_size, ranks),
        records=record_binding(records),
        views=needed_views(augmentation),
    )
    if config.cache_verify:
        cache.verify(*rank_share(cache.header.num_blocks, ranks.rank, ranks.world_size))
    if ranks.is_main:
        logger.info(
            "teacher: cache %s of %s, %d views, digest %s%s",
            config.cache,
            cache.header.teacher.get("name"),
            len(cache.header.views),
            cache.digest()[:12],
            "" if config.cache_verify else ", checksums not verified",
        )
    teacher = CachedTeacher(
        cache,
        augmentation=augmentation,
        device=ranks.device,
        dtype=precision.dtype,
        on_device=config.cache_on_device,
    )
    return BuiltTeacher(teacher, str(cache.header.teacher.get("name")), str(cache.header.teacher["sha256"]))


def expected_identity(config: TeacherConfig, cache: TeacherCache, image_size: int, ranks: Ranks) -> dict[str, Any]:
    """What the header of a cache of the recipe's network must say of its teacher.

    The weights are read and hashed, the network does not run. With `color: auto` the order that was found when the
    cache was built stands.
    """
    identity = load_source(config, image_size=image_size, ranks=ranks).identity
    if config.color == "auto":
        built_with = cache.header.teacher.get("preprocessing")
        if isinstance(built_with, Mapping) and built_with.get("color") in ("rgb", "bgr"):
            color: Color = "rgb" if built_with["color"] == "rgb" else "bgr"
            identity = replace(identity, preprocessing=replace(identity.preprocessing, color=color))
    return identity.to_json()


def record_binding(records: ImageSource) -> dict[str, Any]:
    """What binds a cache to the records it was made from."""
    return {
        "fingerprint": records.fingerprint(),
        "num_records": len(records),
        "num_classes": records.num_classes,
        "name": records.path.name,
    }


def _refuse_other_dim(name: str, teacher_dim: int, student_dim: int) -> None:
    if teacher_dim != student_dim:
        raise TeacherError(
            f"teacher {name} gives {teacher_dim}-d embeddings, the student's are {student_dim}-d; class centres live "
            "in one space, so set student.embedding_dim to the teacher's"
        )


def _announce(identity: TeacherIdentity, colors: ColorResult | None) -> None:
    logger.info("teacher: %s", identity.summary())
    if colors is not None:
        for line in colors.summary().splitlines():
            logger.info("  %s", line)
