"""`adadistill evaluate` from a checkpoint and `.bin` files to a table, JSON and CSV; wrong input ends with code 2."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from torch import nn

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.evaluation import evaluate_sets
from adadistill.core.network_checkpoint import save_network
from adadistill.core.verification import verification_result
from adadistill.loaders.verification_pairs import write_verification_bin
from adadistill.recipes.evaluate import csv_report, main, report_folder, results_table, run

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
    from adadistill.core.distributed import Ranks
    from adadistill.core.evaluation import VerificationSets

    results = run(run_folder / "checkpoints" / "step-00000000", sets, out=tmp_path, device="cpu")

    expected = evaluate_sets(network, VerificationSets.load(sets, SIDE), ranks=Ranks())
    for name, result in expected.items():
        assert results[name].auc == result.auc
        assert results[name].xnorm == pytest.approx(result.xnorm, rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "verification-step-00000000.csv",
        "verification-step-00000000.json",
    ]


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float64"])
def test_other_precisions_run_and_are_named(run_folder, sets, tmp_path, precision):
    results = run(run_folder, sets[:1], out=tmp_path, device="cpu", precision=precision, far=0.1)
    report = json.loads((tmp_path / "verification-step-00000000.json").read_text())
    assert report["precision"] == precision
    assert report["sets"]["faces"]["far_target"] == 0.1
    assert results["faces"].tar_strict is not None


def test_torchrun_shares_the_work_and_writes_one_report(run_folder, sets, tmp_path):
    script = tmp_path / "launch.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "import tests_support; tests_support.make_importable()\n"
        "from adadistill.recipes.evaluate import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    command += [str(run_folder), "--sets", *map(str, sets), "--device", "cpu", "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy %") == 1
    alone = run(run_folder, sets, out=tmp_path / "alone", device="cpu")
    together = json.loads((tmp_path / "out" / "verification-step-00000000.json").read_text())
    assert together["world_size"] == 2
    for name, result in alone.items():
        assert together["sets"][name]["xnorm"] == pytest.approx(result.xnorm, rel=1e-5)
        assert together["sets"][name]["auc"] == pytest.approx(result.auc, abs=1e-3)


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
        (["run", "--sets", "a.bin", "--batch-size", "0"], "must be a positive integer, got 0"),
        (["run", "--sets", "a.bin", "--batch-size", "x"], "must be a positive integer, got x"),
        (["run", "--sets", "a.bin", "--far", "2"], r"must be in (0, 1], got 2"),
        (["run", "--sets", "a.bin", "--far", "low"], r"must be in (0, 1], got low"),
        (["run", "--sets", "a.bin", "--precision", "int8"], "int8"),
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


def test_reports_lie_in_the_run_folder(tmp_path):
    assert report_folder(tmp_path / "run" / "checkpoints" / "step-00000012") == tmp_path / "run" / "report"
    assert report_folder(tmp_path / "teachers" / "step-00000012") == tmp_path / "teachers" / "report"


def test_the_table_is_aligned_and_csv_survives_odd_names():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(80, 8))
    unit_embeddings = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    results = {
        name: verification_result(name, unit_embeddings, np.arange(40) % 2 == 0, xnorm=xnorm)
        for name, xnorm in (("a", 21.5), ('with, comma "and" quotes', None))
    }

    lines = results_table(results).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[2].endswith(" 21.5")
    assert lines[3].endswith("-")

    read_back = list(csv.reader(io.StringIO(csv_report(results))))
    assert all(len(row) == 2 for row in read_back)
    assert 'verification.with, comma "and" quotes.Accuracy-Flip' in [key for key, _ in read_back]
    assert not any("XNorm" in key and "comma" in key for key, _ in read_back)
