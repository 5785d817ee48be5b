"""How much memory a recipe needs on each device, and how much disk its checkpoints need, by part.

The sizes are counted from the networks themselves, without computing them, and from the recipe. An estimate stops
nothing but a disk that is too small: the allocator decides. docs/performance.md has the bytes of each part.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from adadistill.core.backbones import BACKBONE_NAMES, BackboneConfig
from adadistill.core.checkpoints import CheckpointConfig, list_checkpoints
from adadistill.core.communication import Placement, runs_teacher
from adadistill.core.device_kinds import DEVICES, USABLE_MEMORY, DeviceKind, memory_of_machine_gb
from adadistill.core.method.class_centres import adaptive_centre_bytes
from adadistill.core.method.slow_centres import slow_centres_dtype
from adadistill.core.network_cost import network_cost, network_values
from adadistill.core.recipe import Recipe
from adadistill.core.training.optimiser import parts_like_parameters

_MIB = 2**20
# Blocks of 2^22 values on CUDA and 2^18 on the CPU, in float32 and as weights, see kernels/margin_softmax.py.
_SOFTMAX_BLOCK_BYTES = {False: 64 * _MIB, True: 4 * _MIB}
_UNKNOWN_CUDA = "h100"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Where a recipe is to run, and on how much."""

    kind: DeviceKind
    memory_gb: float
    """Memory of each device, 10^9 bytes; on the CPU the share of one process."""
    ranks: int = 1
    """Devices in all."""
    images: int
    identities: int
    packed_layout: Literal["planes", "rgb"] = "planes"
    """How a packed store holds its images, which its recipe does not say."""
    teacher_arch: str | None = None
    """Network of the teacher, where the recipe does not say."""

    def __post_init__(self) -> None:
        for name in ("ranks", "memory_gb", "images", "identities"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.teacher_arch is not None and self.teacher_arch not in BACKBONE_NAMES:
            raise ValueError(
                f"the teacher's network must be one of {', '.join(BACKBONE_NAMES)}, got {self.teacher_arch}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceMemory:
    """Memory of one device, 10^9 bytes."""

    batch_per_device: int
    placement: Placement
    """Where class centres live."""
    parts_gb: dict[str, float]
    usable_gb: float
    """What is there, less what blocks of the allocator lose."""

    @property
    def needed_gb(self) -> float:
        """All parts together."""
        return sum(self.parts_gb.values())

    @property
    def fits(self) -> bool:
        """Whether that is no more than can be used."""
        return self.needed_gb <= self.usable_gb


def device_memory(
    recipe: Recipe, setting: Setting, *, batch: int | None = None, placement: Placement | None = None
) -> DeviceMemory:
    """The memory of one device by part; parts that are not there are left out.

    Args:
        batch: images of a device; None for its share of the recipe's global batch.
        placement: of the centres; None for the recipe's.
    """
    batch = recipe.data.global_batch_size // setting.ranks if batch is None else batch
    placement = recipe.centres.placement if placement is None else placement
    precision = precision_on(recipe, setting.kind)
    half = precision == "bfloat16"
    image_bytes = {"float64": 8, "float32": 4, "bfloat16": 2}[precision]
    value_bytes = 8 if precision == "float64" else 4
    at_once = min(batch, recipe.data.micro_batch_size or batch)
    student = network_cost(recipe.student, recipe.data.image_size)
    parameters = student.parameters * value_bytes
    pixels = recipe.data.image_size**2
    parts = {
        "student weights": parameters + (2 * student.parameters if half else 0),  # autocast's copies
        "gradients": parameters,
        **dict.fromkeys(parts_like_parameters(recipe.optim), parameters),
        "activations": at_once * (student.saved_values + 2 * student.largest_values) * image_bytes,
        "centres": _centre_bytes(recipe, setting, placement, value_bytes),
        "softmax workspace": _softmax_bytes(recipe, setting, batch, placement),
        "prefetched batches": (recipe.data.prefetch + 2) * batch * 3 * pixels * image_bytes,
        "packed store": _store_bytes(recipe, setting),
        "teacher network": _teacher_bytes(recipe, setting, at_once, half=half, image_bytes=image_bytes),
        "teacher embeddings": _cached_bytes(recipe, setting.images),
        "reserved": setting.kind.reserved_gb * 1e9,
    }
    return DeviceMemory(
        batch_per_device=batch,
        placement=placement,
        parts_gb={name: size / 1e9 for name, size in parts.items() if size},
        usable_gb=USABLE_MEMORY * setting.memory_gb,
    )


def precision_on(recipe: Recipe, kind: DeviceKind) -> str:
    """What `auto` means on a kind of device, else what the recipe says."""
    automatic = "float32" if kind.is_cpu else "bfloat16"
    return automatic if recipe.precision == "auto" else recipe.precision


def stored_image_bytes(recipe: Recipe, layout: str) -> int:
    """Bytes of one image in a packed store."""
    pixels = recipe.data.image_size**2
    return pixels * 3 // 2 if layout == "planes" else pixels * 3


def teacher_network(recipe: Recipe, told: str | None) -> tuple[str, str]:
    """Architecture of a teacher that runs, as far as it is known before it is loaded, and how it is known."""
    config = recipe.teacher
    assert config is not None, "asked for where a teacher runs"
    if config.arch is not None:
        return config.arch, "the recipe's"
    if told is not None:
        return told, "given"
    named = str(getattr(config, config.source or "", "")).lower()
    arch = next((name for name in BACKBONE_NAMES[::-1] if name in named), None)
    if arch is not None:
        return arch, "by its name"
    return "ir50", "not known before it is loaded: --teacher-arch says it"


def device_of_launch(kind: str | None, device: torch.device, world_size: int) -> tuple[DeviceKind, float, str]:
    """The kind of device that memory is estimated for, its memory in 10^9 bytes, and why this one, in words.

    Args:
        kind: as asked for; None takes the launch's, which is asked for its name and size where it is CUDA.
        world_size: processes of the launch.
    """
    if kind is not None and (size := DEVICES[kind].memory_gb) is not None:
        return DEVICES[kind], size, f"{kind}, as asked for"
    if kind is None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known = [one for one in DEVICES.values() if any(name in properties.name for name in one.row_names)]
        size = properties.total_memory / 1e9
        if known:
            return known[0], size, f"this launch's {properties.name}"
        return DEVICES[_UNKNOWN_CUDA], size, f"this launch's {properties.name}, reserved as on {_UNKNOWN_CUDA}"
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    here = int(text) if text.isascii() and text.isdigit() and 1 <= int(text) <= world_size else world_size
    shared = "" if here == 1 else f", shared by {here} processes"
    return DEVICES["cpu"], memory_of_machine_gb() / here, f"CPU, the memory of this machine{shared}"


def ways_to_fit(recipe: Recipe, setting: Setting, found: DeviceMemory) -> list[str]:
    """What may make a recipe fit that does not, as values of its keys where there are any."""
    ways = []
    batch = _largest(setting, recipe, (2**power for power in range(found.batch_per_device.bit_length() - 1, 0, -1)))
    if batch is not None:
        ways.append(f"{batch} images a device (data.global_batch_size={batch * setting.ranks})")
    for size in range(found.batch_per_device // 2, 1, -1):
        data = replace(recipe.data, micro_batch_size=size)
        if found.batch_per_device % size == 0 and device_memory(replace(recipe, data=data), setting).fits:
            ways.append(
                f"data.micro_batch_size={size}, the same batch in parts, for a third more of the student's time"
            )
            break
    if recipe.centres.kind == "adaptive" and recipe.centres.half is None:
        ways.append("centres.half=bfloat16, which takes two thirds off the centres")
    if batch is not None:
        return [*ways, "more devices"]
    if recipe.centres.kind == "trainable":
        return [*ways, "more devices, over which centres are spread"]
    return [*ways, "devices with more memory, as no batch fits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSpace:
    """Disk space of a run's checkpoints, in bytes."""

    parts_bytes: dict[str, int]
    """Tensors of one checkpoint; headers and JSON, some kilobytes, are not counted."""
    one_bytes: int
    kept: int
    """Checkpoints at the end of the run."""
    most_at_once: int
    """Checkpoints while a new one is written, before the oldest goes."""
    needed_bytes: int
    """What is needed beside what the run folder's checkpoints take already."""
    free_bytes: int | None
    """What is free on the disk of the run folder; None where the system does not tell."""


def checkpoint_space(recipe: Recipe, folder: Path, *, identities: int, steps_per_epoch: int) -> CheckpointSpace:
    """What the checkpoints of a run will take on its disk."""
    parts = checkpoint_parts(recipe, identities)
    one = sum(parts.values())
    saves = number_of_saves(recipe.checkpoint, epochs=recipe.optim.epochs, steps_per_epoch=steps_per_epoch)
    most = min(recipe.checkpoint.keep + 1, saves)
    return CheckpointSpace(
        parts_bytes=parts,
        one_bytes=one,
        kept=min(recipe.checkpoint.keep, saves),
        most_at_once=most,
        needed_bytes=max(0, most * one - _bytes_of_checkpoints(folder)),
        free_bytes=_free_bytes(folder),
    )


def checkpoint_parts(recipe: Recipe, identities: int) -> dict[str, int]:
    """Bytes of the tensors in one checkpoint, by what they are."""
    parameters, running_statistics = network_values(recipe.student, recipe.data.image_size)
    exact = torch.float64 if recipe.precision == "float64" else torch.float32
    centres = identities * recipe.student.embedding_dim
    kind, half = recipe.centres.kind, recipe.centres.half
    kept = parts_like_parameters(recipe.optim)
    parts = {"student": (parameters + running_statistics) * exact.itemsize}
    parts |= dict.fromkeys(kept, parameters * exact.itemsize)
    if kind == "adaptive":
        parts["class centres"] = centres * (exact if half is None else getattr(torch, half)).itemsize
    elif kind == "trainable":
        of_centres = ("class centres", *(f"{part} of the centres" for part in kept))
        parts |= dict.fromkeys(of_centres, centres * exact.itemsize)
    if recipe.geometry_margin.mode == "headroom":
        parts["slow centres"] = centres * slow_centres_dtype(half, exact).itemsize
    if (similarities := recipe.terms.similarities) is not None:
        parts["bank of similarities"] = 2 * similarities.bank * recipe.student.embedding_dim * exact.itemsize
    return parts


def number_of_saves(config: CheckpointConfig, *, epochs: int, steps_per_epoch: int) -> int:
    """Checkpoints that a run writes; the end is always saved, and a step is saved once."""
    total = epochs * steps_per_epoch
    periods = [config.every_steps or 0, (config.every_epochs or 0) * steps_per_epoch]
    every = [period for period in periods if period]
    both = math.lcm(*every) if len(every) == 2 else 0
    due = sum(total // period for period in every) - (total // both if both else 0)
    return due + all(total % period for period in every)


def _largest(setting: Setting, recipe: Recipe, batches: Iterable[int]) -> int | None:
    """The first of these batches a device that fits."""
    return next((batch for batch in batches if device_memory(recipe, setting, batch=batch).fits), None)


def _centre_bytes(recipe: Recipe, setting: Setting, placement: Placement, value_bytes: int) -> float:
    dim, kind, half = recipe.student.embedding_dim, recipe.centres.kind, recipe.centres.half
    centres = setting.identities * dim
    if kind == "none":
        return 0.0
    if kind == "trainable":  # values, gradient, unit rows and their gradient, the optimiser's state
        held = 4.0 + len(parts_like_parameters(recipe.optim))
        return held * value_bytes * centres / (setting.ranks if placement == "sharded" else 1)
    master = torch.float64 if value_bytes == 8 else torch.float32
    in_bfloat16 = precision_on(recipe, setting.kind) == "bfloat16" and not setting.kind.is_cpu
    unit: torch.dtype | None = torch.bfloat16 if in_bfloat16 else master
    if half is not None:
        master, unit = getattr(torch, half), None
    if kind == "frozen" and unit == master:  # the softmax reads the very rows
        return float(value_bytes * centres)
    return float(adaptive_centre_bytes(setting.identities, dim, master, unit))


def _softmax_bytes(recipe: Recipe, setting: Setting, batch: int, placement: Placement) -> float:
    if recipe.centres.kind == "none":
        return 0.0
    samples = batch * setting.ranks if placement == "sharded" else batch
    return _SOFTMAX_BLOCK_BYTES[setting.kind.is_cpu] + 4.0 * samples * 4 * recipe.student.embedding_dim


def _store_bytes(recipe: Recipe, setting: Setting) -> float:
    data = recipe.data
    if data.packed is None or data.packed_in not in ("device", "device_share"):
        return 0.0
    spread = setting.ranks if data.packed_in == "device_share" else 1
    return setting.images * stored_image_bytes(recipe, setting.packed_layout) / spread


def _teacher_bytes(recipe: Recipe, setting: Setting, at_once: int, *, half: bool, image_bytes: int) -> float:
    if not runs_teacher(recipe):
        return 0.0
    arch, _ = teacher_network(recipe, setting.teacher_arch)
    teacher = network_cost(BackboneConfig(arch=arch), recipe.data.image_size)
    return teacher.parameters * (4 + (2 if half else 0)) + 2.0 * at_once * teacher.largest_values * image_bytes


def _cached_bytes(recipe: Recipe, images: int) -> float:
    if recipe.teacher is None or not recipe.teacher.cache_on_device:
        return 0.0
    return images * (recipe.augment.views or 2) * recipe.student.embedding_dim * 2.0


def _bytes_of_checkpoints(folder: Path) -> int:
    """What the folder's checkpoints take already: they make room for new ones."""
    try:
        return sum(file.stat().st_size for saved in list_checkpoints(folder) for file in saved.iterdir())
    except OSError:  # one that goes meanwhile, or may not be listed
        return 0


def _free_bytes(folder: Path) -> int | None:
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        usage = shutil.disk_usage(existing)
    except (OSError, ValueError):
        return None
    return usage.free if usage.total else None  # some network file systems tell of no size
