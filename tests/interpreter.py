"""Runs a worker of `kernels` in Triton's interpreter, which is chosen before Triton is imported: another process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forked_python import forked_python


def interpreted(worker: str, arguments: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The lines of JSON that `WORKER_worker.py` printed, one a case. It must succeed."""
    script = Path(__file__).parent / "kernels" / f"{worker}_worker.py"
    command = [forked_python(interpreted=True), str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
