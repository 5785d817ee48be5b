"""Public weight files teach what their network says, in its colour order, or are refused with what is wrong."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import golden_state_dict
from narrow_networks import narrow_networks
from safetensors.torch import save_file
from tests_support import GOLDEN, golden_files

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.public_weights import public_names
from adadistill.core.backbones.weight_files import WeightFileError
from adadistill.core.distributed import Ranks
from adadistill.core.teachers import LoadedTeacher, TeacherConfig, TeacherError, load_source


def _load(path: Path, image_size: int = 16, **fields: object) -> LoadedTeacher:
    return load_source(TeacherConfig(weights=str(path), **fields), image_size=image_size, ranks=Ranks())  # type: ignore[arg-type]


def _refused(message: str, path: Path, **fields: object) -> None:
    with pytest.raises(TeacherError, match=message):
        _load(path, **fields)


def _public(arch: str, prefix: str = "") -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    network = build_backbone(BackboneConfig(arch=arch, embedding_dim=8), 16, generator=5).eval()
    own = network.state_dict()
    return network, {prefix + public: own[name] for name, public in public_names(network).items()}


def _save(public: dict, path: Path) -> Path:
    save_file(public, path) if path.suffix == ".safetensors" else torch.save(public, path)
    return path


@pytest.fixture(autouse=True)
def narrow(request: pytest.FixtureRequest) -> Iterator[None]:
    """But for the golden networks, which are as they were published."""
    with nullcontext() if request.node.get_closest_marker("golden") else narrow_networks():
        yield


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("arch", "prefix", "name"),
    [
        ("iresnet18", "", "backbone.pth"),
        ("mbf", "", "mbf.pt"),
        ("mobilefacenet", "module.", "student.pth"),
        ("ir18", "model.net.", "model.safetensors"),
    ],
)
def test_rgb_weights_teach_what_their_network_says(tmp_path: Path, arch: str, prefix: str, name: str):
    network, public = _public(arch, prefix)
    loaded = _load(_save(public, tmp_path / name))
    with torch.inference_mode():
        assert torch.equal(loaded.network()(IMAGES), network(IMAGES))
    identity = loaded.identity
    assert (identity.kind, identity.name, identity.arch, identity.embedding_dim) == ("weights", name, arch, 8)
    assert identity.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert identity.preprocessing.color == loaded.stated_color == "rgb"


def test_an_adaface_checkpoint_is_shown_bgr(tmp_path: Path):
    network, public = _public("ir18", "model.")
    public["head.kernel"] = torch.zeros(8, 5)
    loaded = _load(_save({"state_dict": public}, tmp_path / "adaface.ckpt"))
    with torch.inference_mode():
        assert torch.equal(loaded.network()(IMAGES), network(IMAGES.flip(1)))
    assert loaded.stated_color == "bgr"


def test_what_the_recipe_states_stands(tmp_path: Path):
    network, public = _public("ir18", "model.")
    public["head.kernel"] = torch.zeros(8, 5)
    path = _save({"state_dict": public}, tmp_path / "adaface.ckpt")
    loaded = _load(path, color="rgb", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network()(IMAGES), network((IMAGES + 1) / 2))


def test_ir_weights_without_a_publisher_need_a_colour(tmp_path: Path):
    _, public = _public("ir18")
    path = _save(public, tmp_path / "ir18.pth")
    _refused(r"teacher\.format to adaface or cvlface, or teacher\.color", path)
    assert _load(path, format="adaface").identity.preprocessing.color == "bgr"
    assert _load(path, color="bgr").identity.preprocessing.color == "bgr"
    assert _load(path, color="auto").stated_color is None


def test_the_pinned_hash_is_held(tmp_path: Path):
    _, public = _public("iresnet18")
    path = _save(public, tmp_path / "r18.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert _load(path, sha256=digest).identity.sha256 == digest
    _refused("another file than the one that was pinned", path, sha256="0" * 64)


def _without(public: dict, name: str) -> dict:
    return {key: tensor for key, tensor in public.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda public: _without(public, "fc.bias"), "missing fc.bias"),
        (lambda public: {**public, "fc.extra": torch.zeros(1)}, "not expected fc.extra"),
        (lambda public: {**public, "fc.weight": torch.zeros(8, 9)}, r"fc.weight is \[8, 9\]"),
        (lambda public: {**public, "bn1.weight": torch.full((8,), float("nan"))}, "not finite"),
        (lambda public: {name + ".x": tensor for name, tensor in public.items()}, "no network we know"),
        (lambda public: {f"{number}.{name}": public[name] for number, name in enumerate(public)}, "no network we know"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_list(tmp_path: Path, damage, message: str):
    _, public = _public("iresnet18")
    _refused(message, _save(damage(public), tmp_path / "r18.pth"))


def test_another_architecture_or_image_size_than_stated_is_refused(tmp_path: Path):
    path = _save(_public("iresnet18")[1], tmp_path / "r18.pth")
    _refused(r"missing layer1\.2\.bn1\.weight", path, arch="iresnet34")
    _refused(r"fc.weight is \[8, 64\], this network needs \[8, 256\]", path, image_size=32)


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_a_pickled_payload_is_refused_and_not_executed(tmp_path: Path):
    canary = tmp_path / "canary"
    for name in ("evil.pth", "evil.ckpt"):
        torch.save({"state_dict": _Bomb(canary)}, tmp_path / name)
        with pytest.raises(WeightFileError, match="restricted unpickler"):
            _load(tmp_path / name)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(_Bomb(canary)))
    with pytest.raises(WeightFileError, match="restricted unpickler"):
        _load(tmp_path / "evil.pt")
    assert not canary.exists()


def test_an_absent_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        _load(tmp_path / "nothing.pth")


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("backbone_ir18.npz"), ids=lambda path: path.stem)
def test_an_adaface_style_checkpoint_gives_the_golden_embeddings(tmp_path: Path, path: Path):
    public = {f"model.{name}": tensor.float() for name, tensor in golden_state_dict(path).items()}
    public["head.kernel"] = torch.zeros(512, 10)
    torch.save({"state_dict": public}, tmp_path / "adaface.ckpt")

    loaded = _load(tmp_path / "adaface.ckpt", image_size=112)

    images_u8 = torch.from_numpy(np.load(GOLDEN / "backbone_images.npz")["images_u8"])
    images = images_u8.double() / 127.5 - 1
    with torch.inference_mode():
        # The golden network is given these channels as they are; behind the project's RGB input they are reversed.
        raw = loaded.network().double()(images.flip(1))
    unit = torch.nn.functional.normalize(raw, dim=1)
    # The file holds float32 weights, as published ones do.
    torch.testing.assert_close(unit, torch.from_numpy(np.load(path)["output"]), rtol=0, atol=1e-6)
