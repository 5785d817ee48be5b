"""`bench all`, `bench kernels` and `make gpu-check` are one list and one runner, and every job is understood."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from adadistill.bench import __main__ as command
from adadistill.bench import gpu_check, suite
from adadistill.bench.catalogue import benches


class _Parsed(BaseException):
    """The arguments were understood."""


def _stopping(parse: Callable[..., object]) -> Callable[..., None]:
    def parse_and_stop(*arguments: object) -> None:
        parse(*arguments)
        raise _Parsed

    return parse_and_stop


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "some faces"
    folder.mkdir()
    (folder / "train.rec").touch()
    return folder


@pytest.fixture
def parses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("parse_args", "parse_intermixed_args"):  # they end the process where they do not understand
        monkeypatch.setattr(argparse.ArgumentParser, name, _stopping(getattr(argparse.ArgumentParser, name)))


@pytest.mark.usefixtures("parses_alone")
def test_every_bench_understands_how_it_runs_tiny():
    for bench in benches():
        with pytest.raises(_Parsed):
            importlib.import_module(bench.module).main(shlex.split(bench.tiny or ""))


@pytest.mark.usefixtures("parses_alone")
@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize("with_faces", [True, False])
def test_every_job_is_a_command_that_its_bench_understands(cuda: bool, with_faces: bool, faces: Path):
    for job in suite.jobs(faces if with_faces else None, cuda=cuda):
        flag, module, name, *arguments = job.command
        assert (flag, module) == ("-m", "adadistill.bench")
        with pytest.raises(_Parsed):
            importlib.import_module(f"adadistill.bench.{name}").main(arguments)


@pytest.mark.parametrize("cuda", [True, False])
def test_no_bench_is_left_out_and_faces_are_only_asked_for_where_there_are_some(cuda: bool, faces: Path):
    names = {bench.name for bench in benches()}
    assert {job.command[2] for job in suite.jobs(faces, cuda=cuda)} == names
    assert {job.command[2] for job in suite.jobs(None, cuda=cuda)} == {
        bench.name for bench in benches() if not bench.needs_faces
    }


def test_a_folder_without_faces_is_refused_and_the_usual_one_may_be_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ValueError, match=r"no folder with a train.rec"):
        suite.faces_folder(tmp_path)
    monkeypatch.setenv("ADADISTILL_DATA", str(tmp_path))
    assert suite.faces_folder(None) is None


def test_jobs_run_by_priority_within_the_budget(capsys: pytest.CaptureFixture[str]):
    listed = [
        suite.Job("good", ("-c", "print('ran')"), 60),
        suite.Job("bad", ("-c", "raise SystemExit(3)"), 60),
        suite.Job("endless", ("-c", "import time; time.sleep(60)"), 1),
    ]
    assert suite.run_jobs(listed, minutes=2) == 1
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[1:3] for line in table] == [["ok", table[0].split()[2]], ["exit", "3"], ["too", "slow"]]
    assert suite.run_jobs(listed, minutes=0.1) == 0
    assert capsys.readouterr().out.count("skipped") == 3


def test_the_gpu_check_is_the_gpu_tests_and_then_every_bench(
    faces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ran: list[suite.Job] = []

    def run_jobs(listed: list[suite.Job], *, minutes: float) -> int:
        ran.extend(listed)
        return 0

    monkeypatch.setattr(suite, "run_jobs", run_jobs)
    assert gpu_check.main(["--faces", str(faces)]) == 0
    assert ran == [gpu_check.TESTS, *suite.jobs(faces, cuda=True)]
    names = [job.name for job in ran]
    assert {"loader, 5 KB JPEGs", "input stall", "real faces, 3 seeds"} <= set(names)
    ran.clear()
    assert gpu_check.main(["--faces", str(faces), "--only", "loader"]) == 0
    assert [job.name for job in ran] == [name for name in names if "loader" in name]
    with pytest.raises(SystemExit):
        gpu_check.main(["--faces", str(faces), "--only", "nothing"])
    assert "no job's name holds any of" in capsys.readouterr().err


def test_all_and_kernels_list_their_jobs_and_take_rows_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command.main(["all", "--device", "cpu", "--list", "--only", "prelu"]) == 0
    assert "bench kernels.bench_prelu --rows prelu.jsonl" in capsys.readouterr().out
    assert command.main(["kernels", "--list", "--repeats", "3"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == sum(bench.name.startswith("kernels.") for bench in benches())
    assert all("--repeats 3" in line for line in told)
    monkeypatch.delenv("OUT", raising=False)
    seen: list[str] = []
    monkeypatch.setattr(suite, "run_jobs", lambda listed, *, minutes: seen.append(suite.os.environ["OUT"]) or 0)
    assert command.main(["all", "--tiny", "--out", str(tmp_path / "rows")]) == 0
    assert command.main(["all", "--tiny"]) == 0
    assert seen[0] == str(tmp_path / "rows")
    assert not Path(seen[1]).exists(), "rows of a tiny run are kept only where that was asked for"
