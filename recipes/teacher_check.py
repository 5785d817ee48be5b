"""What `adadistill teacher check` looks at: a recipe's teacher beside itself as it was loaded, on training records."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadistill.core.distributed import LaunchError, distributed_session
from adadistill.core.precision import Precision, resolve_precision
from adadistill.core.recipe import Recipe
from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError
from adadistill.core.teachers import (
    LoadedTeacher,
    TeacherConfig,
    TeacherError,
    TeacherIdentity,
    compiles_in_loop,
    computes_in_torch,
    in_loop_teacher,
    load_source,
)
from adadistill.core.teachers.color_check import (
    ColorResult,
    color_advice,
    resolve_color,
    score_color_orders,
    second_witness,
)
from adadistill.core.teachers.face_pairs import pairs_of_records
from adadistill.core.teachers.knows_people import check_network
from adadistill.loaders.pipelines.pipeline import named_records
from adadistill.loaders.pixels import decode_image, to_network_input
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.image_source import ImageSource
from adadistill.recipes.scoring.benchmark_pass import device_name

Floats: TypeAlias = npt.NDArray[np.float64]

LEAST_COSINE = 0.999
"""Mean, of what training runs to what was loaded. Rounding to bfloat16 leaves 0.9998 of an IResNet-50; a layer that was
folded wrongly, or that bfloat16 does not hold, leaves far less."""

_WARM_UP_CALLS = 3  # compilation, and the choice of convolution algorithms


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """One number for each image of the sample."""

    mean: float
    p1: float
    """First percentile."""
    least: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherReport:
    """What a check found."""

    recipe: str
    identity: TeacherIdentity
    runs: str
    """Number format, device, and whether it is compiled, of the network that training runs."""
    images: int
    batch_size: int
    cosine: Spread
    """Of the network that training runs to the one that was loaded."""
    images_per_s: float
    loaded_images_per_s: float
    mirror_cosine: float
    """Mean, of an image to its mirror image."""
    norm: Spread
    """Of the raw embeddings."""
    colours: ColorResult | None
    """None where no pairs can be made; a warning then says why."""
    warnings: tuple[str, ...]

    @property
    def failure(self) -> str | None:
        """Why this teacher must not be used as the recipe says; None where nothing speaks against it."""
        if self.cosine.mean >= LEAST_COSINE:
            return None
        return (
            f"the network that training would run agrees with the one that was loaded to a mean cosine of "
            f"{self.cosine.mean:.6f}, at least {LEAST_COSINE} is wanted; try precision: float32, and teacher.compile: "
            "false, to find out which of them it does not bear"
        )

    def summary(self) -> str:
        """Lines for people."""
        cosine, norm = self.cosine, self.norm
        lines = [
            f"teacher  {self.identity.summary()}",
            f"runs     {self.runs}; {self.images} images in batches of {self.batch_size}",
            f"agrees   cosine to the network as loaded: mean {cosine.mean:.6f}, 1 % under {cosine.p1:.6f}, "
            f"least {cosine.least:.6f}",
            f"speed    {self.images_per_s:.0f} images/s; as loaded {self.loaded_images_per_s:.0f} images/s",
            f"mirror   cosine of an image to its mirror image: mean {self.mirror_cosine:.4f}",
            f"norms    mean {norm.mean:.4g}, 1 % under {norm.p1:.4g}, least {norm.least:.4g}",
        ]
        if self.colours is not None:
            score = self.colours.of(self.identity.preprocessing.color)
            lines += [f"people   {score.summary()}", self.colours.summary()]
        return "\n".join([*lines, *(f"WARNING: {warning}" for warning in self.warnings)])

    def to_json(self) -> dict[str, Any]:
        """All fields and the failure, as JSON values."""
        return asdict(self) | {"failure": self.failure}


def check_teacher(
    recipe: Recipe, *, images: int = 256, batch_size: int = 64, device: str | None = None
) -> TeacherReport:
    """Load a recipe's teacher as training would, and look at what it does with the recipe's records.

    Args:
        images: evenly spread training records to embed, plain and mirrored; fewer where there are fewer.
        batch_size: images per forward pass.
        device: `cpu`, `cuda`, `cuda:N`, or None for CUDA where there is one.

    Raises:
        TeacherError, CheckpointError, WeightFileError, OSError: the teacher or the records cannot be loaded, or, with
            `color: auto`, training would refuse the teacher.
        RecordError, ImageDecodeError: a record is damaged.
        NonFiniteEmbeddingsError: the teacher gives NaN or infinity.
        LaunchError: there is no such device, or several processes were launched.
        ValueError: the recipe has no network for a teacher.
    """
    config = _network_config(recipe)
    side = recipe.data.image_size
    with distributed_session(device) as ranks:
        if ranks.world_size > 1:
            raise LaunchError(f"a teacher is checked by one process, and {ranks.world_size} were launched")
        if ranks.device.type == "cuda":
            torch.backends.cudnn.benchmark = not recipe.deterministic  # as in training
        records = named_records(recipe.data)
        loaded = load_source(config, image_size=side, ranks=ranks)
        sets = recipe.evaluation.sets
        loaded, colors = resolve_color(loaded, config, records=records, image_size=side, ranks=ranks, sets=sets)
        precision = resolve_precision(recipe.precision, ranks.device)
        images_u8 = _sampled_images(records, side, images)
        sample = _Sample(images_u8, min(batch_size, len(images_u8)), ranks.device, loaded.identity.name)
        as_loaded = _embed_as_loaded(loaded, sample)
        in_loop = _embed_in_loop(loaded, config, sample, precision)
        warnings = _fit_warnings(recipe, loaded)
        if colors is None:
            colors, obstacle = _scored(loaded, records, sample)
            warnings += obstacle
        warnings += _color_warnings(colors, recipe, loaded, sample)
        of_records = colors if config.color_set is None else None
        score = None if of_records is None else of_records.of(loaded.identity.preprocessing.color)
        try:
            check_network(loaded, records=records, image_size=side, ranks=ranks, score=score)
        except TeacherError as error:
            warnings += (f"training {'will refuse this teacher' if config.check else 'is not told'}: {error}",)
    return TeacherReport(
        recipe=recipe.name,
        identity=loaded.identity,
        runs=_how_it_runs(loaded, precision, ranks.device, compiles=compiles_in_loop(loaded, config, ranks.device)),
        images=len(images_u8),
        batch_size=sample.batch_size,
        cosine=_spread(_cosines(as_loaded.both, in_loop.both)),
        images_per_s=in_loop.images_per_s,
        loaded_images_per_s=as_loaded.images_per_s,
        mirror_cosine=float(_cosines(in_loop.plain, in_loop.mirrored).mean()),
        norm=_spread(_norms(as_loaded.plain)),
        colours=colors,
        warnings=warnings,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Images to embed, and how."""

    images_u8: Tensor
    """(n, H, W, 3) uint8 RGB."""
    batch_size: int
    device: torch.device
    teacher: str
    """Named in errors."""


@dataclass(frozen=True, slots=True, eq=False)
class _Embedded:
    """What one network makes of a sample."""

    plain: Floats
    """(n, D)."""
    mirrored: Floats
    """(n, D), of the mirror images."""
    images_per_s: float

    @property
    def both(self) -> Floats:
        """(2n, D)."""
        return np.concatenate([self.plain, self.mirrored])


def _network_config(recipe: Recipe) -> TeacherConfig:
    """The recipe's teacher, if it is a network."""
    if recipe.teacher is None:
        raise ValueError(f"recipe {recipe.name} has no teacher to check")
    if recipe.teacher.source is None:
        stored = recipe.teacher.embeddings or recipe.teacher.cache
        raise ValueError(
            f"recipe {recipe.name} has only stored embeddings for a teacher ({stored}), and no network to check; "
            "`adadistill cache verify` checks a cache"
        )
    return recipe.teacher


def _sampled_images(records: ImageSource, image_size: int, count: int) -> Tensor:
    """(n, H, W, 3) uint8, evenly spread over the records, and of the size that training wants."""
    checked = CheckedRecords(records, image_size)
    ids = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(np.int64))
    pixels = [decode_image(checked.read(record).body, where=checked.where(record)) for record in ids.tolist()]
    return torch.from_numpy(np.stack(pixels))


def _embed_as_loaded(loaded: LoadedTeacher, sample: _Sample) -> _Embedded:
    """Raw embeddings by the network as it was loaded: float32, no layer folded, not compiled."""
    network = loaded.network().to(sample.device).eval()

    def embed(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(images)

    try:
        return _embed(embed, lambda batch_u8: to_network_input(batch_u8, device=sample.device), sample)
    finally:
        loaded.body.to("cpu")


def _embed_in_loop(loaded: LoadedTeacher, config: TeacherConfig, sample: _Sample, precision: Precision) -> _Embedded:
    """Unit embeddings by the network that training runs, of images in the format that training gives it."""
    teacher = in_loop_teacher(loaded, config, precision=precision, device=sample.device, batch_size=sample.batch_size)

    def to_images(batch_u8: Tensor) -> Tensor:
        return to_network_input(
            batch_u8, device=sample.device, dtype=precision.image_dtype, channels_last=precision.channels_last
        )

    return _embed(teacher.embed, to_images, sample)


def _embed(embed: Callable[[Tensor], Tensor], to_images: Callable[[Tensor], Tensor], sample: _Sample) -> _Embedded:
    """Embed a sample both ways. The speed is that of the median whole batch, after warm-up, images on the device."""
    first = to_images(sample.images_u8[: sample.batch_size])
    for _ in range(_WARM_UP_CALLS):
        embed(first)
    rows: dict[bool, Floats] = {}
    seconds = []
    for mirrored in (False, True):
        embedded = []
        for batch_u8 in sample.images_u8.split(sample.batch_size):
            images = to_images(batch_u8.flip(2) if mirrored else batch_u8)
            started = _time_of(sample.device)
            embeddings = embed(images)
            if len(images) == sample.batch_size:
                seconds.append(_time_of(sample.device) - started)
            embedded.append(embeddings.double().cpu().numpy())
        rows[mirrored] = np.concatenate(embedded)
        _refuse_non_finite(rows[mirrored], sample.teacher)
    return _Embedded(rows[False], rows[True], sample.batch_size / statistics.median(seconds))


def _refuse_non_finite(rows: Floats, teacher: str) -> None:
    damaged = int((~np.isfinite(rows).all(axis=1)).sum())
    if damaged:
        raise NonFiniteEmbeddingsError(
            f"teacher {teacher} gives NaN or infinity for {damaged} of {len(rows)} training images"
        )


def _time_of(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _how_it_runs(loaded: LoadedTeacher, precision: Precision, device: torch.device, *, compiles: bool) -> str:
    if not computes_in_torch(loaded.body):
        return f"as its file says, for a run on {device_name(device)}"
    number_format = str(precision.autocast_dtype or precision.dtype).removeprefix("torch.")
    return f"{number_format} on {device_name(device)}, {'compiled' if compiles else 'not compiled'}"


def _scored(loaded: LoadedTeacher, records: ImageSource, sample: _Sample) -> tuple[ColorResult | None, tuple[str, ...]]:
    """Both colour orders scored on pairs of the records, or a warning that says why they cannot be."""
    try:
        pairs = pairs_of_records(records, image_size=loaded.identity.image_size)
    except TeacherError as error:
        return None, (f"colour order and people were not scored: {error}",)
    return score_color_orders(loaded, pairs, device=sample.device, batch_size=sample.batch_size), ()


def _fit_warnings(recipe: Recipe, loaded: LoadedTeacher) -> tuple[str, ...]:
    """What training would refuse, or do otherwise, although the network itself is sound."""
    warnings = []
    dim = loaded.identity.embedding_dim
    if dim != recipe.student.embedding_dim:
        warnings.append(
            f"training will refuse this teacher: its embeddings are {dim}-d, the student's "
            f"{recipe.student.embedding_dim}-d; set student.embedding_dim={dim}"
        )
    if recipe.teacher is not None and recipe.teacher.cache is not None:
        warnings.append(f"training reads the cache {recipe.teacher.cache} and does not run this network")
    return tuple(warnings)


def _color_warnings(
    colors: ColorResult | None, recipe: Recipe, loaded: LoadedTeacher, sample: _Sample
) -> tuple[str, ...]:
    if colors is None or recipe.teacher is None:
        return ()
    used, auto = loaded.identity.preprocessing.color, recipe.teacher.color == "auto"
    if colors.better is None:
        return (f"both colour orders score alike; {used} stands, as its source states",) if auto else ()
    if colors.better == used:
        return ()
    who = "the recipe sets" if recipe.teacher.color == used else "its source states"
    sets, side = recipe.evaluation.sets, loaded.identity.image_size
    other = second_witness(loaded, sets, image_size=side, device=sample.device)
    return (
        f"COLOUR ORDER: {who} {used}, but this teacher tells people apart better in {colors.better} on "
        f"{colors.origin} (z = {abs(colors.z):.1f}). {color_advice(colors, other, used)}",
    )


def _norms(rows: Floats) -> Floats:
    return np.linalg.norm(rows, axis=1)


def _cosines(first: Floats, second: Floats) -> Floats:
    """(n,) of rows; 0 where one is zero."""
    lengths = _norms(first) * _norms(second)
    lengths[lengths == 0.0] = 1.0
    return (first * second).sum(axis=1) / lengths


def _spread(values: Floats) -> Spread:
    return Spread(mean=float(values.mean()), p1=float(np.percentile(values, 1)), least=float(values.min()))
