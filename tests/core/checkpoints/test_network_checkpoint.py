"""A path is all one needs to get a network back, with the bits it was saved with, or an error that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints import CheckpointError, CheckpointWriter, Snapshot
from adadistill.core.checkpoints.network_checkpoint import describe_network, load_network, save_network

NARROW = BackboneConfig(arch="iresnet18", width=0.125, embedding_dim=16)
CPU = torch.device("cpu")


def test_a_network_comes_back_with_its_bits(tmp_path: Path):
    network = build_backbone(NARROW, 32, generator=1)
    path = save_network(tmp_path / "net", network, NARROW, 32, source="a test")

    for given in (tmp_path / "net", path):
        loaded = load_network(given, device=CPU)
        assert (loaded.backbone, loaded.image_size, loaded.path) == (NARROW, 32, path)
        assert not loaded.network.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, loaded.network.state_dict()[name])


def _save(folder: Path, model: dict[str, torch.Tensor], state: dict[str, object]) -> Path:
    with CheckpointWriter(folder / "checkpoints", keep=1) as writer:
        writer.save(0, Snapshot(model=model, state=state))
    return folder


@pytest.mark.parametrize(
    "description",
    [None, {}, {"arch": "vit", "image_size": 32}, {"arch": "ir18", "image_size": "32"}, {"x": 1, "image_size": 1}],
)
def test_a_checkpoint_that_does_not_say_what_it_holds_is_refused(tmp_path: Path, description: object):
    state = {} if description is None else {"network": description}
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_network(_save(tmp_path, {"w": torch.zeros(1)}, state), device=CPU)


def test_tensors_of_another_network_are_refused(tmp_path: Path):
    model = build_backbone(NARROW, 32, generator=1).state_dict()
    model.pop(next(iter(model)))
    with pytest.raises(CheckpointError, match="does not hold a iresnet18"):
        load_network(_save(tmp_path, model, {"network": describe_network(NARROW, 32)}), device=CPU)


@pytest.mark.parametrize(
    "lie",
    [
        {"image_size": 1_600_000},
        {"image_size": 1 << 50},
        {"embedding_dim": 1 << 40},
        {"width": 8.0},
        {"image_size": 33},
    ],
)
def test_a_description_of_a_far_larger_network_takes_no_memory(tmp_path: Path, lie: dict[str, object]):
    model = build_backbone(NARROW, 32, generator=1).state_dict()
    with pytest.raises(
        CheckpointError, match=r"does not hold a iresnet18|no network that can be built|no network we know"
    ):
        load_network(_save(tmp_path, model, {"network": describe_network(NARROW, 32) | lie}), device=CPU)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_network(tmp_path, device=CPU)
