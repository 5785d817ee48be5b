"""`adadistill train --dry-run` says what the launch would do, lists all that is wrong with it, and touches nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from forked_python import forked_python
from tests_support import ROOT
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.recipe import dump_recipe, load_recipe, recipe_hash, shipped_recipes
from adadistill.loaders.synthetic.synthetic_faces import SyntheticFacesConfig, write_synthetic_records
from adadistill.recipes import train

SHIPPED = "ms1mv2_ir50_to_mobilefacenet"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    recipe = tiny_recipe(folder, evaluation__sets=f"['{folder}/pairs.bin']", checkpoint__every_epochs=1)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder


@pytest.fixture(scope="module")
def trained(tiny: Path) -> Path:
    assert train.main([str(tiny / "recipe.yaml"), "--out", str(tiny / "trained"), "--device", "cpu"]) == 0
    return tiny / "trained"


@pytest.fixture(scope="module")
def ms1mv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder laid out as the shipped recipe wants it, its records of the right shape."""
    folder = tmp_path_factory.mktemp("ms1mv2")
    data = folder / "data" / "ms1mv2"
    write_synthetic_records(data, SyntheticFacesConfig(image_size=112, identities=5, images_per_identity=4))
    write_tiny_records(folder / "small")
    for name in ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "vgg2_fp"):
        shutil.copy(folder / "small" / "pairs.bin", data / f"{name}.bin")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below a folder with its size, its mode and when it was last changed."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        stat = path.lstat()
        found[str(path)] = (stat.st_size, stat.st_mode, stat.st_mtime_ns)
    return found


def dry(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a dry run on the CPU."""
    code = train.main([*arguments, "--dry-run", "--json", "--device", "cpu"])
    return code, json.loads(capsys.readouterr().out)


def test_the_ms1mv2_recipe_on_a_file_of_its_shape(
    ms1mv2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ms1mv2)
    monkeypatch.setenv("HF_HUB_CACHE", str(ms1mv2 / "hub"))
    before = snapshot(ms1mv2)

    small = ["data.decoder=cpu", "data.global_batch_size=16"]
    code = train.main([SHIPPED, *small, "--dry-run", "--device", "cpu", "--gpu", "h200"])

    said = capsys.readouterr().out
    assert code == 0, said
    assert snapshot(ms1mv2) == before
    for expected in (
        "data/ms1mv2/train.rec: 20 images of 5 identities",
        "insightface's header record, 5 identity records",
        "16 = 1 x 16 a device",
        "1 steps; 4 images fill no step",
        "milestone: times 0.1",
        "an estimate for h200, as asked for",
        "minchul/cvlface_adaface_ir50_webface4m at its newest commit  from the Hub",
        "teachers.lock.json",
        f"runs/{SHIPPED}/checkpoints",
        "begins a new run",
        "would start",
    ):
        assert expected in said
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith("  ") and line.split()}
    assert lines["data.decoder"] == ["cpu", "data.decoder=cpu"]
    written = shipped_recipes()[SHIPPED].read_text().splitlines()
    value, _, origin = " ".join(lines["head.margin"]).partition(" ")
    assert value == "0.4"
    assert "margin: 0.4" in written[int(origin.removeprefix(f"{SHIPPED}.yaml:")) - 1]
    assert lines["data.prefetch"] == ["3", "default"]


def test_json_says_the_same_and_every_value_has_an_origin(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = dry(capsys, str(tiny / "recipe.yaml"), "optim.lr=0.2", "--out", str(tiny / "new"))

    assert (code, found["would_start"], found["problems"]) == (0, True, [])
    recipe = load_recipe(tiny / "recipe.yaml", ["optim.lr=0.2"])
    assert found["recipe_hash"] == recipe_hash(recipe)
    assert found["recipe"]["optim.lr"] == {"value": 0.2, "origin": "optim.lr=0.2"}
    assert found["recipe"]["seed"]["origin"].startswith(f"{tiny / 'recipe.yaml'}:")
    assert found["records"]["images"] == 48
    assert found["steps"] == {
        "world_size": 1, "global_batch_size": 8, "batch_per_device": 8, "parts": 1, "per_epoch": 6, "in_all": 12,
        "dropped": 0,
    }  # fmt: skip
    assert found["memory"]["kind"] == "cpu"
    assert sum(found["memory"]["parts_gb"].values()) == pytest.approx(found["memory"]["needed_gb"])
    assert {file["presence"] for file in found["reads"]} == {"there", "optional"}
    assert not any(path["exists"] for path in found["writes"])
    assert not (tiny / "new").exists()


def test_all_problems_are_listed_not_the_first(
    tiny: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, found = dry(
        capsys, str(tiny / "recipe.yaml"), f"data.records={tiny}/elsewhere.rec", "optim.backend=apex",
        "teacher.embeddings=null", f"teacher.onnx={tiny}/none.onnx", "teacher.color=rgb",
        "teacher.mean=[0.5, 0.5, 0.5]", "teacher.std=[0.5, 0.5, 0.5]",
        f"evaluation.sets=[{tiny}/none.bin, {tiny}/pairs.bin]", f"evaluation.ijb=['{tiny}/pairs.bin']",
        "--out", str(trained), "--profile-steps", "2:3",
    )  # fmt: skip

    assert (code, found["would_start"]) == (2, False)
    said = "\n".join(found["problems"])
    for expected in (
        "--profile-steps needs a tool",
        "no record file and no folder at",
        "apex",
        "none.onnx is not a file",
        "none.bin; check the recipe",
        "pairs.bin is not a folder",
        "already holds a run",
    ):
        assert expected in said, said
    assert len(found["problems"]) == 7


def test_stored_embeddings_and_centres_are_looked_for_where_the_records_are_not_there(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = dry(
        capsys, str(tiny / "recipe.yaml"), f"data.records={tiny}/elsewhere.rec", f"teacher.embeddings={tiny}/gone.npy",
        "centres.kind=frozen", f"centres.path={tiny}/none.npy", "regression.weight=1",
        "geometry_margin.mode=off", "--out", str(tiny / "new"),
    )  # fmt: skip

    assert code == 2
    records, embeddings, centres = found["problems"]
    assert "no record file and no folder at" in records
    assert "gone.npy: no such file" in embeddings
    assert "none.npy" in centres


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.embeddings=FOLDER/pairs.bin"], "pairs.bin"),
        (["student.embedding_dim=32"], "16-d embeddings, the student's"),
        (["teacher.embeddings=null", "teacher.cache=FOLDER"], "no cache at"),
        (["teacher.embeddings=null", "teacher.weights=FOLDER/none.pth"], "none.pth"),
        (["teacher.embeddings=null", "teacher.checkpoint=FOLDER"], "holds no valid one"),
        (
            ["teacher.embeddings=null", "teacher.checkpoint=FOLDER/trained", "student.embedding_dim=32"],
            "gives 16-d embeddings",
        ),
        (["teacher.embeddings=null", "teacher.cvlface=no such thing"], "no repository `owner/name` on the Hub"),
        (["data.packed=FOLDER"], "packed"),
        (["data.global_batch_size=100"], "48 image records do not fill one global batch of 100"),
        (["data.micro_batch_size=3"], "data.micro_batch_size 3 does not divide"),
        (["data.records=FOLDER/empty.rec"], "empty.rec"),
        (["data.records=FOLDER/teacher.npy"], "teacher.npy"),
        ([f"data.records={'x' * 5000}"], "xxx"),
        (["data.seal=require"], "seal"),
        (["data.image_size=16"], "begins with an image of 32 x 32"),
        (["data.image_size=48"], "begins with an image of 32 x 32"),
        (["centres.kind=frozen", "centres.path=FOLDER/none", "teacher=null", "geometry_margin.mode=off"], "none: no s"),
        (["evaluation.tinyface=[FOLDER]"], "nor folders Probe, Gallery_Match"),
        (["optim.backend=apex"], "apex"),
        (["optim.lr=0", "head.margn=1"], "unknown key `head.margn`"),
        (["--resume", "FOLDER/pairs.bin"], "pairs.bin is no checkpoint and holds no valid one"),
        (["--resume", "FOLDER/trained", "optim.momentum=0.5"], "optim.momentum: 0.9 != 0.5"),
    ],
)
def test_what_a_start_refuses_the_dry_run_names_in_the_same_sentence(
    tiny: Path, trained: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    (tiny / "empty.rec").write_bytes(b"")
    before = snapshot(tiny)
    filled = [override.replace("FOLDER", str(tiny)) for override in overrides]
    command = [str(tiny / "recipe.yaml"), *filled, "--out", str(tiny / "new")]

    code, found = dry(capsys, *command)

    assert (code, len(found["problems"])) == (2, len(set(found["problems"])))
    assert said in "\n".join(found["problems"]), found["problems"]
    assert train.main([*command, "--device", "cpu"]) != 0
    first = found["problems"][0].removeprefix(f"{tiny / 'recipe.yaml'}: ")
    assert first in capsys.readouterr().err
    assert snapshot(tiny) == before


def test_resume_auto_names_the_checkpoint_that_it_would_go_on_from(
    tiny: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = snapshot(run)

    code, found = dry(capsys, str(tiny / "recipe.yaml"), "--out", str(run), "--resume", "auto")
    assert (code, found["resume"]["step"], found["resume"]["epoch"]) == (0, 12, 2)
    assert found["resume"]["checkpoint"].endswith("step-00000012")
    assert all(path["exists"] for path in found["writes"])

    code, found = dry(capsys, str(tiny / "recipe.yaml"), "optim.momentum=0.5", "--out", str(run), "--resume", "auto")
    assert code == 2
    assert "optim.momentum: 0.9 != 0.5" in "\n".join(found["problems"])
    assert snapshot(run) == before

    model = run / "checkpoints" / "step-00000012" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    code, found = dry(capsys, str(tiny / "recipe.yaml"), "--out", str(run), "--resume", "auto")
    assert (code, found["resume"]["step"]) == (0, 6)
    assert any("step-00000012 is passed over" in note for note in found["notes"])

    (run / "checkpoints" / "step-00000006" / "model.safetensors").unlink()
    code, found = dry(capsys, str(tiny / "recipe.yaml"), "--out", str(run), "--resume", "auto")
    assert code == 2
    assert "holds 2 checkpoint(s) and none is valid" in "\n".join(found["problems"])

    code, found = dry(capsys, str(tiny / "recipe.yaml"), "--out", str(tmp_path / "new"), "--resume", "auto")
    assert (code, found["resume"]["checkpoint"]) == (0, None)


def test_an_index_that_is_not_there_is_a_note(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(tiny / "train.rec", tmp_path)
    code, found = dry(capsys, str(tiny / "recipe.yaml"), f"data.records={tmp_path}/train.rec", "--out", str(tiny / "n"))
    assert code == 0
    assert "rebuilding the index by scanning" in found["notes"][0]
    assert found["records"]["index"].startswith("a scan of the records, because")
    assert [path.name for path in tmp_path.iterdir()] == ["train.rec"]


def test_a_run_folder_that_cannot_be_made_is_a_problem(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (tiny / "recipe.yaml", tiny / "recipe.yaml" / "run"):
        code, found = dry(capsys, str(tiny / "recipe.yaml"), "--out", str(out))
        assert code == 2
        assert len(found["problems"]) == 1
        assert "recipe.yaml is no folder" in found["problems"][0]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_enough_to_look_and_is_a_problem_to_run_in(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o555)
    code, found = dry(capsys, str(tiny / "recipe.yaml"), "--out", str(tmp_path / "run"))
    tmp_path.chmod(0o755)
    assert code == 2
    assert "read-only" in found["problems"][0]


def test_its_options_alone_do_not_start_a_run(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(tiny / "recipe.yaml"), "--out", str(tiny / "new"), "--gpu", "h200", "--json"]) == 2
    assert "--gpu and --json go with --dry-run" in capsys.readouterr().err
    assert not (tiny / "new").exists()


@pytest.mark.parametrize(("world_size", "code"), [(4, 0), (3, 2)])
def test_ranks_are_counted_and_must_divide_the_batch_and_only_rank_0_speaks(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world_size: int, code: int
) -> None:
    for name, value in (("RANK", 0), ("WORLD_SIZE", world_size), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    found_code, found = dry(capsys, str(tiny / "recipe.yaml"), "--out", str(tiny / "new"))
    assert found_code == code
    if code == 0:
        assert (found["steps"]["world_size"], found["steps"]["batch_per_device"]) == (4, 2)
        assert "shared by 2 processes" in found["memory"]["assumption"]
    else:
        assert "3" in found["problems"][0]

    monkeypatch.setenv("RANK", "1")
    assert train.main([str(tiny / "recipe.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


def test_a_device_that_is_not_there_and_half_a_launch_are_problems(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny / "recipe.yaml"), "--out", str(tiny / "new"), "--dry-run", "--json", "--device", "tpu"]
    assert train.main(arguments) == 2
    assert "unknown device 'tpu'" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.main(arguments) == 2
    assert "launch with torchrun" in capsys.readouterr().out


def test_a_fresh_process_leaves_no_trace_and_loads_no_group(tiny: Path, tmp_path: Path) -> None:
    """In an empty working folder: nothing appears there, in the data, or in a home of its own."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    before = snapshot(tiny), snapshot(tmp_path)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))},
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{ROOT}/.typecheck{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = [forked_python(), "-m", "adadistill.recipes.train", str(tiny / "recipe.yaml"), "--dry-run"]
    done = subprocess.run(
        [*command, "teacher.embeddings=null", "teacher.cvlface=cvlface_ir50", "student.embedding_dim=512"],
        cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would start" in done.stdout
    assert done.stderr == ""
    assert (snapshot(tiny), snapshot(tmp_path)) == before
