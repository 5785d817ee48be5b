"""How long a replayed training step should take on a device, to be held against the row that measures it.

The student computes forward and twice that for the gradients, and moves its activations: at best all operators are
fused and arithmetic and traffic overlap, at worst each runs alone and nothing does. The softmax takes 4 B C D
operations, the update 20 bytes a parameter and 12 B D of adaptive centres. A prediction is no measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from adadistill.core.backbones import BackboneConfig
from adadistill.core.network_cost import network_cost

LAUNCH_US = 6.0
"""Of one operator, eager, as the host issues it; small batches wait for nothing else."""
STEP_LAUNCHES = 3
"""Operators of a training step over those of its forward pass; compiled, half as many."""
EAGER_STEP_PASSES = 3.2
"""Traffic of a training step over that of its forward pass, operators unfused; 3.0 where they are fused."""
FUSED_STEP_PASSES = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRates:
    """What large library calls reach on a device; on a CPU, on one core."""

    half_tflop_per_s: float
    single_tflop_per_s: float
    memory_gb_per_s: float


RATES: Mapping[str, DeviceRates] = MappingProxyType(
    {
        # 80 % of dense bfloat16 (float32 without TF32), 90 % of memory bandwidth, of NVIDIA's datasheets.
        "H200": DeviceRates(half_tflop_per_s=790.0, single_tflop_per_s=54.0, memory_gb_per_s=4300.0),
        "H100": DeviceRates(half_tflop_per_s=790.0, single_tflop_per_s=54.0, memory_gb_per_s=3000.0),
        "A100": DeviceRates(half_tflop_per_s=250.0, single_tflop_per_s=15.6, memory_gb_per_s=1830.0),
        # One core with AVX2.
        "cpu": DeviceRates(half_tflop_per_s=0.04, single_tflop_per_s=0.04, memory_gb_per_s=10.0),
    }
)
"""By what a device's name contains."""


def predicted_step_ms(
    network: BackboneConfig,
    image_size: int,
    *,
    batch: int,
    identities: int,
    in_bfloat16: bool,
    compiled: bool,
    device: torch.device,
    parts: int = 1,
) -> tuple[float, float] | None:
    """Milliseconds of a step with adaptive centres and a stored teacher, least and most; None for other devices.

    Args:
        parts: in which the batch goes through the student, which then runs forward once more.
    """
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    rates = next((known for part, known in RATES.items() if part in name), None)
    if rates is None:
        return None
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    per_flop = 1e-12 / (cores * (rates.half_tflop_per_s if in_bfloat16 else rates.single_tflop_per_s))
    per_byte = 1e-9 / (cores * rates.memory_gb_per_s)
    cost, per_value = network_cost(network, image_size), (2 if in_bfloat16 else 4) * per_byte
    arithmetic = batch * cost.training_flop * per_flop
    fused = batch * FUSED_STEP_PASSES * cost.fused_values * per_value
    unfused = batch * EAGER_STEP_PASSES * cost.unfused_values * per_value
    launches = parts * 1e-6 * LAUNCH_US * STEP_LAUNCHES * cost.operators * (0.5 if compiled else 1.0)
    again = 1.0 if parts == 1 else 4.0 / 3.0
    softmax = 4 * batch * identities * network.embedding_dim * per_flop
    update = (20.0 * cost.parameters + 12.0 * batch * network.embedding_dim) * per_byte
    least, most = again * max(arithmetic, fused, launches), again * max(arithmetic + unfused, launches)
    return 1e3 * (least + softmax + update), 1e3 * (most + softmax + update)
