"""Reads the tensors of a published weight file, without running anything it may contain.

`.safetensors` holds only tensors. `.pth`, `.pt` and `.ckpt` are pickles, which can run any code when they are loaded;
they go through torch's restricted unpickler and nothing else, and a file that it refuses is refused here. Lightning,
with which AdaFace was trained, stores a few objects of its own beside the tensors: they are read as inert stand-ins, so
that such a file opens without Lightning and without any of its code.
"""

import argparse
import io
import mmap
import pickle
import re
import struct
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adadistill.core.backbones.weight_pickles import require_harmless_pickles
from adadistill.loaders.allow_list_unpickler import PickleDamagedError, PickleRefusedError
from adadistill.loaders.stored_archive import ArchiveError, pickle_in_archive

_PICKLED_SUFFIXES: Final[tuple[str, ...]] = (".pth", ".pt", ".ckpt")

_SAFETENSORS_ERROR: Final[type[Exception]] = SafetensorError
_ZIP: Final = b"PK\x03\x04"
_MAX_HEADER_BYTES: Final = 16 << 20
_MAX_PICKLE_BYTES: Final = 256 << 20
_MAX_MEMBERS: Final = 20_000

_CONTAINERS: Final[tuple[str, ...]] = ("state_dict", "state_dict_backbone")
"""Keys under which training checkpoints keep the network: Lightning's, and arcface_torch's `checkpoint_gpu_*.pt`."""


_UNREADABLE: Final[tuple[type[Exception], ...]] = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    MemoryError,
    OSError,
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
            one without named tensors, or tensors larger than what the file holds of them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in _PICKLED_SUFFIXES:
        return _state_dict(_load_pickle(path), path)
    suffixes = ", ".join((".safetensors", *_PICKLED_SUFFIXES))
    raise WeightFileError(f"{path} must end in one of {suffixes}")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise WeightFileError(
            f"{path} is not a readable safetensors file: it claims a header of {length:,} bytes, {_MAX_HEADER_BYTES:,} "
            "are read"
        )
    try:
        tensors = load_file(path)
    except (_SAFETENSORS_ERROR, *_UNREADABLE) as error:
        raise WeightFileError(f"{path} is not a readable safetensors file: {_reason(error)}") from error
    return _state_dict(tensors, path)


def _load_pickle(path: Path) -> object:
    _refuse_bombs(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols: what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise WeightFileError(
            f"{path} cannot be read by torch's restricted unpickler: {_reason(error)}\n"
            "It is damaged, or holds objects that only code could rebuild. Where it was written, save the state dict "
            "alone (torch.save(network.state_dict(), ...)) or as safetensors."
        ) from error


def _refuse_bombs(path: Path) -> None:
    """Refuse what torch would read and memory could not hold: archives that unpack, pickles that multiply."""
    with path.open("rb") as file:
        zipped = file.read(4) == _ZIP
        if not zipped and not file.seek(0, io.SEEK_END):
            raise WeightFileError(f"{path} cannot be read: it is empty")
        try:
            if zipped:
                pickled = pickle_in_archive(path, max_members=_MAX_MEMBERS, max_bytes=_MAX_PICKLE_BYTES)
                require_harmless_pickles(pickled, zipped=True)
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                require_harmless_pickles(mapped, zipped=False)
        except (ArchiveError, PickleRefusedError, PickleDamagedError) as error:
            raise WeightFileError(
                f"{path} cannot be read: {error}. It is damaged or hostile, or no state dict; nothing of it was run"
            ) from None


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
        shown = ", ".join(name[:80] for name in strangers[:8])
        raise WeightFileError(f"{path} is no state dict: {len(strangers)} entries are no tensors, such as {shown}")
    hollow = [str(name) for name, tensor in entries.items() if not _is_plain(tensor)]
    if hollow:
        shown = ", ".join(name[:80] for name in hollow[:8])
        raise WeightFileError(f"{path} is no state dict: {len(hollow)} entries are no plain tensors, such as {shown}")
    return {str(name): tensor for name, tensor in entries.items()}


def _is_plain(tensor: Tensor) -> bool:
    """Whether all elements of a tensor are there: not sparse, quantised or without data, nor one number repeated."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
