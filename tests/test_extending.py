"""docs/extending.md taken literally: its code in a copy of the project, which then trains and evaluates with it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from forked_python import forked_python
from tests_support import ROOT

WORKER = Path(__file__).with_name("extending_worker.py")
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
MOST_LINES = 40


def _write(folder: Path, block: str, *, without: str = "") -> None:
    head, _, body = block.partition("\n")
    name, _, target = head.removeprefix("# ").partition(", into ")
    path = folder / name
    if not target:
        assert not path.exists(), f"{name} is there already"
        path.write_text(block, encoding="utf-8")
        return
    if target == without:
        return
    imports = [line for line in body.splitlines() if line.startswith(("from ", "import "))]
    lines = [line for line in body.splitlines() if line not in imports]
    text = path.read_text(encoding="utf-8")
    (opening,) = re.findall(rf'^(?:class {target}:\n    """[^"]*"""\n|{target}: .*\{{)', text, re.MULTILINE)
    first = re.search(r"^(from (?!__future__)|import )", text, re.MULTILINE)
    assert first is not None
    grown = text.replace(opening, opening.removesuffix("}") + "\n".join([*lines, ""]))
    path.write_text("\n".join([grown[: first.start()] + "\n".join(imports), grown[first.start() :]]), encoding="utf-8")


def _copy(folder: Path, *, without: str = "") -> Path:
    leave = shutil.ignore_patterns("__pycache__", "results")
    for name in ("core", "kernels", "loaders", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for block in BLOCKS:
        _write(folder, block, without=without)
    return folder


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _copy(tmp_path_factory.mktemp("extended"))


def _run(folder: Path, tmp_path: Path, *cases: str, interpreted: bool = False) -> subprocess.CompletedProcess[str]:
    command = [forked_python(interpreted=interpreted), str(WORKER), str(folder), str(tmp_path), *cases]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_each_is_shown_in_under_40_lines():
    assert max(len(block.splitlines()) for block in BLOCKS) < MOST_LINES


def test_everything_on_the_page_trains_resumes_and_evaluates(extended: Path, tmp_path: Path):
    done = _run(extended, tmp_path, "head", "backbone", "optimiser", "teacher", "augmentation", "together")
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [
        "head", "backbone", "optimiser", "teacher", "augmentation", "together"
    ]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("cases", [("head", "triton_augmentation"), ("hopper",)])
def test_head_and_augmentation_are_the_same_under_triton(cases: tuple[str, ...], extended: Path, tmp_path: Path):
    """In Triton's interpreter; and the kernel compiles with the rule in it."""
    done = _run(extended, tmp_path, *cases, interpreted=len(cases) > 1)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("forgotten", "message"),
    [("AugmentConfig", "pixel rules without a key: .*'erase'"), ("in_triton", "in_triton of norm_ramp contradicts")],
)
def test_what_is_registered_in_one_place_alone_does_not_import(forgotten: str, message: str, tmp_path: Path):
    folder = _copy(tmp_path / "copy", without=forgotten)
    if forgotten == "in_triton":
        path = folder / "core" / "method" / "norm_ramp.py"
        path.write_text(path.read_text().replace("in_triton=False", "in_triton=True"))
    done = _run(folder, tmp_path, "head")
    assert re.search(message, done.stderr), done.stderr[-2000:]
