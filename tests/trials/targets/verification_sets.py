"""Verification sets: `.bin` pickles of every protocol and layout, damaged, hostile, or of bad images."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from adadistill.loaders.evaluation_sets.verification_pairs import decode_pairs, read_verification_bin
from trials.targets.image_attacks import attacking_images, plain_jpeg
from trials.targets.pickle_attacks import PROTOCOLS, executing_pickles, exhausting_pickles
from trials.targets.target import READ, BrokenPromiseError, Material, Mutant, Original, attacks

_FILE, _PAIRS, _SIDE = "set.bin", 4, 32


def verification_sets(folder: Path) -> Material:
    """`.bin` files as `evaluate` and a recipe's `evaluation.sets` read and decode them."""
    images = [plain_jpeg(index, _SIDE, _SIDE) for index in range(2 * _PAIRS)]
    same = [bool(pair % 2) for pair in range(_PAIRS)]
    originals = [Original(name, {_FILE: body}, _FILE, hit=[_FILE]) for name, body in _layouts(images, same).items()]
    hostile = {**executing_pickles(folder.parent / "canary"), **exhausting_pickles()}
    for name, image in attacking_images().items():
        hostile[f"image: {name}"] = pickle.dumps(([*images[:-1], image], same), 4)
    hostile["one image a million times"] = _repeated(images[0], 999_000)
    (folder / _FILE).write_bytes(originals[0].files[_FILE])
    expected = decode_pairs(read_verification_bin(folder / _FILE), _SIDE, threads=2).tobytes()
    return Material(originals, lambda mutant: _read(mutant, expected), attacks(hostile, _FILE))


def _read(mutant: Mutant, expected: bytes) -> str:
    pairs = read_verification_bin(mutant.path)
    if len(pairs.images) != 2 * len(pairs.same) or pairs.same.dtype != np.bool_ or not len(pairs.same):
        raise BrokenPromiseError(f"{len(pairs.images)} images for {len(pairs.same)} flags")
    for first in range(0, min(len(pairs.images), 512), 64):
        pixels = decode_pairs(pairs, 112, first=first, stop=min(first + 64, len(pairs.images)), threads=2)
        if pixels.shape[1:] != (112, 112, 3):
            raise BrokenPromiseError(f"pixels of shape {pixels.shape}")
    found = decode_pairs(pairs, _SIDE, stop=min(64, len(pairs.images)), threads=2).tobytes()
    if found == expected:
        return READ
    if not mutant.changed and mutant.original.hit:
        raise BrokenPromiseError("a sound set was read as other images")
    return "read as a set of other images"


def _layouts(images: list[bytes], same: list[bool]) -> dict[str, bytes]:
    arrays = [np.frombuffer(body, np.uint8) for body in images]
    contents: dict[str, Any] = {
        "bytes": (images, same),
        "arrays": (arrays, np.array(same)),
        "columns": ([array[:, None] for array in arrays], np.array(same, np.int64)),
    }
    found = {
        f"{name}, protocol {protocol}": pickle.dumps(content, protocol)
        for name, content in contents.items()
        for protocol in PROTOCOLS
    }
    # What Python 2 wrote: strings of bytes, and 0 and 1 for flags are as good as booleans.
    strings = b"".join(b"T" + struct.pack("<i", len(body)) + body for body in images)
    flags = b"".join(b"\x88" if flag else b"\x89" for flag in same)
    return {**found, "Python 2": b"\x80\x02](" + strings + b"e](" + flags + b"e\x86."}


def _repeated(image: bytes, count: int) -> bytes:
    """One image by reference: a byte or two of the file for each time that it would be decoded."""
    images = b"](B" + struct.pack("<I", len(image)) + image + b"q\x00" + b"h\x00" * (count - 1) + b"e"
    return b"\x80\x03" + images + b"](" + b"\x88" * (count // 2) + b"e\x86."
