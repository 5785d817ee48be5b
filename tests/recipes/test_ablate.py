"""The ablation end to end: trained, killed and resumed to the same table, failing runs, foreign folders, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from forked_python import forked_python
from rank_processes import run_ranks
from tests_support import ROOT
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import newest_valid_checkpoint
from adadistill.core.recipe import dump_recipe, load_recipe, recipe_hash
from adadistill.recipes import ablate, cli
from adadistill.recipes.ablation.plan import AblationError, plan_ablation
from adadistill.recipes.ablation.runs import RunState, read_states, refuse_mixtures

VARIANTS = ["geometry_adaptive", "geometry_headroom"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / ".typecheck")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose runs take a second or two and are saved every fourth step."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    settings = {"evaluation__sets": f"['{folder}/pairs.bin']", "evaluation__every_epochs": 2, "log__every": 1}
    settings |= {
        "optim__epochs": 2,
        "optim__milestones": "[1]",
        "optim__lr_batch_size": 8,
        "checkpoint__every_steps": 4,
    }
    (folder / "recipe.yaml").write_text(dump_recipe(tiny_recipe(folder, **settings)))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ablation that nothing interrupted: two variants, two seeds."""
    out = tmp_path_factory.mktemp("whole") / "ablation"
    assert ablate.main(arguments(recipe, out)) == 0
    return out


def arguments(recipe: Path, out: Path, *more: str) -> list[str]:
    return [str(recipe), "--variants", *VARIANTS, "--seeds", "2", "--out", str(out), "--device", "cpu", *more]


def statistics_of(out: Path) -> dict[str, object]:
    return json.loads((out / "report" / "ablation.json").read_text())


def rows_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "report" / "ablation.jsonl").read_text().splitlines()]


def files_of(out: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(out)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file()
    }


def assert_same_result(one: Path, other: Path) -> None:
    """The same statistics, and behind them networks with the same bits."""
    assert statistics_of(one) == statistics_of(other)
    for ours, theirs in zip(rows_of(one), rows_of(other), strict=True):
        for key in ("variant", "seed", "recipe_hash", "set", "accuracy", "auc", "xnorm", "state"):
            assert ours[key] == theirs[key], key
    for run in sorted((one / "runs").glob("*/*")):
        (ours, _), (theirs, _) = (newest_valid_checkpoint(folder / run.relative_to(one)) for folder in (one, other))
        assert ours is not None
        assert theirs is not None
        assert all(torch.equal(tensor, theirs.model[name]) for name, tensor in ours.model.items())


def test_every_run_is_an_ordinary_run_folder_and_the_report_holds_them_all(recipe: Path, whole: Path):
    for variant in VARIANTS:
        for seed in (5, 6):
            run = whole / "runs" / variant / f"seed-{seed}"
            names = {path.name for path in run.iterdir()}
            assert {"recipe.resolved.yaml", "environment.json", "metrics.jsonl", "checkpoints", "report"} <= names
            trained = load_recipe(run / "recipe.resolved.yaml")
            assert (trained.seed, trained.geometry_margin.mode) == (seed, variant.removeprefix("geometry_"))
    rows = rows_of(whole)
    assert len(rows) == 4
    assert {row["device"] for row in rows} == {"cpu"}
    assert all(row["state"] == "finished" and row["date"] and row["threads"] for row in rows)
    assert rows[0]["recipe_hash"] == recipe_hash(
        load_recipe(whole / "runs/geometry_adaptive/seed-5/recipe.resolved.yaml")
    )
    assert len({row["xnorm"] for row in rows}) == 4, "four different networks"
    page = (whole / "report" / "ablation.md").read_text()
    assert "| geometry_adaptive |" in page
    assert "Measured on CPU" in page
    (baseline,) = (v for v in statistics_of(whole)["sets"][0]["variants"] if v["name"] == "geometry_adaptive")
    assert baseline["difference"] is None


def test_the_same_command_again_trains_nothing_and_says_the_same(
    recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = {name: told for name, told in files_of(whole).items() if name.startswith("runs")}
    statistics = statistics_of(whole)
    monkeypatch.setattr(ablate, "run_training", lambda *_, **__: pytest.fail("a finished run was trained"))
    assert ablate.main(arguments(recipe, whole)) == 0
    assert {name: told for name, told in files_of(whole).items() if name.startswith("runs")} == before
    assert statistics_of(whole) == statistics
    assert "geometry_headroom" in capsys.readouterr().out


def test_a_dry_run_says_what_is_done_and_left_and_writes_nothing(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = files_of(whole)
    assert cli.main(["ablate", *arguments(recipe, whole, "--dry-run"), "--vary", "geometry_margin.scale=3,5"]) == 0
    capsys.readouterr()
    assert ablate.main(arguments(recipe, whole, "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "4 finished, 0 left" in told
    assert "geometry_margin.mode: adaptive != headroom" in told
    assert files_of(whole) == before
    assert ablate.main(arguments(recipe, tmp_path / "new", "--dry-run")) == 0
    assert "0 finished, 4 left" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_killed_in_the_middle_it_goes_on_to_the_same_table(recipe: Path, whole: Path, tmp_path: Path):
    out = tmp_path / "killed"
    shutil.copytree(whole, out)
    for variant in VARIANTS:
        shutil.rmtree(out / "runs" / variant / "seed-6")
    command = [forked_python(), "-m", "adadistill.recipes.ablate", *arguments(recipe, out)]
    third = out / "runs" / "geometry_adaptive" / "seed-6"
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: any((third / "checkpoints").glob("step-*")), process)
        finally:
            process.kill()
    assert not any((out / "runs" / "geometry_headroom" / "seed-6").glob("checkpoints/*")), "it was killed in the third"
    saved, _ = newest_valid_checkpoint(third)
    assert saved is not None
    assert saved.step < 12

    # What else a kill can leave: a torn line, and a file that was being written.
    with (third / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"event": "evaluation", "step": 12, "set": "pai')
    (out / ".base.resolved.yaml.partial-1").write_text("name: ti")
    assert ablate.main(arguments(recipe, out)) == 0
    assert_same_result(whole, out)
    resumed = json.loads((third / "environment.json").read_text())["resumed"]
    assert len(resumed) == 1, "the killed run went on, it did not start anew"


def test_told_to_stop_it_saves_and_exits_143(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "stopped"
    long = arguments(recipe, out, "optim.epochs=400", "checkpoint.every_steps=null")
    first = out / "runs" / "geometry_adaptive" / "seed-5" / "metrics.jsonl"

    def stop_it() -> None:
        while not (first.exists() and first.stat().st_size > 0):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_it, daemon=True).start()
    assert ablate.main(long) == 143
    assert "go on with the same command" in capsys.readouterr().err
    assert '"event": "stop"' in first.read_text()
    assert ablate.main([*long, "--dry-run"]) == 0
    assert "seed 5: begun, epoch " in capsys.readouterr().out


def wait_for(condition, process: subprocess.Popen) -> None:
    for _ in range(12000):
        if condition():
            return
        assert process.poll() is None, "it ended too early"
        time.sleep(0.005)
    pytest.fail("it never came so far")


def test_a_failing_variant_is_reported_and_the_others_go_on(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "diverges.yaml").write_text("# Far too large a rate.\noptim: {lr: 1.0e+30, warmup_epochs: 0.0}\n")
    (tmp_path / "untaught.yaml").write_text("teacher: {embeddings: nowhere.npy}\n")
    out = tmp_path / "out"
    command = [
        str(recipe), "optim.epochs=1", "optim.milestones=[]", "--variants", str(tmp_path / "diverges.yaml"), "recipe",
        str(tmp_path / "untaught.yaml"), "--baseline", "recipe", "--seeds", "1", "--out", str(out),
        "--device", "cpu",
    ]  # fmt: skip
    assert ablate.main(command) == 1
    printed = capsys.readouterr().out
    assert "diverges, seed 5, failed: NonFiniteError: step " in printed
    assert "nowhere.npy" in printed
    rows = {row["variant"]: row for row in rows_of(out)}
    assert [rows[name]["state"] for name in ("diverges", "recipe", "untaught")] == ["failed", "finished", "failed"]
    assert rows["recipe"]["accuracy"] is not None
    assert "failed: NonFiniteError" in (out / "report" / "ablation.md").read_text()

    assert ablate.main([*command, "--dry-run"]) == 0, "what failed is tried again by the next launch"
    assert "1 finished, 2 left" in capsys.readouterr().out


def test_without_matplotlib_it_is_still_a_success(
    recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert ablate.main(arguments(recipe, whole)) == 0
    assert "no figure: Curves are left out, for matplotlib is not installed" in capsys.readouterr().out


def test_two_processes_give_a_variant_up_together_and_go_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    (tmp_path / "diverges.yaml").write_text("optim: {lr: 1.0e+30, warmup_epochs: 0.0}\n")
    out = tmp_path / "out"
    short = [str(recipe), "optim.epochs=1", "optim.milestones=[]", "--seeds", "1", "--out", str(out), "--device", "cpu"]
    wrapper = f"import sys; from adadistill.recipes.ablate import main; sys.exit(main({short!r} + sys.argv[1:]) != 1)"
    variants = ["--variants", str(tmp_path / "diverges.yaml"), "no_teacher"]
    printed = run_ranks(["-c", wrapper, *variants], 2)
    assert "no_teacher: no seed in common with diverges" in printed[0]
    assert printed[1] == "", "rank 0 speaks"
    assert [row["state"] for row in rows_of(out)] == ["failed", "finished"]
    assert {row["world_size"] for row in rows_of(out)} == {2}


def test_more_seeds_and_variants_are_added_to_an_ablation(
    recipe: Path, whole: Path, capsys: pytest.CaptureFixture[str]
):
    more = [str(recipe), "--variants", *VARIANTS, "no_teacher", "--seeds", "3", "--out", str(whole), "--dry-run"]
    assert ablate.main(more) == 0
    assert "4 finished, 5 left" in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert ablate.main(list(command)) == 2
    return capsys.readouterr().err


def test_folders_of_anything_else_are_refused(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = files_of(whole)
    told = refused(capsys, *arguments(recipe, whole, "optim.lr=0.2"))
    assert "is the ablation of another recipe; differences (there != now): optim.lr: 0.1 != 0.2." in told
    assert files_of(whole) == before
    run = whole / "runs" / "geometry_adaptive" / "seed-5"
    assert "is the folder of one run" in refused(capsys, *arguments(recipe, run))
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no ablation" in refused(capsys, *arguments(recipe, tmp_path))
    assert "is a file" in refused(capsys, *arguments(recipe, tmp_path / "notes.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("kept", ["recipe.resolved.yaml", "checkpoints"])
def test_a_run_of_another_recipe_in_the_folder_is_refused_by_its_values(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str
):
    """Whichever of its files is left to tell."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    run = out / "runs" / "geometry_headroom" / "seed-6"
    shutil.rmtree(run)
    run.mkdir()
    source = out / "runs" / "geometry_adaptive" / "seed-6" / kept
    (shutil.copytree if source.is_dir() else shutil.copy)(source, run / kept)
    told = refused(capsys, *arguments(recipe, out))
    assert f"{run} holds a run of another recipe" in told
    assert "geometry_margin.mode: adaptive != headroom" in told


@pytest.mark.parametrize("kind", ["records", "teacher", "verification set pairs"])
def test_runs_of_other_files_under_the_same_paths_are_not_compared(tmp_path: Path, kind: str):
    """A teacher that was trained on since, or records that were packed anew, between two launches."""
    plan = plan_ablation(
        "demo_distilled", ["evaluation.sets=[pairs.bin]"], variants=VARIANTS, seeds="1", folder=tmp_path
    )  # fmt: skip
    one, other = plan.runs()
    alike = {run: RunState("finished", "finished", made_of={kind: "a" * 64}) for run in (one, other)}
    refuse_mixtures(alike)
    with pytest.raises(AblationError, match=rf"geometry_headroom/seed-0 was trained with another {kind} \(b{{12}}\)"):
        refuse_mixtures({**alike, other: RunState("finished", "finished", made_of={kind: "b" * 64})})


def test_a_finished_run_says_what_it_was_made_of(whole: Path, recipe: Path):
    plan = plan_ablation(recipe, variants=VARIANTS, seeds="2", folder=whole)
    told = [state.made_of for state in read_states(plan).values()]
    assert set(told[0]) >= {"records", "verification set pairs"}
    assert all(one == told[0] for one in told)


def test_kept_rows_stand_for_runs_of_the_same_recipe_and_code(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ablate, "run_training", lambda *_, **__: pytest.fail("nothing is to be trained"))
    rows = whole / "report" / "ablation.jsonl"
    assert ablate.main(arguments(recipe, tmp_path / "out", "--done", str(rows))) == 0
    assert statistics_of(tmp_path / "out") == statistics_of(whole)
    assert (tmp_path / "out" / "report" / "ablation.jsonl").read_bytes() == rows.read_bytes()

    capsys.readouterr()
    assert ablate.main(arguments(recipe, tmp_path / "more", "--done", str(rows), "--seeds", "3", "--dry-run")) == 0
    assert "4 finished, 2 left" in capsys.readouterr().out
    older = tmp_path / "older.jsonl"
    older.write_text("".join(json.dumps({**row, "training_code": "0" * 12}) + "\n" for row in rows_of(whole)))
    assert ablate.main(arguments(recipe, tmp_path / "more", "--done", str(older), "--dry-run")) == 0
    assert "0 finished, 4 left" in capsys.readouterr().out
    older.write_text("no rows\n")
    assert "cannot be read as rows of JSON" in refused(
        capsys, *arguments(recipe, tmp_path / "other", "--done", str(older))
    )


def test_a_damaged_or_unscored_run_is_not_taken_for_finished(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    unscored, damaged = (out / "runs" / variant / "seed-5" for variant in VARIANTS)
    lines = (unscored / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"event": "evaluation"' not in line]
    (unscored / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    model = damaged / "checkpoints" / "step-00000012" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\x55")
    assert ablate.main(arguments(recipe, out, "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "trained, to be scored" in told
    assert "its newest checkpoint is damaged" in told
    assert "2 finished, 2 left" in told
    assert ablate.main(arguments(recipe, out)) == 0
    assert_same_result(whole, out)


def test_mistakes_exit_2_with_one_message(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "out")
    assert "did you mean no_teacher?" in refused(capsys, str(recipe), "--variants", "no_teachr", "--out", out)
    assert "unknown device 'tpu'" in refused(capsys, *arguments(recipe, tmp_path / "out")[:-1], "tpu")
    assert "no such file" in refused(capsys, "nowhere.yaml", "--variants", "recipe", "--out", out)
    assert not Path(out).exists()


def test_help_lists_the_shipped_variants(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leaving:
        ablate.main(["--help"])
    assert leaving.value.code == 0
    printed = capsys.readouterr().out
    assert "geometry_headroom" in printed
    assert "The student alone" in printed
