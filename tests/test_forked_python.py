"""What stands in for `sys.executable` in tests starts real processes, ends with them, and knows when not to fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_python import forked_python

FORKED = "import sys; print('torch' in sys.modules)"


def _run(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([forked_python(), *arguments], capture_output=True, text=True, timeout=120, **more)


def test_arguments_environment_folder_and_streams_are_those_of_the_caller(tmp_path: Path):
    (tmp_path / "mine.py").write_text("import os, sys; print(sys.argv[1:], os.environ['WHO'], os.getcwd(), input())")
    environment = {**os.environ, "WHO": "me", "PYTHONPATH": str(tmp_path)}
    for how in (["mine.py"], ["-m", "mine"], ["-u", "-m", "mine"]):
        done = _run(*how, "a", "-b", env=environment, cwd=tmp_path, input="typed\n")
        assert done.stdout == f"['a', '-b'] me {tmp_path} typed\n", done.stderr
    assert _run("-", input=FORKED).stdout == "True\n"


def test_exit_codes_and_ends_by_a_signal_are_passed_on():
    assert _run("-c", "import sys; sys.exit(3)").returncode == 3
    assert _run("-c", "import os; os.kill(os.getpid(), 9)").returncode == -9
    failed = _run("-c", "1 / 0")
    assert failed.returncode == 1
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_it_ends_the_process(number: signal.Signals):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    with subprocess.Popen([forked_python(), "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert pid != process.pid
        process.send_signal(number)
        assert process.wait() == -number
    for _ in range(1000):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


@pytest.mark.parametrize(
    ("options", "variables"), [(["-OO"], {}), ([], {"PYTHONUTF8": "0"}), ([], {"TRITON_INTERPRET": "1"})]
)
def test_what_python_reads_as_it_starts_gets_a_python_of_its_own(options: list[str], variables: dict[str, str]):
    forked, fresh = _run("-c", FORKED), _run(*options, "-c", FORKED, env={**os.environ, **variables})
    assert (forked.stdout, fresh.stdout) == ("True\n", "False\n")


def test_triton_s_interpreter_has_a_server_of_its_own():
    pytest.importorskip("triton", reason="Triton is not installed")
    code = "from triton import knobs; print(knobs.runtime.interpret)"
    for interpreted in (False, True):
        done = subprocess.run([forked_python(interpreted=interpreted), "-c", code], capture_output=True, text=True)
        assert done.stdout == f"{interpreted}\n", done.stderr


def test_where_no_server_is_it_is_python(tmp_path: Path):
    client = tmp_path / "python"
    text = Path(forked_python()).read_text()
    client.write_text(text.replace(str(Path(forked_python()).with_name("server")), str(tmp_path / "none")))
    client.chmod(0o755)
    assert subprocess.run([client, "-c", FORKED], capture_output=True, text=True).stdout == "False\n"
    assert text.startswith(f"#!{sys.executable} -SI\n")
