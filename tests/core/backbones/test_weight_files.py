"""Reading weight files: what training frameworks write, and what must never be run or believed."""

import argparse
import os
import sys
import types
from collections import Counter, OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from adadistill.core.backbones.weight_files import WeightFileError, read_weight_file

TENSORS = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn1.num_batches_tracked": torch.tensor(4)}


def assert_same(actual):
    assert actual.keys() == TENSORS.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_pickled_state_dicts(tmp_path, suffix, zipped):
    path = tmp_path / f"weights{suffix}"
    torch.save(OrderedDict(TENSORS), path, _use_new_zipfile_serialization=zipped)
    assert_same(read_weight_file(path))


def test_reads_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_same(read_weight_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("key", ["state_dict", "state_dict_backbone"])
def test_finds_the_network_in_a_training_checkpoint(tmp_path, key):
    torch.save({"epoch": 3, key: TENSORS, "optimizer": {"lr": 0.1}}, tmp_path / "training.pt")
    assert_same(read_weight_file(tmp_path / "training.pt"))


def test_reads_a_lightning_checkpoint_without_lightning(tmp_path, monkeypatch):
    path = tmp_path / "adaface.ckpt"
    with monkeypatch.context() as context:
        hyper_parameters, callback = lightning_objects(context)
        checkpoint = {
            "state_dict": OrderedDict(TENSORS),
            "hyper_parameters": hyper_parameters,
            "callbacks": {callback: {"best_model_path": "x"}},
            "lr_schedulers": [{"milestones": Counter([12, 20]), "namespace": argparse.Namespace(lr=0.1)}],
        }
        torch.save(checkpoint, path)
    assert "pytorch_lightning" not in sys.modules
    assert_same(read_weight_file(path))


def lightning_objects(monkeypatch):
    """An AttributeDict and a callback class under the names that Lightning pickles them by."""
    parsing = types.ModuleType("pytorch_lightning.utilities.parsing")
    callbacks = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    parsing.AttributeDict = type("AttributeDict", (dict,), {"__module__": parsing.__name__})
    callbacks.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": callbacks.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.utilities", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, parsing.__name__, parsing)
    monkeypatch.setitem(sys.modules, callbacks.__name__, callbacks)
    return parsing.AttributeDict(arch="ir_50", m=0.4), callbacks.ModelCheckpoint


class RunsCode:
    """Its pickle calls os.mkdir when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"state_dict": TENSORS, "extra": RunsCode(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    with pytest.raises(WeightFileError, match=r"evil.ckpt cannot be read by torch's restricted unpickler"):
        read_weight_file(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


# Cut everywhere: in the header, in the pickle, in the tensors.
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "model.safetensors"])
def test_truncated_files_are_named(tmp_path, name, share):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=name == "zip.pth")
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * share)])
    with pytest.raises(WeightFileError, match=name):
        read_weight_file(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3, "name": "x"}, {"state_dict": {}}, {"w": [1.0]}])
def test_files_without_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightFileError, match=r"other.pt (holds|is no state dict)"):
        read_weight_file(tmp_path / "other.pt")


def test_unknown_suffix_and_absent_file_are_named(tmp_path):
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(WeightFileError, match=r"weights.onnx must end in one of .safetensors, .pth, .pt, .ckpt"):
        read_weight_file(tmp_path / "weights.onnx")
    with pytest.raises(FileNotFoundError, match=r"absent.pth"):
        read_weight_file(tmp_path / "absent.pth")
