"""The kinds of devices that memory is estimated for, and how the rows of the benches name them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceKind:
    """What is known of one kind of device without asking one."""

    name: str
    row_names: tuple[str, ...]
    """What a measured row's device name must contain to be of this kind; empty for the CPU, whose rows name none."""
    memory_gb: float | None
    """10^9 bytes; None: of the machine that plans."""
    devices_per_node: int
    reserved_gb: float
    """Context, library workspaces and communication buffers take this."""

    @property
    def is_cpu(self) -> bool:
        """Whether this is the CPU, whose processes share the memory of a machine."""
        return not self.row_names


def _gpu(name: str, memory_gb: float) -> DeviceKind:
    return DeviceKind(
        name=name, row_names=(name.upper(),), memory_gb=memory_gb, devices_per_node=8, reserved_gb=2.0
    )  # fmt: skip


DEVICES: Mapping[str, DeviceKind] = MappingProxyType(
    {
        "h200": _gpu("h200", 141.0),
        "h100": _gpu("h100", 80.0),
        "a100": _gpu("a100", 80.0),
        "cpu": DeviceKind(name="cpu", row_names=(), memory_gb=None, devices_per_node=1, reserved_gb=0.6),
    }
)
USABLE_MEMORY = 0.92
"""Share of the memory to plan for: the rest is lost between blocks of the allocator."""


def memory_of_machine_gb() -> float:
    """10^9 bytes of this machine's memory.

    Raises:
        ValueError: the system does not tell.
    """
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError, AttributeError):
        raise ValueError("this system does not tell how much memory it has; plan with --memory-gb") from None
