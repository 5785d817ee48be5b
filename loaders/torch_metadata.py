"""Reads the `metadata.pt` of CVLface's evaluation sets: what `torch.save` made of a dictionary of lists and arrays.

Such a file is a zip archive around a pickle. `torch.load` refuses it unless numpy's constructors are allowed, and with
those in reach a crafted dtype can make numpy take bytes for pointers; so the pickle is read by our allow-list
(`allow_list_unpickler.py`), which never calls numpy. Tensors are not read: none of these sets holds one.
"""

from __future__ import annotations

from pathlib import Path

from adadistill.loaders.allow_list_unpickler import (
    PickleDamagedError,
    PickleRefusedError,
    StoredArray,
    load_plain_pickle,
)
from adadistill.loaders.first_bytes import what_it_is
from adadistill.loaders.stored_archive import ArchiveError, pickle_in_archive

MAX_PICKLE_BYTES = 2 << 30
"""Largest pickle that is read; IJB-C's, with 15.7 million pairs, has some 600 MB."""

_MAX_MEMBERS = 64


class TorchMetadataError(ValueError):
    """A file is no dictionary of lists and arrays as `torch.save` writes it, or asks for more than that."""


def read_torch_metadata(path: Path) -> dict[str, object]:
    """Lists and arrays of a `metadata.pt` by name.

    Returns:
        Name -> a numpy array (read-only), or what plain values are there: lists of text, numbers ...

    Raises:
        FileNotFoundError: there is no such file.
        TorchMetadataError: damaged, another format, or asking the unpickler for anything but plain values and arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if (other := what_it_is(path, "zip")) is not None:
        raise TorchMetadataError(f"{path} {other}")
    try:
        pickled = pickle_in_archive(path, max_members=_MAX_MEMBERS, max_bytes=MAX_PICKLE_BYTES)
        content = load_plain_pickle(pickled, metadata=True)
    except PickleRefusedError as error:
        raise TorchMetadataError(f"{path}: {error}. Hostile or damaged; nothing of it was run") from None
    except (PickleDamagedError, ArchiveError) as error:
        raise TorchMetadataError(f"{path}: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise TorchMetadataError(f"{path}: holds a {type(content).__name__}, not a dictionary by names")
    return {name: value.to_numpy() if isinstance(value, StoredArray) else value for name, value in content.items()}
