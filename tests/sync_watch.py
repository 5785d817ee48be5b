"""Finds operators that make the host wait for the device, on any device: what a CUDA step must not contain.

On the CPU nothing waits, but the operators are the same: reading a number (`item`, `bool`, `float`), or making a tensor
whose size depends on values (`nonzero`, `unique`, indexing by a mask). Copies between devices cannot be seen there;
`torch.cuda.set_sync_debug_mode` sees them, in the tests marked `gpu`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "is_nonzero",
    "repeat_interleave",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

_ONLY_ON_CPU = {"_compose_repeats"}  # kernels/centre_update.py: stops early where no label repeats


class HostWaitsError(AssertionError):
    """An operator would have made the host wait."""


class NoHostWait(TorchDispatchMode):
    """Raises `HostWaitsError` at the first operator under it that would wait for a device.

    Looking is free on the CPU, and code may branch on the device to do so: functions named in `_ONLY_ON_CPU` are let
    through there. So is DDP's map of the parameters that were used, int32, which lives on the CPU for any device.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        waits = name in _WAITING or (name in _INDEXING and _has_mask(args))
        if waits and not (_is_on_cpu(args) and (_called_by(_ONLY_ON_CPU) or _is_map_of_ddp(name, args))):
            raise HostWaitsError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def _has_mask(args: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _is_on_cpu(args: Any) -> bool:
    return all(value.device.type == "cpu" for value in args if isinstance(value, torch.Tensor))


def _is_map_of_ddp(name: str, args: Any) -> bool:
    return name == "_local_scalar_dense" and args[0].dtype == torch.int32


def _called_by(names: set[str]) -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in names:
            return True
        frame = frame.f_back
    return False
