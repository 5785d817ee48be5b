"""What one image costs in a network, counted from the module itself without computing it.

Operations are those of convolutions and linear maps, two for each multiplication with its addition. (Most published
"FLOPs" of face networks count one.) Traffic is what moves between memory and processor in one forward pass: at least
the inputs and outputs of the convolutions and linear maps, where everything else is fused into them; at most those of
every operator. What backward needs is counted from what autograd saves. Parameters are counted apart, since they are
read once a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from adadistill.core.backbones import BackboneConfig, backbone_skeleton

_IMAGES = 2  # batch norm of a vector needs more than one
_MAPS = ("convolution", "addmm", "mm")


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """Counts of one network; per image unless it says otherwise."""

    parameters: int
    """Of the whole network."""
    running_statistics: int
    """Floating-point buffer values of the whole network."""
    forward_flop: int
    """2 x multiply-accumulates."""
    fused_values: int
    """Values that a forward pass reads and writes at least."""
    unfused_values: int
    """Values that it reads and writes where every operator runs alone."""
    saved_values: int
    """Values that are kept for backward."""
    largest_values: int
    """Values of the largest operator's inputs and outputs: what a pass without backward holds at a time."""

    operators: int
    """Of one forward pass of a batch, those that move values: each is a launch where nothing is fused."""

    @property
    def training_flop(self) -> int:
        """Forward, and twice that for the gradients of inputs and weights."""
        return 3 * self.forward_flop


@cache
def network_values(config: BackboneConfig, image_size: int) -> tuple[int, int]:
    """Parameters, and floating-point buffer values, of a network: from its shapes alone, which takes no pass."""
    skeleton = backbone_skeleton(config, image_size)
    buffers = [buffer.numel() for buffer in skeleton.buffers() if buffer.is_floating_point()]
    return sum(parameter.numel() for parameter in skeleton.parameters()), sum(buffers)


@cache
def network_cost(config: BackboneConfig, image_size: int) -> NetworkCost:
    """Count a network.

    Raises:
        ValueError: image_size is no positive multiple of 16.
    """
    skeleton = backbone_skeleton(config, image_size)
    # Tensors without memory that pass for a CPU's: autocast, which the last layer leaves, knows no device "meta".
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _counted(skeleton.to_empty(device="cpu").train(), image_size, *network_values(config, image_size))


def _counted(network: nn.Module, image_size: int, parameters: int, running_statistics: int) -> NetworkCost:
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # a freed storage would lend its identity to a later one

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and tensor.is_floating_point():
            saved[storage._cdata] = storage.nbytes() // tensor.element_size()
        return tensor

    images = torch.empty(_IMAGES, 3, image_size, image_size)
    traffic, flops = _TrafficCounter(weights), FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), traffic, flops:
        network(images)
    return NetworkCost(
        parameters=parameters,
        running_statistics=running_statistics,
        forward_flop=flops.get_total_flops() // _IMAGES,
        fused_values=traffic.of_maps // _IMAGES,
        unfused_values=traffic.of_all // _IMAGES,
        saved_values=sum(saved.values()) // _IMAGES,
        largest_values=traffic.largest // _IMAGES,
        operators=traffic.operators,
    )


class _TrafficCounter(TorchDispatchMode):
    """Sums the values that operators read and write, weights left out."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self._weights = weights
        self.of_all = self.of_maps = self.largest = self.operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view:
            values = self._values(args) + self._values(out)
            self.of_all += values
            self.operators += values > 0
            self.largest = max(self.largest, values)
            if func.__name__.split(".")[0] in _MAPS:
                self.of_maps += values
        return out

    def _values(self, argument: Any) -> int:
        if isinstance(argument, Tensor):
            weight = argument.untyped_storage()._cdata in self._weights
            return 0 if weight or not argument.is_floating_point() else argument.numel()
        return sum(map(self._values, argument)) if isinstance(argument, list | tuple) else 0
