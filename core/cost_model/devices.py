"""What a device can do where nothing of it has been measured: the constants of the cost model, each with its source.

Rates are those that large library calls reach, not those of a datasheet: 80 % of the dense bfloat16 rate and 90 % of
the memory bandwidth, which is what such calls reach on Hopper. A network of small maps reaches less; the model adds its
arithmetic and its memory traffic without letting them overlap.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceModel:
    """Constants of one kind of device."""

    name: str
    row_names: tuple[str, ...]
    """What a measured row's device name must contain to be of this kind; empty for the CPU, whose rows name none."""
    memory_gb: float | None
    """10^9 bytes; None: of the machine that plans."""
    half_tflop_per_s: float
    """Large matrix products in bfloat16; of one core on a CPU."""
    single_tflop_per_s: float
    """The same in float32, without TF32."""
    memory_gb_per_s: float
    """Copies of large tensors, bytes read and written; of one core on a CPU."""
    link_gb_per_s: float
    """Ring bandwidth between the devices of one node: bytes that each sends in a second."""
    devices_per_node: int
    cores: int | None
    """CPU cores that feed one device; None: those of the machine that plans."""
    reserved_gb: float
    """Context, library workspaces, communication buffers."""
    source: str
    """Where the constants come from."""

    @property
    def is_cpu(self) -> bool:
        """Rates are of one core."""
        return not self.row_names


_SHARES = "80 % of dense bfloat16, 90 % of memory bandwidth"

DEVICES: Mapping[str, DeviceModel] = MappingProxyType(
    {
        "h200": DeviceModel(
            name="h200",
            row_names=("H200",),
            memory_gb=141.0,
            half_tflop_per_s=790.0,
            single_tflop_per_s=54.0,
            memory_gb_per_s=4300.0,
            link_gb_per_s=350.0,
            devices_per_node=8,
            cores=12,
            reserved_gb=2.0,
            source=f"NVIDIA H200 SXM datasheet (989 TFLOP/s, 4.8 TB/s, NVLink 900 GB/s): {_SHARES}",
        ),
        "h100": DeviceModel(
            name="h100",
            row_names=("H100",),
            memory_gb=80.0,
            half_tflop_per_s=790.0,
            single_tflop_per_s=54.0,
            memory_gb_per_s=3000.0,
            link_gb_per_s=350.0,
            devices_per_node=8,
            cores=12,
            reserved_gb=2.0,
            source=f"NVIDIA H100 SXM datasheet (989 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s): {_SHARES}",
        ),
        "a100": DeviceModel(
            name="a100",
            row_names=("A100",),
            memory_gb=80.0,
            half_tflop_per_s=250.0,
            single_tflop_per_s=15.6,
            memory_gb_per_s=1830.0,
            link_gb_per_s=230.0,
            devices_per_node=8,
            cores=12,
            reserved_gb=2.0,
            source=f"NVIDIA A100 80 GB SXM datasheet (312 TFLOP/s, 2.04 TB/s, NVLink 600 GB/s): {_SHARES}",
        ),
        "cpu": DeviceModel(
            name="cpu",
            row_names=(),
            memory_gb=None,
            half_tflop_per_s=0.04,
            single_tflop_per_s=0.04,
            memory_gb_per_s=10.0,
            link_gb_per_s=1.0,
            devices_per_node=1,
            cores=None,
            reserved_gb=0.6,
            source="one core with AVX2 at 40 GFLOP/s and 10 GB/s; gloo on loopback or 10 Gbit/s",
        ),
    }
)

NETWORK_GBIT_PER_S = 100.0
"""Between nodes, of one node; a common Ethernet. InfiniBand nodes have up to 3,200."""
COLLECTIVE_LATENCY_US = 30.0
"""Launch and first byte of a collective inside a node; grows with the logarithm of the ranks."""
LAUNCH_US = 6.0
"""Of one operator, eager, as the host issues it; small batches wait for nothing else."""
STEP_LAUNCHES = 3
"""Operators of a training step over those of its forward pass; compiled, half as many."""
DECODED_PER_CORE = 10_000.0
"""112 x 112 JPEGs of 5 to 10 KB that one core decodes in a second with libjpeg-turbo: 8,400 to 12,400."""
PACKED_PER_CORE = 15_000.0
"""Packed images that one core gathers and converts in a second."""
USABLE_MEMORY = 0.92
"""Share of the memory to plan for: the rest is lost between blocks of the allocator."""
EAGER_STEP_PASSES = 3.2
"""Traffic of a training step over that of its forward pass, operators unfused; 3.0 where they are fused."""
FUSED_STEP_PASSES = 3.0


def memory_of_machine_gb() -> float:
    """10^9 bytes of this machine's memory.

    Raises:
        ValueError: the system does not tell.
    """
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError, AttributeError):
        raise ValueError("this system does not tell how much memory it has; plan with --memory-gb") from None
