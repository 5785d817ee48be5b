"""`adadistill evaluate` from a checkpoint and `.bin` files to a table, JSON and CSV; wrong input ends with code 2."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from tiny_training import tiny_recipe, write_tiny_records
from torch import nn

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.public_weights import public_names
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.distributed import Ranks
from adadistill.core.recipe import dump_recipe
from adadistill.core.scoring.benchmark import ScoringTerms
from adadistill.core.scoring.embedding import Forward
from adadistill.core.scoring.verification import VERIFICATION, open_verification
from adadistill.core.scoring.verification_scores import score_verification
from adadistill.loaders.evaluation_sets.verification_pairs import read_verification_bin, write_verification_bin
from adadistill.recipes.evaluate import evaluate_network, main
from adadistill.recipes.scoring.benchmark_pass import Request

TESTS = Path(__file__).resolve().parent.parent
BACKBONE = BackboneConfig(arch="mobilefacenet", embedding_dim=16, width=0.25)
SIDE = 32


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_backbone(BACKBONE, SIDE, generator=7).eval()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, network) -> Path:
    """A run folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    save_network(folder, network, BACKBONE, SIDE)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> list[Path]:
    """One set of 24 pairs at the network's size, one of 4 pairs at another."""
    folder = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    paths = []
    for name, pairs, side in (("faces", 24, SIDE), ("few", 4, 40)):
        images = [
            simplejpeg.encode_jpeg(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(2 * pairs)
        ]
        write_verification_bin(folder / f"{name}.bin", images, [index % 2 == 0 for index in range(pairs)])
        paths.append(folder / f"{name}.bin")
    return paths


def test_a_run_folder_is_scored_into_table_json_and_csv(run_folder, sets, capsys):
    code = main([str(run_folder), "--sets", *map(str, sets), "--device", "cpu", "--batch-size", "10"])

    printed = capsys.readouterr().out
    assert code == 0
    lines = printed.splitlines()
    assert lines[0].split()[:3] == ["set", "pairs", "accuracy"]
    assert lines[2].split()[:2] == ["faces", "24"]
    assert lines[3].split()[:3] == ["few", "4", "-"]
    assert "few: accuracy: 4 pairs cannot be cut into 10 folds" in printed

    report = json.loads((run_folder / "report" / "verification-step-00000000.json").read_text())
    assert report["network"]["arch"] == "mobilefacenet"
    assert report["image_size"] == SIDE
    assert len(report["model_sha256"]) == 64
    assert (report["precision"], report["world_size"]) == ("float32", 1)
    assert list(report["sets"]) == ["faces", "few"]
    assert report["sets"]["few"]["accuracy"] is None

    with (run_folder / "report" / "verification-step-00000000.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["metric", "value"]
    values = {key: float(value) for key, value in rows[1:]}
    assert values["verification.faces.Accuracy-Flip"] == pytest.approx(report["sets"]["faces"]["accuracy"], abs=1e-6)
    assert {"verification.faces.Accuracy-Std", "verification.faces.XNorm", "verification.few.XNorm"} <= set(values)
    assert "verification.few.Accuracy-Flip" not in values
    assert [key for key, _ in rows[1:]] == sorted(values)


def test_scores_are_those_of_the_network_that_was_saved(run_folder, sets, network, tmp_path):
    request = Request(paths={"sets": sets}, out=tmp_path, device="cpu")
    evaluation = evaluate_network(run_folder / "checkpoints" / "step-00000000", request)

    for path, result in zip(sets, evaluation.results, strict=True):
        expected = score_of(network, path)
        assert result.details["auc"] == expected["auc"]
        assert result.details["xnorm"] == pytest.approx(expected["xnorm"], rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "verification-step-00000000.csv",
        "verification-step-00000000.json",
    ]


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float64"])
def test_other_precisions_run_and_are_named(run_folder, sets, tmp_path, precision):
    request = Request(paths={"sets": sets[:1]}, out=tmp_path, device="cpu", precision=precision, far=0.1)
    evaluation = evaluate_network(run_folder, request)
    report = json.loads((tmp_path / "verification-step-00000000.json").read_text())
    assert report["precision"] == precision
    assert report["sets"]["faces"]["far_target"] == 0.1
    assert evaluation.results[0].details["tar_strict"] is not None


# --- networks that are no checkpoints of ours ------------------------------------------------------------------------

IMAGENET = ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Linear(nn.Module):
    """What `onnx_file` computes, on the images that --color and --mean --std say it wants."""

    def __init__(self, *, color: str) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.from_numpy(linear_map()))
        self.color = color

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        wanted = ((images.flip(1) if self.color == "bgr" else images) + 1) / 2
        return ((wanted - MEAN) / STD).flatten(1) @ self.matrix


def linear_map() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(3 * SIDE * SIDE, 6)).astype(np.float32)


@pytest.fixture
def onnx_file(tmp_path) -> Path:
    onnx = pytest.importorskip("onnx", reason="writing an ONNX file needs onnx")
    pytest.importorskip("onnxruntime", reason="running an ONNX file needs onnxruntime")
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Flatten", ["data"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        [value("data", onnx.TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [value("embedding", onnx.TensorProto.FLOAT, ["batch", 6])],
        [onnx.numpy_helper.from_array(linear_map(), "matrix")],
    )
    (tmp_path / "teachers").mkdir()
    path = tmp_path / "teachers" / "linear.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def score_of(network: nn.Module, path: Path) -> Mapping[str, Any]:
    opened = open_verification(path, ScoringTerms(image_size=SIDE, ranks=Ranks()))
    return opened.score(network.eval(), Forward()).details


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_an_onnx_file_is_scored_on_the_images_it_was_said_to_want(onnx_file, sets, capsys, color):
    arguments = [str(onnx_file), "--color", color, *IMAGENET, "--image-size", str(SIDE), "--sets", str(sets[0])]
    assert main([*arguments, "--device", "cpu"]) == 0

    report = json.loads((onnx_file.parent / "report" / "verification-linear.json").read_text())
    expected = score_of(Linear(color=color), sets[0])
    assert report["sets"]["faces"]["xnorm"] == pytest.approx(expected["xnorm"], rel=1e-4)
    assert report["sets"]["faces"]["auc"] == pytest.approx(expected["auc"], abs=1e-3)
    identity = report["identity"]
    assert (identity["kind"], identity["name"], identity["embedding_dim"]) == ("onnx", "linear.onnx", 6)
    wanted = {"color": color, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert identity["preprocessing"] == wanted
    assert f"{color}, mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in capsys.readouterr().out
    other = score_of(Linear(color="bgr" if color == "rgb" else "rgb"), sets[0])
    assert other["xnorm"] != pytest.approx(expected["xnorm"], rel=1e-3)  # so that the order was tested at all


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_an_onnx_file_keeps_its_own_formats_and_the_report_says_so(onnx_file, sets, tmp_path, capsys, precision):
    arguments = [str(onnx_file), "--color", "rgb", *IMAGENET, "--image-size", str(SIDE), "--sets", str(sets[0])]
    assert main([*arguments, "--device", "cpu", "--precision", precision, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "verification-linear.json").read_text())
    assert report["precision"] == "float32"
    assert f"scored in float32, not {precision}" in capsys.readouterr().err
    expected = score_of(Linear(color="rgb"), sets[0])
    assert report["sets"]["faces"]["xnorm"] == pytest.approx(expected["xnorm"], rel=1e-4)


def test_public_weights_are_scored_in_the_order_they_were_trained_on(sets, tmp_path, capsys):
    backbone = BackboneConfig(arch="mobilefacenet", embedding_dim=16)
    network = build_backbone(backbone, SIDE, generator=7)
    own = network.state_dict()
    torch.save({public: own[name] for name, public in public_names(network).items()}, tmp_path / "student.pth")

    arguments = [str(tmp_path / "student.pth"), "--sets", str(sets[0]), "--image-size", str(SIDE), "--device", "cpu"]
    assert main(arguments) == 0

    report = json.loads((tmp_path / "report" / "verification-student.json").read_text())
    assert report["identity"]["arch"] == "mobilefacenet"
    assert report["identity"]["preprocessing"]["color"] == "rgb"
    expected = score_of(network, sets[0])
    assert report["sets"]["faces"]["xnorm"] == pytest.approx(expected["xnorm"], rel=1e-5)
    assert "color" not in capsys.readouterr().err
    assert main([*arguments, "--arch", "iresnet18"]) == 2


@pytest.fixture(scope="module")
def recipe_folder(tmp_path_factory, network) -> Path:
    """Tiny records, and a recipe whose teacher is a checkpoint."""
    folder = tmp_path_factory.mktemp("recipe")
    write_tiny_records(folder, identities=10)
    save_network(folder / "teacher", network, BACKBONE, SIDE)
    changes = {"teacher__embeddings": "null", "teacher__checkpoint": folder / "teacher"}
    (folder / "recipe.yaml").write_text(dump_recipe(tiny_recipe(folder, **changes)))
    return folder


def test_the_teacher_of_a_recipe_is_scored_as_it_teaches(recipe_folder, sets, network, tmp_path):
    arguments = ["--teacher", str(recipe_folder / "recipe.yaml"), "--sets", str(sets[0]), "--device", "cpu"]
    assert main(arguments) == 0
    report = json.loads((recipe_folder / "teacher" / "report" / "verification-step-00000000.json").read_text())
    assert report["identity"]["kind"] == "checkpoint"
    assert "colour_check" not in report
    expected = score_of(network, sets[0])
    assert report["sets"]["faces"]["xnorm"] == pytest.approx(expected["xnorm"], rel=1e-5)


def test_a_recipe_that_leaves_the_order_to_the_scores_has_them_in_the_report(recipe_folder, sets, tmp_path, capsys):
    changes = {
        "teacher__embeddings": "null",
        "teacher__checkpoint": recipe_folder / "teacher",
        "teacher__color": "auto",
    }
    (tmp_path / "recipe.yaml").write_text(dump_recipe(tiny_recipe(recipe_folder, **changes)))
    arguments = ["--teacher", str(tmp_path / "recipe.yaml"), "--sets", str(sets[0]), "--out", str(tmp_path / "out")]

    assert main([*arguments, "--device", "cpu"]) == 0  # random weights may be undecided: the source states rgb

    report = json.loads((tmp_path / "out" / "verification-step-00000000.json").read_text())
    assert report["colour_check"]["same_pairs"] == 40
    assert report["identity"]["preprocessing"]["color"] == "rgb"
    assert "colour order: " in capsys.readouterr().out


@pytest.mark.realdata
def test_a_real_onnx_teacher_tells_people_apart(data_dir, tmp_path):
    pytest.importorskip("onnxruntime", reason="running an ONNX file needs onnxruntime")
    network, holdout = data_dir / "teachers" / "MobileFaceNet.onnx", data_dir / "faces" / "faces_holdout.bin"
    if not network.is_file() or not holdout.is_file():
        pytest.skip(f"no {network} or {holdout}")
    pairs = read_verification_bin(holdout)  # all of it takes half a minute: some of its first pairs do here
    count = min(60, len(pairs.same))
    write_verification_bin(tmp_path / "some.bin", pairs.images[: 2 * count], pairs.same[:count])

    arguments = [str(network), "--color", "rgb", *IMAGENET, "--sets", str(tmp_path / "some.bin")]
    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0

    report = json.loads((tmp_path / "verification-MobileFaceNet.json").read_text())
    assert report["sets"]["some"]["pairs"] == count
    assert report["sets"]["some"]["auc"] > 0.97


# --- what goes wrong -----------------------------------------------------------------------------------------------


def error_of(arguments: list[object], capsys) -> str:
    """Standard error of a command that must end with code 2, in one readable piece."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in captured.err
    return captured.err


def test_wrong_files_end_with_code_2_and_one_line(run_folder, sets, tmp_path, capsys):
    assert "absent.bin" in error_of([run_folder, "--sets", tmp_path / "absent.bin"], capsys)
    assert "no checkpoint" in error_of([tmp_path, "--sets", sets[0]], capsys)
    (tmp_path / "evil.bin").write_bytes(b"cos\nsystem\n(Vtouch evil\ntR.")
    message = error_of([run_folder, "--sets", sets[0], tmp_path / "evil.bin"], capsys)
    assert message.startswith("UnsafePickleError: ")
    assert "os.system" in message
    assert "named 'faces'" in error_of([run_folder, "--sets", sets[0], sets[0]], capsys)
    (tmp_path / "file").write_text("")
    assert "file" in error_of([run_folder, "--sets", sets[0], "--out", tmp_path / "file"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["run"], "--sets"),
        (["--sets", "a.bin"], "name one network"),
        (["run", "--teacher", "recipe.yaml", "--sets", "a.bin"], "name one network"),
        (["run", "--sets", "a.bin", "--color", "rgb"], "--color: a checkpoint says this itself, and run is taken for"),
        (["--teacher", "r.yaml", "--sets", "a.bin", "--image-size", "32"], "--image-size: r.yaml says this"),
        (["r50.onnx", "--sets", "a.bin"], "--color, --mean, --std missing"),
        (["r50.onnx", "--sets", "a.bin", "--color", "bgr", "--mean", "0.5", "0.5", "0.5"], "; --std missing"),
        (["r50.onnx", "--sets", "a.bin", "--color", "auto"], "auto"),
        (["r50.pth", "--sets", "a.bin", "--mean", "0.5", "0.5", "0.5"], "--mean and std belong together"),
        (["r50.pth", "--sets", "a.bin", "--revision", "0" * 40], "--revision is for cvlface, got it with weights"),
        (["r50.pth", "--sets", "a.bin", "--device", "cpu"], "r50.pth"),
        (["cvlface_ir50", "--sets", "a.bin", "--revision", "main"], "--revision must be a full commit"),
        (["run", "--sets", "a.bin", "--batch-size", "0"], "must be a positive integer, got 0"),
        (["run", "--sets", "a.bin", "--batch-size", "x"], "must be a positive integer, got x"),
        (["run", "--sets", "a.bin", "--far", "2"], r"must be in (0, 1], got 2"),
        (["run", "--sets", "a.bin", "--far", "low"], r"must be in (0, 1], got low"),
        (["run", "--sets", "a.bin", "--precision", "int8"], "int8"),
        (["run", "--sets", "a.bin", "--best-by", "verification.a.EER"], "add --all"),
        (["run", "--sets", "a.bin", "--suffix", ".exe"], "--suffix .exe: weights files end in .pth"),
        (["--teacher", "r.yaml", "--sets", "a.bin", "--all"], "--all and --suffix are for a folder"),
        (["run", "--all", "--sets", "a.bin"], "run is no folder"),
        (["run", "--sets", "a.bin", "--device", "toaster"], "toaster"),
    ],
)
def test_wrong_arguments_end_with_code_2(arguments, message, capsys):
    assert message in error_of(arguments, capsys)


def test_a_network_that_gives_nan_ends_with_code_1(sets, tmp_path, network, capsys, monkeypatch):
    # Checkpoints refuse to hold NaN, so the network is made to give it after it was loaded.
    save_network(tmp_path / "run", network, BACKBONE, SIDE)
    monkeypatch.setattr(type(network), "forward", lambda self, images: torch.full((len(images), 16), torch.nan))
    assert main([str(tmp_path / "run"), "--sets", str(sets[0]), "--device", "cpu"]) == 1
    assert "verification set faces: 48 of 48 embeddings are not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "report").exists()


def test_help_needs_no_torch():
    script = (
        "import sys, types\n"
        "sys.modules['adadistill'] = types.ModuleType('adadistill')\n"  # tests_support, which does this, imports torch
        f"sys.modules['adadistill'].__path__ = [{str(TESTS.parent)!r}]\n"
        "from adadistill.recipes.evaluate import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--sets" in done.stdout


# --- reports -------------------------------------------------------------------------------------------------------


def test_the_table_is_aligned():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(80, 8))
    unit_embeddings = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    results = [
        score_verification(name, unit_embeddings, np.arange(40) % 2 == 0, xnorm=xnorm)
        for name, xnorm in (("a", 21.5), ('with, comma "and" quotes', None))
    ]

    lines = VERIFICATION.table(results).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[2].endswith(" 21.5")
    assert lines[3].endswith("-")
