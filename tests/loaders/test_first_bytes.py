"""Files that are not what they are named are called by what they are, before anything is said of a format."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adadistill.core.backbones.weight_files import WeightFileError, read_weight_file
from adadistill.core.npy_files import NpyFileError, open_npy
from adadistill.core.teachers.interface import TeacherError
from adadistill.loaders.evaluation_sets.verification_pairs import (
    UnsafePickleError,
    VerificationSetError,
    read_verification_bin,
)
from adadistill.loaders.first_bytes import kind_of, what_it_is
from adadistill.loaders.pixels import ImageDecodeError, decode_image
from adadistill.loaders.records.record_index import load_record_index
from adadistill.loaders.records.recordio import BadMagicError, RecordWriter
from adadistill.loaders.safe_pickle import TorchMetadataError, read_torch_metadata

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 19332096\n"


def _zip() -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("backbone.pth", b"x" * 100)
    return body.getvalue()


def _tar() -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("backbone.pth"))
    return body.getvalue()


STRANGERS = {
    "Git LFS pointer": (POINTER, r"is a Git LFS pointer, not the file itself \(of 19,332,096 bytes\).*git lfs pull"),
    "git-annex pointer": (b"/annex/objects/SHA256E-s1--0.pth\n", "git-annex pointer.*git annex get"),
    "page": (
        b"<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>\n",
        r"web page.*'Quota exceeded'",
    ),
    "page after blank lines": (b"\xef\xbb\xbf\n\n <HTML lang='en'>404</HTML>", "web page"),
    "refusal in XML": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        r"XML answer \('AccessDenied'\)",
    ),
    "refusal in JSON": (b'{"error": "Invalid username or password."}', r"JSON .*Invalid username"),
    "text": (b"Entry not found\n", r"is text \('Entry not found'\)"),
    "long text": ("é".encode() * 4000, "is text"),
    "UTF-16": ("weights".encode("utf-16"), "text in UTF-16"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(4096), "zeros from its beginning"),
    "gzip": (gzip.compress(b"x" * 100), "gzip archive; unpack it"),
    "tar": (_tar(), "tar archive; unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd archive"),
    "xz": (b"\xfd7zXZ\0" + bytes(20), "xz archive"),
    "resource fork": (b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(50), r"macOS metadata \(a \._ file\)"),
    "PDF": (b"%PDF-1.4\n\xe2\xe3", "is a PDF"),
}


def test_a_stranger_is_called_by_what_it_is(tmp_path: Path):
    for body, said in STRANGERS.values():
        (tmp_path / "x").write_bytes(body)
        found = what_it_is(tmp_path / "x")
        assert found is not None
        assert re.search(said, found)
        assert found == what_it_is(body)


def test_every_kind_that_is_read_here_is_known_and_may_be_expected(tmp_path: Path):
    torch.save({"a": torch.ones(2)}, tmp_path / "zip")
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle", _use_new_zipfile_serialization=False)
    save_file({"a" * 500: torch.ones(2)}, tmp_path / "safetensors")
    np.save(tmp_path / "npy.npy", np.ones(3))
    with RecordWriter(tmp_path / "records.rec") as writer:
        writer.write(0, b"\xff\xd8", labels=0.0)
    for name in ("zip", "pickle", "safetensors", "npy.npy", "records.rec"):
        kind = name.partition(".")[0]
        assert kind_of(tmp_path / name) == kind
        assert what_it_is(tmp_path / name, kind) is None
        assert what_it_is(tmp_path / name, "other") is not None


def test_no_kind_is_taken_for_another_and_the_unknown_is_left_to_its_reader():
    for length in (640, 896, 1152, 1408):  # whose first bytes are those of pickles
        assert kind_of(length.to_bytes(8, "little") + b'{"a": {}}') == "safetensors"
    for seed in range(5):
        body = b"\x01" + np.random.default_rng(seed).bytes(seed * 80)
        assert (kind_of(body), what_it_is(body)) == ("unknown", None)


def _onnx(path: Path) -> object:
    from adadistill.core.teachers.onnx_network import load_onnx

    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    return load_onnx(path, image_size=112, device=torch.device("cpu"), provider="auto")


READERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "w.pth": (read_weight_file, WeightFileError),
    "w.ckpt": (read_weight_file, WeightFileError),
    "w.safetensors": (read_weight_file, WeightFileError),
    "pytorch_model.bin": (read_weight_file, WeightFileError),
    "w.onnx": (_onnx, TeacherError),
    "lfw.bin": (read_verification_bin, VerificationSetError),
    "metadata.pt": (read_torch_metadata, TorchMetadataError),
    "rows.npy": (open_npy, NpyFileError),
    "train.rec": (load_record_index, BadMagicError),
    "face.jpg": (lambda path: decode_image(path.read_bytes(), where=path), ImageDecodeError),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_so_before_it_speaks_of_its_format(tmp_path: Path, reader: str):
    read, error = READERS[reader]
    for kind in ("Git LFS pointer", "page", "text", "zeros", "gzip"):
        body, said = STRANGERS[kind]
        (tmp_path / reader).write_bytes(body)
        with pytest.raises(error, match=said) as caught:
            read(tmp_path / reader)
        assert reader in str(caught.value) or reader == "rows.npy", "callers of open_npy name the file"


@pytest.mark.parametrize("name", ["w.pth", "metadata.pt"])
def test_a_zip_archive_of_something_else_says_what_is_in_it(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(_zip())
    with pytest.raises(READERS[name][1], match=r"here is 'backbone\.pth'"):
        READERS[name][0](tmp_path / name)


def test_a_hostile_pickle_of_protocol_0_is_not_called_text(tmp_path: Path):
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps([print], 0))
    with pytest.raises(UnsafePickleError):
        read_verification_bin(tmp_path / "lfw.bin")


def test_an_index_that_is_a_pointer_is_named_and_the_records_are_scanned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key in range(30):
            writer.write(key, b"\xff\xd8", labels=0.0)
    (tmp_path / "train.idx").write_bytes(POINTER)
    assert len(load_record_index(tmp_path / "train.rec")) == 30
    assert "git lfs pull" in caplog.text
