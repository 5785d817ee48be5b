"""Files that torch or CVLface wrote: weights as `.pth`, `.ckpt` and `.safetensors`, and `metadata.pt`."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.weight_files import read_weight_file
from adadistill.core.distributed import Ranks
from adadistill.core.teachers import TeacherConfig, load_source
from adadistill.loaders.safe_pickle import read_torch_metadata
from trials.targets.archive_attacks import archive, archive_attacks, storage_archives, tensor_headers, tensor_pickles
from trials.targets.damage import BYTES, lying_tensors
from trials.targets.pickle_attacks import PROTOCOLS, executing_pickles, exhausting_pickles
from trials.targets.target import READ, BrokenPromiseError, Files, Lie, Material, Mutant, Original, attacks

_NETWORK_BYTES = 100_000
"""Files longer than this hold a whole network, which is then built and loaded."""
_METADATA = "metadata.pt"
_CONTENT: dict[str, Any] = {
    "image_paths": [f"loose_crop/{index}.jpg" for index in range(20)],
    "templates": np.arange(20, dtype=np.int64),
    "scores": np.linspace(0, 1, 20, dtype=np.float32),
    "name": "IJBB",
    "fars": [1e-6, 1e-4],
}


def weight_files(folder: Path) -> Material:
    """Public weights as `convert`, `evaluate` and a recipe's `teacher.weights` read them."""
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3), "n": torch.tensor(7)}
    network = build_backbone(BackboneConfig(arch="mobilefacenet", embedding_dim=16), 112, generator=0).state_dict()
    pickles = {**executing_pickles(folder.parent / "canary"), **exhausting_pickles(), **tensor_pickles()}
    hostile = [
        *attacks({name: archive(body) for name, body in pickles.items()}, "weights.pth"),
        *attacks(pickles, "weights.ckpt"),
        *attacks({**archive_attacks(), **storage_archives()}, "weights.pth"),
        *attacks(tensor_headers(), "weights.safetensors"),
    ]
    originals = _forms(tensors)
    for one in originals:
        (folder / one.named).write_bytes(one.files[one.named])
        read_weight_file(folder / one.named)
    # One trial in twenty meets a whole network.
    return Material([*originals * 9, *_forms(dict(network))], lambda mutant: _read_weights(mutant, tensors), hostile)


def _forms(tensors: dict[str, torch.Tensor]) -> list[Original]:
    forms = {"weights.safetensors": save(tensors)}
    for name, content, zipped in (
        ("weights.pth", tensors, True),
        ("legacy.pth", tensors, False),
        ("weights.ckpt", {"state_dict": tensors, "epoch": 3}, True),
    ):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=zipped)
        forms[name] = out.getvalue()
    lies: dict[str, Lie] = {"a header that lies": _lie}
    return [
        Original(name, {name: body}, name, hit=[name], lies=lies if name.endswith(".safetensors") else {})
        for name, body in forms.items()
    ]


def _lie(rng: Random, files: Files) -> None:
    files["weights.safetensors"] = lying_tensors(rng, files["weights.safetensors"])


def _read_weights(mutant: Mutant, expected: dict[str, torch.Tensor]) -> str:
    tensors, size = read_weight_file(mutant.path), mutant.path.stat().st_size
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise BrokenPromiseError("no named tensors")
    held = sum(value.untyped_storage().nbytes() for value in tensors.values() if value.layout == torch.strided)
    if held > 64 * size + 4096 and len({value.data_ptr() for value in tensors.values()}) == len(tensors):
        raise BrokenPromiseError(f"{held} bytes of tensors from a file of {size}")
    if size > _NETWORK_BYTES:
        load_source(TeacherConfig(weights=str(mutant.path), color="rgb"), image_size=112, ranks=Ranks())
    same = tensors.keys() == expected.keys() and all(
        value.dtype == expected[key].dtype and torch.equal(value, expected[key]) for key, value in tensors.items()
    )
    return READ if same else "read as other tensors, as these files hold no checksums"


def metadata_files(folder: Path) -> Material:
    """`metadata.pt` files as the readers of IJB and TinyFace open them."""
    plain = [pickle.dumps(_CONTENT, protocol) for protocol in PROTOCOLS]

    def damage_the_pickle(rng: Random, files: Files) -> None:
        files[_METADATA] = archive(BYTES[rng.choice(list(BYTES))](rng, rng.choice(plain), plain))

    # The archive's checksums would else hide the pickle's reader from most damage.
    lies: dict[str, Lie] = {"damage inside of the archive": damage_the_pickle}
    originals = [
        Original(f"protocol {protocol}", {_METADATA: archive(body)}, _METADATA, hit=[_METADATA], lies=lies)
        for protocol, body in enumerate(plain)
    ]
    (folder / _METADATA).write_bytes(originals[-1].files[_METADATA])
    read_torch_metadata(folder / _METADATA)
    pickles = {**executing_pickles(folder.parent / "canary"), **exhausting_pickles()}
    hostile = {**{name: archive(body) for name, body in pickles.items()}, **archive_attacks()}
    return Material(originals, _read_metadata, attacks(hostile, _METADATA))


def _read_metadata(mutant: Mutant) -> str:
    found = cast("dict[str, Any]", read_torch_metadata(mutant.path))
    if not all(isinstance(key, str) for key in found):
        raise BrokenPromiseError("keys that are no text")
    same = found.keys() == _CONTENT.keys() and all(np.array_equal(found[key], _CONTENT[key]) for key in found)
    return READ if same else "read as other plain values"
