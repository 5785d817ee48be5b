"""`adadistill convert`: from a public weight file to a checkpoint that loads as a teacher."""

import pytest
import torch
from narrow_networks import narrow_networks
from safetensors.torch import save_file

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.public_weights import public_names
from adadistill.core.checkpoints.network_checkpoint import load_network, save_network
from adadistill.recipes.convert import main

CPU = torch.device("cpu")


@pytest.fixture
def narrow():
    with narrow_networks():
        yield


SMALL = ["--image-size", "16"]


def public_weights(arch, prefix=""):
    network = build_backbone(BackboneConfig(arch=arch, embedding_dim=8), 16, generator=5).eval()
    own = network.state_dict()
    return network, {prefix + public: own[name] for name, public in public_names(network).items()}


def convert(source, out, arch, *options):
    return main([str(source), "--arch", arch, *SMALL, *options, "--out", str(out)])


def embeddings(network, *, bgr=False):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        return network(images.flip(1) if bgr else images)


@pytest.mark.parametrize(
    ("arch", "prefix", "suffix"), [("mobilefacenet", "module.", ".pth"), ("ir18", "model.net.", ".safetensors")]
)
@pytest.mark.usefixtures("narrow")
def test_converted_checkpoint_loads_and_gives_the_same_embeddings(tmp_path, capsys, arch, prefix, suffix):
    network, public = public_weights(arch, prefix)
    source = tmp_path / f"weights{suffix}"
    save_file(public, source) if suffix == ".safetensors" else torch.save(public, source)
    assert convert(source, tmp_path / "teacher", arch) == 0
    loaded = load_network(tmp_path / "teacher", device=CPU)
    assert loaded.backbone == BackboneConfig(arch=arch, embedding_dim=8)
    assert loaded.image_size == 16
    assert torch.equal(embeddings(loaded.network), embeddings(network))
    assert "trained on rgb" in capsys.readouterr().out


@pytest.mark.usefixtures("narrow")
def test_adaface_checkpoint_is_turned_from_bgr_to_rgb_and_loses_its_head(tmp_path, capsys):
    network, public = public_weights("ir18", "model.")
    public["head.kernel"] = torch.zeros(8, 5)
    torch.save({"state_dict": public}, tmp_path / "adaface.ckpt")
    assert convert(tmp_path / "adaface.ckpt", tmp_path / "teacher", "ir18") == 0
    loaded = load_network(tmp_path / "teacher", device=CPU)
    # The original sees BGR: it must say of a BGR image what the converted network says of the RGB one.
    # Sums over channels in another order; with the colours as they were, they differ by tenths.
    torch.testing.assert_close(embeddings(loaded.network), embeddings(network, bgr=True), rtol=0.0, atol=2e-4)
    assert "ir18 (adaface, trained on bgr" in capsys.readouterr().out


@pytest.mark.usefixtures("narrow")
def test_colour_of_ir_weights_that_nothing_tells_must_be_given(tmp_path, capsys):
    network, public = public_weights("ir18")
    torch.save(public, tmp_path / "ir18.pth")
    assert convert(tmp_path / "ir18.pth", tmp_path / "teacher", "ir18") == 2
    assert "pass --format adaface|cvlface or --colour rgb|bgr" in capsys.readouterr().err
    assert not (tmp_path / "teacher").exists()
    assert convert(tmp_path / "ir18.pth", tmp_path / "teacher", "ir18", "--colour", "rgb") == 0
    assert torch.equal(embeddings(load_network(tmp_path / "teacher", device=CPU).network), embeddings(network))


@pytest.mark.usefixtures("narrow")
def test_what_cannot_be_converted_writes_nothing_and_a_folder_in_use_stays(tmp_path, capsys):
    for arch, options, message in (
        ("iresnet18", [], "missing fc.bias"),
        ("mbf", ["--format", "adaface"], "adaface publishes no mbf; its format must be one of insightface"),
    ):
        _, public = public_weights(arch)
        torch.save({name: tensor for name, tensor in public.items() if name != "fc.bias"}, tmp_path / f"{arch}.pth")
        assert convert(tmp_path / f"{arch}.pth", tmp_path / "teacher", arch, *options) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "teacher").exists()
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "notes.txt").write_text("mine")
    assert convert(tmp_path / "mbf.pth", tmp_path / "teacher", "mbf") == 2
    assert "exists already and is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "teacher").iterdir()] == ["notes.txt"]
    assert convert(tmp_path / "absent.pth", tmp_path / "out", "mbf") == 2
    assert "absent.pth is not a file" in capsys.readouterr().err


def test_a_network_of_ours_leaves_as_a_public_file_and_comes_back_the_same(tmp_path, capsys):
    config = BackboneConfig(arch="mobilefacenet", embedding_dim=8)
    save_network(tmp_path / "run", build_backbone(config, 112, generator=5), config, 112)
    out = tmp_path / "backbone.pth"
    assert main([str(tmp_path / "run"), str(out), "--to", "adadistill"]) == 0
    assert "for adadistill, images rgb" in capsys.readouterr().out
    assert main([str(out), str(tmp_path / "back")]) == 0
    there, back = (load_network(tmp_path / name, device=CPU) for name in ("run", "back"))
    assert there.backbone == back.backbone
    tensors = back.network.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in there.network.state_dict().items())


def test_the_way_out_refuses_at_the_door(tmp_path, capsys):
    config = BackboneConfig(arch="mobilefacenet", embedding_dim=8)
    save_network(tmp_path / "run", build_backbone(config, 112, generator=5), config, 112)
    assert main([str(tmp_path / "run"), str(tmp_path / "out.ckpt"), "--to", "adaface"]) == 2
    assert "adaface has no exact form of mobilefacenet; choose adadistill" in capsys.readouterr().err
    assert main([str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "say whose with --to" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out.pth"), "--to", "adadistill"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
