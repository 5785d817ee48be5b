"""`adadistill evaluate FOLDER --all`: every network once, going on after a kill, the best one by a named score."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from evaluated_networks import BACKBONE, SIDE, write_checkpoints, write_pairs
from forked_python import forked_python

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.public_weights import public_names
from adadistill.core.checkpoints import CheckpointWriter, Snapshot
from adadistill.core.checkpoints.network_checkpoint import describe_network
from adadistill.recipes.evaluate import main
from adadistill.recipes.scoring.benchmark_pass import PreparedNetwork
from adadistill.recipes.scoring.files import read_evaluation, read_evaluations


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    return write_checkpoints(tmp_path_factory.mktemp("written") / "run")


@pytest.fixture
def run_folder(checkpoints, tmp_path) -> Path:
    return shutil.copytree(checkpoints, tmp_path / "run")


@pytest.fixture
def faces(tmp_path) -> Path:
    return write_pairs(tmp_path / "faces.bin")


@pytest.fixture
def scored(monkeypatch) -> list[str]:
    """Network and benchmark of every pass that is really computed."""
    passes: list[str] = []
    compute = PreparedNetwork.score

    def counted(self, benchmark):
        passes.append(f"{self.scored.name} {benchmark.name}")
        return compute(self, benchmark)

    monkeypatch.setattr(PreparedNetwork, "score", counted)
    return passes


def evaluate(*arguments: object) -> int:
    return main([*map(str, arguments), "--device", "cpu"])


@pytest.fixture(scope="module")
def evaluated(checkpoints, tmp_path_factory) -> Path:
    """A folder with `run`, all whose checkpoints are scored on `faces.bin` beside it."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(checkpoints, folder / "run")
    assert evaluate(folder / "run", "--all", "--sets", write_pairs(folder / "faces.bin")) == 0
    return folder


@pytest.fixture
def scored_run(evaluated, tmp_path) -> Path:
    return shutil.copytree(evaluated / "run", tmp_path / "run")


def test_every_checkpoint_is_scored_once_and_compared(run_folder, faces, scored, capsys):
    assert evaluate(run_folder, "--all", "--sets", faces) == 0

    names = [f"step-{step:08d}" for step in (10, 20, 30)]
    assert scored == [f"{name} faces" for name in names]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["network", "faces", "mean"]
    assert [line.split()[0] for line in lines[2:5]] == names
    summary = json.loads((run_folder / "report" / "evaluations.json").read_text())
    merits = {row["name"]: row["merit"] for row in summary["networks"]}
    assert summary["best"] == max(merits, key=merits.__getitem__)
    assert [line for line in lines if line.endswith("best")] == [lines[2 + names.index(summary["best"])]]

    assert evaluate(run_folder, "--all", "--sets", faces) == 0
    assert len(scored) == 3, "what is done was done again"


def test_a_killed_launch_goes_on_where_it_was(run_folder, faces, tmp_path, scored, monkeypatch):
    more = write_pairs(tmp_path / "more.bin", seed=1)
    compute = PreparedNetwork.score

    def killed(self, benchmark):
        if len(scored) == 3:  # in the second of the second network's two benchmarks
            raise KeyboardInterrupt
        return compute(self, benchmark)

    monkeypatch.setattr(PreparedNetwork, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run_folder, "--all", "--sets", faces, more)
    assert scored == ["step-00000010 faces", "step-00000010 more", "step-00000020 faces"]
    monkeypatch.setattr(PreparedNetwork, "score", compute)

    assert evaluate(run_folder, "--all", "--sets", faces, more) == 0

    assert scored[3:] == ["step-00000020 more", "step-00000030 faces", "step-00000030 more"]
    whole = tmp_path / "whole"
    assert evaluate(run_folder, "--all", "--sets", faces, more, "--out", whole) == 0
    for resumed, once in zip(read_evaluations(run_folder / "report")[0], read_evaluations(whole)[0], strict=True):
        assert [result.scores for result in resumed.results] == [result.scores for result in once.results]


def test_torchrun_shares_the_work_agrees_on_what_is_left_and_writes_one_report(scored_run, faces):
    run_folder = scored_run
    alone = read_evaluations(run_folder / "report")[0]
    (run_folder / "report" / "verification-step-00000020.json").unlink()
    command = [forked_python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "adadistill.recipes.evaluate", str(run_folder), "--all", "--sets", str(faces), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": forked_python()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best") == 1
    together = read_evaluations(run_folder / "report")[0]
    assert [one.setting["world_size"] for one in together] == [1, 2, 1]
    for one, other in zip(alone, together, strict=True):
        assert one.headlines == pytest.approx(other.headlines, abs=0.05)
        assert one.results[0].details["xnorm"] == pytest.approx(other.results[0].details["xnorm"], rel=1e-5)


def test_changed_data_networks_and_settings_are_scored_anew(scored_run, faces, scored):
    run_folder = scored_run
    before = read_evaluation(run_folder / "report" / "verification-step-00000010.json")

    write_pairs(faces, seed=5)
    assert evaluate(run_folder, "--all", "--sets", faces) == 0
    assert len(scored) == 3
    after = read_evaluation(run_folder / "report" / "verification-step-00000010.json")
    assert len(after.results) == 1
    assert after.results[0].data_sha256 != before.results[0].data_sha256

    assert evaluate(run_folder, "--all", "--sets", faces, "--far", "0.1") == 0
    assert len(scored) == 6
    assert evaluate(run_folder, "--all", "--sets", faces, "--far", "0.1", "--precision", "bfloat16") == 0
    assert len(scored) == 9

    other = build_backbone(BACKBONE, SIDE, generator=99).eval()
    with CheckpointWriter(run_folder / "checkpoints", keep=3) as writer:
        writer.save(10, Snapshot(model=other.state_dict(), state={"network": describe_network(BACKBONE, SIDE)}))
    assert evaluate(run_folder, "--all", "--sets", faces, "--far", "0.1", "--precision", "bfloat16") == 0
    assert scored[9:] == ["step-00000010 faces"]


def test_other_benchmarks_of_a_network_stay_in_its_file(scored_run, tmp_path, scored):
    more = write_pairs(tmp_path / "more.bin", seed=1)
    assert evaluate(scored_run, "--all", "--sets", more) == 0
    assert len(scored) == 3
    stored = read_evaluation(scored_run / "report" / "verification-step-00000010.json")
    assert [result.name for result in stored.results] == ["faces", "more"]


def test_a_damaged_result_is_made_again(scored_run, faces, scored, capsys):
    path = scored_run / "report" / "verification-step-00000020.json"
    path.write_text(path.read_text()[:1000])
    assert evaluate(scored_run, "--all", "--sets", faces) == 0
    assert scored == ["step-00000020 faces"]
    assert "step-00000020: scored anew: " in capsys.readouterr().err


@pytest.mark.parametrize(("key", "choose"), [("AUC", max), ("EER", min)])
def test_the_best_is_chosen_by_the_score_that_was_named(scored_run, faces, key, choose):
    run_folder = scored_run
    assert evaluate(run_folder, "--all", "--sets", faces, "--best-by", f"verification.faces.{key}") == 0
    stored = read_evaluations(run_folder / "report")[0]
    values = {one.name: one.score(f"verification.faces.{key}").value for one in stored}
    assert len(set(values.values())) > 1
    summary = json.loads((run_folder / "report" / "evaluations.json").read_text())
    assert summary["best"] == choose(values, key=values.__getitem__)
    assert summary["best_by"] == f"verification.faces.{key}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("verification.lfw.AUC", "keys of these benchmarks begin with verification.faces."),
        ("verification.faces.XNorm", "says nothing of how good a network is"),
    ],
)
def test_a_score_that_cannot_choose_is_refused_before_anything_is_embedded(
    run_folder, faces, key, message, scored, capsys
):
    assert evaluate(run_folder, "--all", "--sets", faces, "--best-by", key) == 2
    assert message in capsys.readouterr().err
    assert scored == []


def test_options_for_other_networks_are_refused_with_checkpoints(run_folder, faces, scored, capsys):
    with pytest.raises(SystemExit):
        evaluate(run_folder, "--all", "--sets", faces, "--color", "bgr")
    assert "--color: a checkpoint says this itself" in capsys.readouterr().err
    assert scored == []


def test_an_unknown_score_of_a_known_set_is_refused_with_those_there_are(scored_run, faces, capsys):
    assert evaluate(scored_run, "--all", "--sets", faces, "--best-by", "verification.faces.auc") == 2
    assert "there are verification.faces.Accuracy-Flip, " in capsys.readouterr().err


def test_broken_benchmarks_are_refused_before_anything_is_embedded(run_folder, faces, tmp_path, scored, capsys):
    (tmp_path / "broken.bin").write_bytes(b"not a set")
    assert evaluate(run_folder, "--all", "--sets", faces, tmp_path / "broken.bin") == 2
    assert "broken.bin" in capsys.readouterr().err
    assert scored == []


def test_weights_files_are_scored_and_one_that_does_not_load_is_named(faces, tmp_path, scored, capsys):
    folder = tmp_path / "weights"
    folder.mkdir()
    network = build_backbone(BackboneConfig(arch="mobilefacenet", embedding_dim=16), SIDE, generator=7)
    own = network.state_dict()
    for stem in ("first", "second"):
        torch.save({public: own[name] for name, public in public_names(network).items()}, folder / f"{stem}.pth")
    (folder / "third.pth").write_bytes(b"damaged")
    (folder / "notes.txt").write_text("")

    arguments = [folder, "--suffix", ".pth", "--sets", faces, "--image-size", SIDE]
    assert evaluate(*arguments) == 1

    printed = capsys.readouterr()
    assert scored == ["first faces", "second faces"]
    assert "third: not scored: " in printed.out
    summary = json.loads((folder / "report" / "evaluations.json").read_text())
    assert list(summary["failures"]) == ["third"]
    assert [len(row["sha256"]) for row in summary["networks"]] == [64, 64]


def test_csv_keys_and_units_are_those_that_users_know(evaluated):
    run_folder = evaluated / "run"
    with (run_folder / "report" / "verification-step-00000010.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["metric", "value"]
    values = {key: float(value) for key, value in rows}
    stored = read_evaluation(run_folder / "report" / "verification-step-00000010.json")
    assert values["verification.faces.Accuracy-Flip"] == pytest.approx(
        stored.score("verification.faces.Accuracy-Flip").value, abs=1e-6
    )
    assert {"verification.faces.Accuracy-Std", "verification.faces.XNorm"} <= values.keys()
