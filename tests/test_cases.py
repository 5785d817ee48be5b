"""Small reproducers of what people report of trainers like this one, run from a shell as they would.

Each folder of `cases` has a script, `run.sh`, and `expected.txt`: a regular expression for every line that it prints.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked_python import forked_python

CASES = Path(__file__).parent / "cases"
ROOT = CASES.parents[1]
CLI = "-m adadistill.recipes.cli"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir() if path.is_dir()))
def test_every_case_prints_what_is_expected_of_it(case, tmp_path):
    path = os.pathsep.join(filter(None, [str(ROOT / ".typecheck"), os.environ.get("PYTHONPATH", "")]))
    commands = {"AD": f"{forked_python()} {CLI}", "PY": forked_python(), "FRESH_AD": f"{sys.executable} {CLI}",
                "FRESH_PY": sys.executable}  # fmt: skip
    environment = {**os.environ, **commands, "PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(CASES / case / "run.sh")], env=environment, capture_output=True, text=True, timeout=400
    )
    printed = done.stdout.splitlines()
    expected = (CASES / case / "expected.txt").read_text(encoding="utf-8").splitlines()
    told = f"{done.stdout}\n{done.stderr}"
    for line, pattern in zip(printed, expected, strict=False):
        assert re.search(pattern, line), f"{pattern!r} is not in {line!r}, of:\n{told}"
    assert len(printed) == len(expected), told
    assert "Traceback" not in done.stderr, told
