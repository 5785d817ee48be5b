"""What a recipe will need and how fast it will run on devices of a kind: memory and time by part, before its launch.

The model is a sum of parts. A step waits for nothing it does not have to: the loader works beside it, and gradients and
running statistics travel during backward, which is two thirds of the student's time; what is left of them, the gathers
and the update come on top. With B images a device, G of all ranks, C classes of D dimensions:

    student      measured, else 3 x forward operations / rate + traffic / bandwidth, not overlapped; at least launches;
                 a third more where it takes its batch in parts (`data.micro_batch_size`), which pass through it twice
    teacher      forward only; nothing where its embeddings are stored
    softmax      4 B C D operations, 8 B C D with trainable centres; sharded centres: 4 or 8 G (C / R) D, the same
    update       20 bytes a student parameter, 12 G D of adaptive centres, 28 C D of trainable ones
    transfers    ring bytes / link rate + latency, by `core/communication.py`
    loader       images a second of its workers: a ceiling, no addend

A plan is no measurement. Its rates are those of measured rows where there are any for the device, else constants of
`devices.py`; the student's time lies between that of fused and that of unfused operators, and the plan says both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from adadistill.core.backbones import BACKBONE_NAMES, BackboneConfig
from adadistill.core.communication import (
    CENTRE_GRADIENT,
    RUNNING_STATISTICS,
    STUDENT_GRADIENT,
    Placement,
    Transfer,
    runs_teacher,
    step_transfers,
    wire_bytes,
)
from adadistill.core.cost_model.devices import (
    COLLECTIVE_LATENCY_US,
    DECODED_PER_CORE,
    EAGER_STEP_PASSES,
    FUSED_STEP_PASSES,
    LAUNCH_US,
    PACKED_PER_CORE,
    STEP_LAUNCHES,
    USABLE_MEMORY,
    DeviceModel,
)
from adadistill.core.cost_model.measured_rows import MeasuredRows
from adadistill.core.cost_model.network_cost import NetworkCost, network_cost
from adadistill.core.method.class_centres import adaptive_centre_bytes
from adadistill.core.recipe import Recipe
from adadistill.core.training.optimiser import parts_like_parameters

Basis = Literal["measured", "assumed"]

_DURING_BACKWARD = (STUDENT_GRADIENT, RUNNING_STATISTICS, CENTRE_GRADIENT)
_BACKWARD_SHARE = 2.0 / 3.0
_SECOND_FORWARD = 4.0 / 3.0
"""Of a student that takes its batch in parts, over one that takes it whole: one more forward pass."""
_MIB = 2**20
# Blocks of 2^22 values on CUDA and 2^18 on the CPU, in float32 and as weights, see kernels/margin_softmax.py.
_SOFTMAX_BLOCK_BYTES = {False: 64 * _MIB, True: 4 * _MIB}


class PlanError(ValueError):
    """The recipe cannot run there, or the plan lacks something; the text says why, and what would do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Where a recipe is to run."""

    device: DeviceModel
    ranks: int
    """Devices in all. Positive."""
    nodes: int
    """Machines that they are spread over evenly. Positive."""
    memory_gb: float
    """Of each device, 10^9 bytes; for `cpu` of one process, its share of the machine."""
    cores: int
    """CPU cores for each device; for `cpu` those that it computes on."""
    network_gbit_per_s: float
    """Between nodes, of one node."""
    images: int
    """Records N."""
    identities: int
    """Classes C."""
    packed_layout: Literal["planes", "rgb"] = "planes"
    """Of a packed store."""
    teacher_arch: str | None = None
    """Network of the teacher, where the recipe does not say."""

    def __post_init__(self) -> None:
        for name in ("ranks", "nodes", "memory_gb", "cores", "network_gbit_per_s", "images", "identities"):
            if not 0 < getattr(self, name) < math.inf:
                raise PlanError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.ranks % self.nodes:
            raise PlanError(f"{self.ranks} devices cannot be spread evenly over {self.nodes} nodes")
        if self.teacher_arch is not None and self.teacher_arch not in BACKBONE_NAMES:
            raise PlanError(
                f"the teacher's network must be one of {', '.join(BACKBONE_NAMES)}, got {self.teacher_arch}"
            )


@dataclass(frozen=True, slots=True)
class Input:
    """A number that the plan rests on and did not count."""

    name: str
    value: float | str
    unit: str
    basis: Basis
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A prediction. Memory and time are of one device."""

    batch_per_device: int
    placement: Placement
    memory_gb: dict[str, float]
    """By part, 10^9 bytes."""
    usable_memory_gb: float
    step_ms: dict[str, float]
    """By part, one after the other; `loader` is not among them."""
    loader_ms: float
    """What the loader needs for the same step, beside it."""
    step_ms_least: float
    """With a student whose operators are all fused, and arithmetic and traffic overlapped."""
    step_ms_most: float
    """With a student whose operators run alone."""
    bottleneck: str
    transfers: list[Transfer]
    images_per_s: float
    """Of all devices."""
    images_per_s_range: tuple[float, float]
    epoch_s: float
    total_s: float
    """All epochs; evaluation and checkpoints not counted."""
    inputs: list[Input]
    reasons: list[str]
    """Why batch and placement are what they are."""

    @property
    def needed_memory_gb(self) -> float:
        """All parts together."""
        return sum(self.memory_gb.values())

    @property
    def fits(self) -> bool:
        """Whether that is no more than can be used."""
        return self.needed_memory_gb <= self.usable_memory_gb


class StepModel:
    """One recipe on one launch, at one batch a device and one placement of trainable centres.

    Raises:
        PlanError: from `plan`, where an epoch has no step.
    """

    def __init__(self, recipe: Recipe, launch: Launch, rows: MeasuredRows, batch: int, placement: Placement) -> None:
        self.recipe, self.launch, self.rows, self.batch, self.placement = recipe, launch, rows, batch, placement
        self.at_once = min(batch, recipe.data.micro_batch_size or batch)
        self.parts = math.ceil(batch / self.at_once)
        self.device = launch.device
        automatic = "float32" if self.device.is_cpu else "bfloat16"
        self.precision = automatic if recipe.precision == "auto" else recipe.precision
        self.half = self.precision == "bfloat16"
        self.image_bytes = {"float64": 8, "float32": 4, "bfloat16": 2}[self.precision]
        self.value_bytes = 8 if self.precision == "float64" else 4
        self.student = network_cost(recipe.student, recipe.data.image_size)
        self.teacher: NetworkCost | None = None
        self.inputs: list[Input] = []
        if runs_teacher(recipe):
            arch = self._teacher_arch()
            self.teacher = network_cost(BackboneConfig(arch=arch), recipe.data.image_size)

    @property
    def images(self) -> int:
        """G, of all ranks."""
        return self.batch * self.launch.ranks

    def plan(self) -> Plan:
        """Everything put together."""
        transfers = self._transfers()
        times = {"student": self._student_s()}
        least, most = self._student_bounds_s()
        if self.teacher is not None:
            times["teacher"] = self._teacher_s()
        if self.recipe.centres.kind != "none":
            times["softmax"] = self._softmax_s()
        times["update"] = self._update_s()
        if self.launch.ranks > 1:
            times["transfers"] = self._exposed_transfers_s(transfers, times["student"])
        loader_s = self._loader_s()
        computed = sum(times.values())
        step_s = max(computed, loader_s)
        rest = computed - times["student"]
        bottleneck = "loader" if loader_s > computed else max(times, key=times.__getitem__)
        steps_per_epoch = self.launch.images // self.images
        if steps_per_epoch == 0:
            raise PlanError(
                f"a global batch of {self.images} is larger than the {self.launch.images} images; an epoch has no step"
            )
        # A measured student may lie outside what the model expects.
        least_s, most_s = min(step_s, max(least + rest, loader_s)), max(step_s, most + rest)
        return Plan(
            batch_per_device=self.batch,
            placement=self.placement,
            memory_gb=self._memory_gb(),
            usable_memory_gb=USABLE_MEMORY * self.launch.memory_gb,
            step_ms={name: 1e3 * seconds for name, seconds in times.items()},
            loader_ms=1e3 * loader_s,
            step_ms_least=1e3 * least_s,
            step_ms_most=1e3 * most_s,
            bottleneck=bottleneck,
            transfers=transfers,
            images_per_s=self.images / step_s,
            images_per_s_range=(self.images / most_s, self.images / least_s),
            epoch_s=steps_per_epoch * step_s,
            total_s=self.recipe.optim.epochs * steps_per_epoch * step_s,
            inputs=self.inputs,
            reasons=[],
        )

    # Memory

    def _memory_gb(self) -> dict[str, float]:
        """By part; parts that are not there are left out."""
        parameters = self.student.parameters * self.value_bytes
        weights = parameters + (2 * self.student.parameters if self.half else 0)  # autocast's copies
        side, prefetch = self.recipe.data.image_size, self.recipe.data.prefetch + 2
        parts = {
            "student weights": weights,
            "gradients": parameters,
            **dict.fromkeys(parts_like_parameters(self.recipe.optim), parameters),
            "activations": self.at_once
            * (self.student.saved_values + 2 * self.student.largest_values)
            * self.image_bytes,
            "centres": self._centre_bytes(),
            "softmax workspace": self._softmax_bytes(),
            "prefetched batches": prefetch * self.batch * 3 * side * side * self.image_bytes,
            "packed store": self._store_bytes(),
            "teacher network": self._teacher_bytes(),
            "teacher embeddings": self._cached_bytes(),
            "reserved": self.device.reserved_gb * 1e9,
        }
        self._assume("reserved memory", self.device.reserved_gb, "GB", "context, workspaces, communication buffers")
        self._assume("usable share of memory", USABLE_MEMORY, "", "what blocks of the allocator leave")
        self._assume("memory", self.launch.memory_gb, "GB", "given, or the device's")
        return {name: size / 1e9 for name, size in parts.items() if size}

    def _centre_bytes(self) -> float:
        centres, kind = self.launch.identities * self.recipe.student.embedding_dim, self.recipe.centres.kind
        if kind == "none":
            return 0.0
        if kind == "trainable":  # values, gradient, unit rows and their gradient, the optimiser's state
            held = 4.0 + len(parts_like_parameters(self.recipe.optim))
            return held * self.value_bytes * centres / (self.launch.ranks if self.placement == "sharded" else 1)
        master = torch.float64 if self.precision == "float64" else torch.float32
        unit: torch.dtype | None = torch.bfloat16 if self.half and not self.device.is_cpu else master
        if self.recipe.centres.half is not None:
            master, unit = getattr(torch, self.recipe.centres.half), None
        if kind == "frozen" and unit == master:  # the softmax reads the very rows
            return float(self.value_bytes * centres)
        dim = self.recipe.student.embedding_dim
        return float(adaptive_centre_bytes(self.launch.identities, dim, master, unit))

    def _softmax_bytes(self) -> float:
        if self.recipe.centres.kind == "none":
            return 0.0
        samples = self.images if self.placement == "sharded" else self.batch
        return _SOFTMAX_BLOCK_BYTES[self.device.is_cpu] + 4.0 * samples * 4 * self.recipe.student.embedding_dim

    def _store_bytes(self) -> float:
        data = self.recipe.data
        if data.packed is None or data.packed_in not in ("device", "device_share"):
            return 0.0
        spread = self.launch.ranks if data.packed_in == "device_share" else 1
        return self.launch.images * self._stored_image_bytes() / spread

    def _stored_image_bytes(self) -> int:
        pixels = self.recipe.data.image_size**2
        self._assume("layout of the packed store", self.launch.packed_layout, "", "given, or that of 4:2:0 JPEGs")
        return pixels * 3 // 2 if self.launch.packed_layout == "planes" else pixels * 3

    def _teacher_bytes(self) -> float:
        if self.teacher is None:
            return 0.0
        weights = self.teacher.parameters * (4 + (2 if self.half else 0))
        return weights + 2.0 * self.at_once * self.teacher.largest_values * self.image_bytes

    def _cached_bytes(self) -> float:
        teacher = self.recipe.teacher
        if teacher is None or not teacher.cache_on_device:
            return 0.0
        return self.launch.images * (self.recipe.augment.views or 2) * self.recipe.student.embedding_dim * 2.0

    # Time

    @property
    def _compiled(self) -> bool:
        return self.recipe.compile != "off"

    @property
    def _passes(self) -> float:
        return 1.0 if self.parts == 1 else _SECOND_FORWARD

    def _student_s(self) -> float:
        measured = self.rows.student_s_per_image(
            self.recipe.student, self.recipe.data.image_size, precision=self.precision,
            compiled=self._compiled, cores=self.launch.cores,
        )  # fmt: skip
        if measured is None:
            least, most = self._student_bounds_s()
            # Compilers fuse some; eager runs each operator alone.
            return (least + most) / 2 if self._compiled else most
        found, identities = measured
        softmax_s = 4 * self.batch * identities * self.recipe.student.embedding_dim / self._softmax_rate()
        seconds = self._passes * max(found.value * self.batch - softmax_s, 0.5 * found.value * self.batch)
        source = f"{found.source}; less the softmax"
        self._input("student", 1e6 * seconds / self.batch, "us/image", "measured", source)
        return seconds

    def _student_bounds_s(self) -> tuple[float, float]:
        """With everything fused and overlapped; with nothing so."""
        arithmetic = self.batch * self.student.training_flop / self._flop_per_s()
        per_value = self.batch * self.image_bytes / self._bytes_per_s()
        least = FUSED_STEP_PASSES * self.student.fused_values * per_value
        most = EAGER_STEP_PASSES * self.student.unfused_values * per_value
        launches = self.parts * self._launches_s(STEP_LAUNCHES * self.student.operators, compiled=self._compiled)
        return self._passes * max(arithmetic, least, launches), self._passes * max(arithmetic + most, launches)

    def _launches_s(self, operators: int, *, compiled: bool) -> float:
        self._assume("launch of an operator", LAUNCH_US, "us", "eager PyTorch; half of them where compiled")
        return 1e-6 * LAUNCH_US * operators * (0.5 if compiled else 1.0)

    def _teacher_s(self) -> float:
        assert self.teacher is not None, "asked for where a teacher runs"
        config = self.recipe.teacher
        assert config is not None, "asked for where a teacher runs"
        compiled = not self.device.is_cpu if config.compile is None else config.compile
        plain = ("bfloat16",) if self.half else ("float32-folded", "float32")
        forms = (f"{'bfloat16' if self.half else 'float32'}-compiled", *plain) if compiled else plain
        measured = self.rows.teacher_images_per_s(
            self._teacher_arch(), self.recipe.data.image_size, forms=forms, cores=self.launch.cores
        )
        if measured is not None:
            self._input("teacher", measured.value, "images/s", "measured", measured.source)
            return self.batch / measured.value
        unfused, fused = self.teacher.unfused_values, self.teacher.fused_values
        traffic = (fused + unfused) / 2 if compiled else unfused
        seconds = self.teacher.forward_flop / self._flop_per_s() + traffic * self.image_bytes / self._bytes_per_s()
        return max(self.batch * seconds, self._launches_s(self.teacher.operators, compiled=compiled))

    def _softmax_s(self) -> float:
        sweeps = 8 if self.recipe.centres.kind == "trainable" else 4
        operations = sweeps * self.batch * self.launch.identities * self.recipe.student.embedding_dim
        return operations / self._softmax_rate()

    def _softmax_rate(self) -> float:
        # Rows are of bfloat16 operands on CUDA, which exact precisions do not take.
        other = not self.half and not self.device.is_cpu
        measured = self.rows.softmax_flop_per_s(self.recipe.student.embedding_dim, cores=self.launch.cores)
        if measured is not None and not other:
            self._input("softmax", measured.value / 1e12, "TFLOP/s", "measured", measured.source)
            return measured.value
        return self._flop_per_s()

    def _update_s(self) -> float:
        dim, kind = self.recipe.student.embedding_dim, self.recipe.centres.kind
        moved = 20.0 * self.student.parameters
        if kind == "adaptive":
            moved += 12.0 * self.images * dim
        elif kind == "trainable":
            shards = self.launch.ranks if self.placement == "sharded" else 1
            moved += 28.0 * self.launch.identities * dim / shards
        return moved / self._bytes_per_s()

    def _loader_s(self) -> float:
        """Seconds for B images of a device."""
        data = self.recipe.data
        if data.packed is not None and data.packed_in in ("device", "device_share") and not self.device.is_cpu:
            side = data.image_size
            moved = self._stored_image_bytes() + 3 * side * side * self.image_bytes
            return self.batch * moved / self._bytes_per_s()
        workers = min(data.workers, self.launch.cores)
        self._assume("cores a device", self.launch.cores, "", "given, the machine's, or the device's")
        place = f"packed {self.launch.packed_layout}, {data.packed_in}"
        names = (place,) if data.packed is not None else (data.decoder,)
        measured = self.rows.loaded_per_worker(names, self.recipe.augment.policy)
        if measured is not None:
            self._input("loader", measured.value, "images/s and worker", "measured", measured.source)
            return self.batch / (workers * measured.value)
        rate = PACKED_PER_CORE if data.packed is not None else DECODED_PER_CORE
        self._assume("loader", rate, "images/s and worker", "112 x 112 images on one core; augmentation not counted")
        return self.batch / (workers * rate * (112 / data.image_size) ** 2)

    # Transfers

    def _transfers(self) -> list[Transfer]:
        spread = self.recipe.data.packed is not None and self.recipe.data.packed_in == "device_share"
        data = replace(self.recipe.data, global_batch_size=max(2, self.images))
        return step_transfers(
            replace(self.recipe, data=data) if self.images >= 2 else self.recipe,
            parameters=self.student.parameters,
            running_statistics=self.student.running_statistics,
            num_classes=self.launch.identities,
            ranks=self.launch.ranks,
            placement=self.placement,
            store_image_bytes=self._stored_image_bytes() if spread else None,
            value_bytes=self.value_bytes,
        )

    def _exposed_transfers_s(self, transfers: list[Transfer], student_s: float) -> float:
        hidden = self._transfer_s([t for t in transfers if t.part in _DURING_BACKWARD])
        after = self._transfer_s([t for t in transfers if t.part not in _DURING_BACKWARD])
        # Of a batch in parts only the last one's backward pass sends gradients.
        return max(0.0, hidden - _BACKWARD_SHARE * student_s / (self._passes * self.parts)) + after

    def _transfer_s(self, transfers: list[Transfer]) -> float:
        ranks, nodes = self.launch.ranks, self.launch.nodes
        rate = self.device.link_gb_per_s
        self._assume("link inside a node", rate, "GB/s", self.device.source)
        if nodes > 1:
            network = self.launch.network_gbit_per_s / 8
            self._assume("network of a node", network, "GB/s", "given, or 100 Gbit/s Ethernet")
            rate = min(rate, network)
        latency = COLLECTIVE_LATENCY_US * (1 + math.log2(ranks))
        self._assume("latency of a collective", latency, "us", "30 us, and as much for each doubling of the ranks")
        return wire_bytes(transfers, ranks) / (rate * 1e9) + 1e-6 * latency * len(transfers)

    # Rates

    def _flop_per_s(self) -> float:
        form = "bfloat16" if self.half else "float32"
        constant = self.device.half_tflop_per_s if self.half else self.device.single_tflop_per_s
        rate = self._probed(f"matrix products, {form}", f"gemm_{form}_tflop_per_s", constant, "TFLOP/s")
        return 1e12 * rate / (2 if self.precision == "float64" else 1)

    def _bytes_per_s(self) -> float:
        return 1e9 * self._probed("memory traffic", "copy_gb_per_s", self.device.memory_gb_per_s, "GB/s")

    def _probed(self, name: str, probe: str, constant: float, unit: str) -> float:
        """The rate that rows say the device reached, else the constant; of all its cores on a CPU."""
        measured = self.rows.probe(probe, cores=self.launch.cores)
        if measured is not None:
            self._input(name, measured.value, unit, "measured", measured.source)
            return measured.value
        rate = constant * (self.launch.cores if self.device.is_cpu else 1)
        self._assume(name, rate, unit, self.device.source)
        return rate

    def _teacher_arch(self) -> str:
        config = self.recipe.teacher
        assert config is not None, "asked for where a teacher runs"
        if config.arch is not None:
            return config.arch
        if self.launch.teacher_arch is not None:
            self._assume("teacher's network", self.launch.teacher_arch, "", "given")
            return self.launch.teacher_arch
        named = str(getattr(config, config.source or "", "")).lower()
        arch = next((name for name in BACKBONE_NAMES[::-1] if name in named), "ir50")
        source = "by its name" if arch in named else "not known before it is loaded: --teacher-arch says it"
        self._assume("teacher's network", arch, "", source)
        return arch

    def _assume(self, name: str, value: float | str, unit: str, source: str) -> None:
        self._input(name, value, unit, "assumed", source)

    def _input(self, name: str, value: float | str, unit: str, basis: Basis, source: str) -> None:
        if all(known.name != name for known in self.inputs):
            self.inputs.append(Input(name, value, unit, basis, source))
