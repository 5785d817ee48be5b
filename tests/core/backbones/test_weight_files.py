"""Reading weight files: what training frameworks write, and what must never be run or believed."""

import argparse
import os
import pickle
import sys
import types
import zipfile
from collections import Counter, OrderedDict

import numpy
import pytest
import torch
from safetensors.torch import save_file

from adadistill.core.backbones.weight_files import WeightFileError, read_weight_file

TENSORS = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn1.num_batches_tracked": torch.tensor(4)}


def assert_same(actual):
    assert actual.keys() == TENSORS.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_the_first_bytes_say_what_it_is_not_the_name(tmp_path, zipped):
    for name in ("w.pth", "W.PT", "pytorch_model.bin", "weights", "w.safetensors"):
        torch.save(OrderedDict(TENSORS), tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert_same(read_weight_file(tmp_path / name))


def test_reads_safetensors_under_any_name_and_names_an_absent_file(tmp_path):
    for name in ("model.safetensors", "w.pth"):
        save_file(TENSORS, tmp_path / name)
        assert_same(read_weight_file(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"absent.pth"):
        read_weight_file(tmp_path / "absent.pth")


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


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "model.safetensors"])
def test_truncated_files_are_named(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=name == "zip.pth")
    body = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.6, 0.95):  # in the header, in the pickle, in the tensors
        path.write_bytes(body[: int(len(body) * share)])
        with pytest.raises(WeightFileError, match=name):
            read_weight_file(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3, "name": "x"}, {"state_dict": {}}, {"w": [1.0]}])
def test_files_without_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightFileError, match=r"other.pt (holds|is no state dict)"):
        read_weight_file(tmp_path / "other.pt")


NETWORK = {"conv1.weight": torch.ones(4, 3, 3, 3), "bn1.bias": torch.zeros(4)}


def test_the_only_network_is_found_and_named(tmp_path, caplog):
    for key in ("state_dict", "state_dict_backbone", "module", "ema", "anything at all"):
        training = {
            "epoch": 3,
            "best": numpy.float64(0.5),
            "args": argparse.Namespace(lr=0.1),
            "loss": torch.tensor(0.5),
            "head": {"weight": torch.ones(10, 512)},
            key: OrderedDict(NETWORK),
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]},
        }
        torch.save(training, tmp_path / "w.pth")
        assert read_weight_file(tmp_path / "w.pth").keys() == NETWORK.keys()
        assert key.startswith("state_dict") or f"taken from `{key}`" in caplog.text


def test_a_network_deeper_down_is_found(tmp_path, caplog):
    torch.save({"state": {"model": NETWORK, "step": 3}}, tmp_path / "w.pth")
    assert read_weight_file(tmp_path / "w.pth").keys() == NETWORK.keys()
    assert "taken from `state.model`" in caplog.text


def test_entries_that_are_no_tensors_are_left_out_with_a_word(tmp_path, caplog):
    torch.save({**NETWORK, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    assert read_weight_file(tmp_path / "w.pth").keys() == NETWORK.keys()
    assert "epoch, optimizer" in caplog.text


def test_two_networks_are_refused_and_both_named_unless_they_are_one(tmp_path):
    for one, other in (("model", "ema"), ("state_dict", "state_dict_ema")):
        torch.save({one: NETWORK, other: dict(NETWORK), "epoch": 1}, tmp_path / "w.pth")
        with pytest.raises(WeightFileError, match=f"2 networks, under `{one}` and `{other}`"):
            read_weight_file(tmp_path / "w.pth")
    torch.save({"model": NETWORK, "ema": NETWORK}, tmp_path / "w.pth")
    assert read_weight_file(tmp_path / "w.pth").keys() == NETWORK.keys()


def test_a_whole_pickled_network_and_a_torchscript_program_are_refused_with_what_to_do(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), tmp_path / "w.pth")
    with pytest.raises(WeightFileError, match=r"a whole network(.|\n)*state_dict\(\)"):
        read_weight_file(tmp_path / "w.pth")
    torch.jit.script(torch.nn.Conv2d(3, 4, 3)).save(str(tmp_path / "w.pt"))
    with pytest.raises(WeightFileError, match="TorchScript"):
        read_weight_file(tmp_path / "w.pt")


def repacked(path, change):
    """The archive that torch saved, its members given to `change`, which returns the arguments of `writestr`."""
    with zipfile.ZipFile(path) as saved:
        members = [(name, saved.read(name)) for name in saved.namelist()]
    with zipfile.ZipFile(path, "w") as file:
        for name, body in members:
            file.writestr(*change(name, body))
    return path


def test_a_storage_that_unpacks_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(TENSORS, path)
    repacked(path, lambda name, body: (name, body, zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED))
    with pytest.raises(WeightFileError, match=r"w\.pth cannot be read: an archive whose .*is compressed"):
        read_weight_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bytearray_of_any_size_is_not_made(tmp_path, zipped):
    pickled = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."  # 2 GiB in 20 bytes
    path = tmp_path / "w.pth"
    if zipped:
        torch.save(TENSORS, path)
        repacked(path, lambda name, body: (name, pickled if name.endswith("data.pkl") else body))
    else:
        path.write_bytes(pickled)
    with pytest.raises(WeightFileError, match=r"w\.pth cannot be read: asks for builtins\.bytearray"):
        read_weight_file(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(1 << 40),
        torch.empty(1 << 40, device="meta"),
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (1 << 40,), check_invariants=True),
    ],
    ids=["one number repeated", "no data", "sparse"],
)
def test_tensors_larger_than_what_the_file_holds_of_them_are_refused(tmp_path, tensor):
    torch.save({"fine": torch.ones(2), "hollow": tensor}, tmp_path / "w.pth")
    with pytest.raises(WeightFileError, match="no plain tensors, such as hollow"):
        read_weight_file(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype": "F32", "shape": [0, 18446744073709551615], "data_offsets": [0, 0]}}',
        b'{"a": ' * 10_000,
        b"\xff",
    ],
)
def test_odd_safetensors_headers_are_named_errors(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    with pytest.raises(WeightFileError, match=r"w\.safetensors is not a readable"):
        read_weight_file(tmp_path / "w.safetensors")


def test_a_safetensors_header_beyond_any_network_is_not_parsed(tmp_path):
    (tmp_path / "w.safetensors").write_bytes((90_000_000).to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightFileError, match="claims a header of 90,000,000 bytes"):
        read_weight_file(tmp_path / "w.safetensors")


def test_pickles_of_other_protocols_are_refused_without_a_warning(tmp_path, recwarn):
    for protocol in (0, 1, 3, 4, 5):
        (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": os.system}, protocol))
        with pytest.raises(WeightFileError):
            read_weight_file(tmp_path / "w.pth")
    assert not recwarn.list
