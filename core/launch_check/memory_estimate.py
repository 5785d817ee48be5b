"""The memory of each device by part, by the cost model, for the devices of this launch or of a kind that is asked for.

An estimate stops nothing: the model counts what it knows, and the allocator decides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from adadistill.core.cost_model.devices import DEVICES, NETWORK_GBIT_PER_S, DeviceModel, memory_of_machine_gb
from adadistill.core.cost_model.measured_rows import MeasuredRows
from adadistill.core.cost_model.step_model import Launch, StepModel
from adadistill.core.recipe import Recipe

_UNKNOWN_CUDA = "h100"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Memory of one device, 10^9 bytes."""

    kind: str
    """A name of the cost model's devices."""
    assumption: str
    """Why this kind, and where its memory comes from."""
    parts_gb: dict[str, float]
    needed_gb: float
    usable_gb: float
    """What is there, less what blocks of the allocator lose."""

    @property
    def fits(self) -> bool:
        """Whether the parts together are no more than can be used."""
        return self.needed_gb <= self.usable_gb


def estimate_memory(
    recipe: Recipe, *, kind: str | None, device: torch.device, world_size: int, images: int, identities: int
) -> MemoryEstimate:
    """The memory of one device of a launch.

    Args:
        kind: of device to estimate for; None takes the launch's.
        device: of the launch; asked for its name and size where it is CUDA and no kind is given.
        world_size: processes of the launch; must divide the global batch.
        images: N; `identities`: C.

    Raises:
        PlanError: an epoch has no step.
    """
    model, memory_gb, assumption = _device(kind, device, world_size)
    launch = Launch(
        device=model, ranks=world_size, nodes=1, memory_gb=memory_gb, cores=1, network_gbit_per_s=NETWORK_GBIT_PER_S,
        images=images, identities=identities,
    )  # fmt: skip
    batch = recipe.data.global_batch_size // world_size
    plan = StepModel(recipe, launch, MeasuredRows((), model), batch, recipe.centres.placement).plan()
    return MemoryEstimate(
        kind=model.name,
        assumption=assumption,
        parts_gb=plan.memory_gb,
        needed_gb=plan.needed_memory_gb,
        usable_gb=plan.usable_memory_gb,
    )


def _device(kind: str | None, device: torch.device, world_size: int) -> tuple[DeviceModel, float, str]:
    if kind is not None and DEVICES[kind].memory_gb is not None:
        size = DEVICES[kind].memory_gb
        assert size is not None
        return DEVICES[kind], size, f"{kind}, as asked for"
    if kind is None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known = [model for model in DEVICES.values() if any(name in properties.name for name in model.row_names)]
        size = properties.total_memory / 1e9
        if known:
            return known[0], size, f"this launch's {properties.name}"
        said = f"this launch's {properties.name}, of which the model knows only its memory; reserved as {_UNKNOWN_CUDA}"
        return DEVICES[_UNKNOWN_CUDA], size, said
    here = _processes_here(world_size)
    shared = "" if here == 1 else f", shared by {here} processes"
    return DEVICES["cpu"], memory_of_machine_gb() / here, f"CPU, the memory of this machine{shared}"


def _processes_here(world_size: int) -> int:
    """Of this launch on this machine, as torchrun says; all of them where nothing says."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(text) if text.isascii() and text.isdigit() and 1 <= int(text) <= world_size else world_size
