"""Reads the tensors of a published weight file, without running anything it may contain.

Its first bytes say what it is, whatever its name. safetensors hold only tensors. What `torch.save` writes are pickles,
which can run any code when they are loaded; they go through torch's restricted unpickler and nothing else, and a file
that it refuses is refused here. Objects that trainers keep beside the tensors (Lightning's, numpy's, paths) are read as
inert stand-ins, so that such a file opens without any of their code.
"""

import argparse
import io
import logging
import mmap
import pickle
import re
import struct
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adadistill.loaders.first_bytes import kind_of, what_it_is
from adadistill.loaders.safe_pickle import (
    PickleDamagedError,
    PickleRefusedError,
    pickle_in_archive,
    refuse_exhausting_pickles,
)

logger = logging.getLogger(__name__)

_SAFETENSORS_ERROR: Final[type[Exception]] = SafetensorError
_ZIP: Final = b"PK\x03\x04"
_MAX_HEADER_BYTES: Final = 16 << 20
_MAX_PICKLE_BYTES: Final = 256 << 20
_MAX_MEMBERS: Final = 20_000

_CONTAINERS: Final[tuple[str, ...]] = ("", "state_dict", "state_dict_backbone")
"""Where the network is expected: at the top, where Lightning keeps it, and arcface_torch's `checkpoint_gpu_*.pt`."""
_MAX_LEVELS: Final = 5

_UNREADABLE: Final[tuple[type[Exception], ...]] = (
    *(pickle.UnpicklingError, struct.error, ArithmeticError, AssertionError, AttributeError, EOFError, MemoryError),
    *(OSError, LookupError, RuntimeError, TypeError, ValueError),
)
"""What torch's restricted unpickler raises: the first for what it refuses, all of them for damaged bytes (found by
changing and cutting bytes of small files)."""


class WeightFileError(ValueError):
    """A weight file that cannot be read as a mapping from names to tensors."""


class _Inert:
    """Stands in for what is of no use here: Lightning's callback classes, numpy's scalars and arrays, paths."""

    def __init__(self, *ignored: object) -> None:
        pass

    def __setstate__(self, ignored: object) -> None:
        pass


_OF_NO_USE: Final = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "pathlib.PosixPath", "pathlib._local.PosixPath"),
)

_STAND_INS: Final[list[Any]] = [
    Counter,
    argparse.Namespace,
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "easydict.EasyDict"),
    *((_Inert, name) for name in _OF_NO_USE),
]


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a weight file on the CPU, under their own names.

    A pickle may be the state dict itself, or a training checkpoint that keeps it under any name; a warning tells which,
    unless it is one of those that everybody uses.

    Raises:
        FileNotFoundError: there is no such file.
        WeightFileError: another kind of file, a damaged one, a pickle that asks for more than tensors and plain
            containers, one without named tensors or with two networks, or tensors larger than what the file holds of
            them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    if (other := what_it_is(path, "zip", "pickle", "safetensors")) is not None:
        raise WeightFileError(f"{path} {other}")
    kind = kind_of(path)
    if kind == "safetensors" or (kind == "unknown" and path.suffix.lower() == ".safetensors"):
        return _load_safetensors(path)
    return _state_dict(_load_pickle(path), path)


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
        # An open file: of a path, torch would look at the suffix.
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # on pickle protocols: what cannot be read raises
            return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise WeightFileError(
            f"{path} cannot be read by torch's restricted unpickler: {_reason(error)}\n"
            "It is damaged, or holds a whole network or other objects that only code could rebuild. Where it was "
            "written, save the state dict alone (torch.save(network.state_dict(), ...)) or as safetensors."
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
                refuse_exhausting_pickles(pickled, zipped=True)
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                refuse_exhausting_pickles(mapped, zipped=False)
        except (PickleRefusedError, PickleDamagedError) as error:
            raise WeightFileError(
                f"{path} cannot be read: {error}. It is damaged, hostile, or holds a whole network instead of its "
                "tensors (where it was written: torch.save(network.state_dict(), ...)); nothing of it was run"
            ) from None


def _reason(error: Exception) -> str:
    """torch's message is a page on how to load the file unsafely; what matters is the object that it names."""
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {refused[1]}"
    if "TorchScript" in str(error):
        return "it is a TorchScript program"
    lines = [line for line in str(error).strip().splitlines() if "weights_only" not in line]
    return f"{type(error).__name__} {lines[0] if lines else ''}".strip()


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise WeightFileError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    found = dict(_groups_of_tensors(loaded, "", _MAX_LEVELS, set()))
    networks = [where for where, group in found.items() if any(map(_takes_images, group.values()))] or list(found)
    if not networks:
        shown = ", ".join(str(name)[:80] for name in list(loaded)[:8])
        raise WeightFileError(f"{path} holds an empty state dict: no named tensors, but {shown or 'nothing'}")
    if len(networks) > 1:
        listed = " and ".join(f"`{where or 'the top'}`" for where in networks[:8])
        raise WeightFileError(
            f"{path} holds {len(networks)} networks, under {listed}, and nothing says which is meant; where it was "
            f"written, save the state dict of one of them alone"
        )
    where = networks[0]
    entries = {name: value for name, value in found[where].items() if isinstance(value, Tensor)}
    if where not in _CONTAINERS:
        logger.warning("%s: the network is taken from `%s`", path, where)
    if len(entries) < len(found[where]):
        others = [str(name)[:80] for name in found[where] if name not in entries]
        logger.warning("%s: left out, as they are no tensors: %s", path, ", ".join(others[:8]))
    hollow = [str(name) for name, tensor in entries.items() if not _is_plain(tensor)]
    if hollow:
        shown = ", ".join(name[:80] for name in hollow[:8])
        raise WeightFileError(f"{path} is no state dict: {len(hollow)} entries are no plain tensors, such as {shown}")
    return {str(name): tensor for name, tensor in entries.items()}


def _groups_of_tensors(
    group: Mapping[Any, Any], where: str, levels: int, seen: set[int]
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Mappings that hold tensors by name, each once however often it is named, with the path of keys that leads there.

    Numbered entries are an optimiser's state.
    """
    if id(group) in seen or not levels:
        return
    seen.add(id(group))
    named = {name: value for name, value in group.items() if isinstance(name, str)}
    if any(isinstance(value, Tensor) for value in named.values()):
        yield where, named
    for name, value in named.items():
        if isinstance(value, Mapping):
            yield from _groups_of_tensors(value, f"{where}.{name[:80]}" if where else name[:80], levels - 1, seen)


def _takes_images(value: object) -> bool:
    """Whether this may be the first convolution of a network, which takes three colours."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == 3


def _is_plain(tensor: Tensor) -> bool:
    """Whether all elements of a tensor are there: not sparse, quantised or without data, nor one number repeated."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
