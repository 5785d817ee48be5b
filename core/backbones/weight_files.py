"""Reads the tensors of a published weight file, without running anything it may contain.

`.safetensors` holds only tensors. `.pth`, `.pt` and `.ckpt` are pickles, which can run any code when they are loaded;
they go through torch's restricted unpickler and nothing else, and a file that it refuses is refused here. Lightning,
with which AdaFace was trained, stores a few objects of its own beside the tensors: they are read as inert stand-ins, so
that such a file opens without Lightning and without any of its code.
"""

import argparse
import pickle
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_PICKLED_SUFFIXES: Final[tuple[str, ...]] = (".pth", ".pt", ".ckpt")

_CONTAINERS: Final[tuple[str, ...]] = ("state_dict", "state_dict_backbone")
"""Keys under which training checkpoints keep the network: Lightning's, and arcface_torch's `checkpoint_gpu_*.pt`."""


_UNREADABLE: Final[tuple[type[Exception], ...]] = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch's restricted unpickler raises: the first for what it refuses, all of them for damaged bytes (found by
changing and cutting bytes of small files)."""


class WeightFileError(ValueError):
    """A weight file that cannot be read as a mapping from names to tensors."""


class _Inert:
    """Stands in for Lightning's callback classes, which old checkpoints use as dictionary keys."""


_STAND_INS: Final[list[Any]] = [
    Counter,
    argparse.Namespace,
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a `.safetensors`, `.pth`, `.pt` or `.ckpt` file on the CPU, under their own names.

    A pickle may be the state dict itself, or a training checkpoint that keeps it under `state_dict` or
    `state_dict_backbone`.

    Raises:
        FileNotFoundError: there is no such file.
        WeightFileError: another suffix, a damaged file, a pickle that asks for more than tensors and plain containers,
        or
            one without named tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightFileError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix in _PICKLED_SUFFIXES:
        return _state_dict(_load_pickle(path), path)
    suffixes = ", ".join((".safetensors", *_PICKLED_SUFFIXES))
    raise WeightFileError(f"{path} must end in one of {suffixes}")


def _load_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise WeightFileError(
            f"{path} cannot be read by torch's restricted unpickler: {_reason(error)}\n"
            "It is damaged, or holds objects that only code could rebuild. Where it was written, save the state dict "
            "alone (torch.save(network.state_dict(), ...)) or as safetensors."
        ) from error


def _reason(error: Exception) -> str:
    """torch's message is a page on how to load the file unsafely; what matters is the object that it names."""
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {refused[1]}"
    lines = [line for line in str(error).strip().splitlines() if "weights_only" not in line]
    return f"{type(error).__name__} {lines[0] if lines else ''}".strip()


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise WeightFileError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    container = next((key for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)), None)
    entries = loaded if container is None else loaded[container]
    if not entries:
        raise WeightFileError(f"{path} holds an empty state dict")
    strangers = [str(name) for name, value in entries.items() if not isinstance(value, Tensor)]
    if strangers:
        shown = ", ".join(strangers[:8])
        raise WeightFileError(f"{path} is no state dict: {len(strangers)} entries are no tensors, such as {shown}")
    return {str(name): tensor for name, tensor in entries.items()}
