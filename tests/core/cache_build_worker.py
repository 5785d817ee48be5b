"""Processes for test_cache_build.py. Started as a script, with a JSON file that says which recipe to build:

    build PLAN          one rank of a build, with torchrun's variables in its environment
    kills PLAN          builds of one cache, killed at random moments and started again; prints what was seen of them

Children of `kills` are forked from a process that has imported everything and computed nothing, so that a build starts
in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import tiny_training
import torch
import torch.fx.experimental.symbolic_shapes  # by torch on first use otherwise: half a second of each child

from adadistill.core.distributed import Ranks, distributed_session
from adadistill.core.teachers.cache_build import build_cache
from adadistill.core.training.stop_signal import StopSignal

FILES = ("header.json", "embeddings.bin", "blocks.bin")
SLOT_BYTES = 16


def build_as_rank(plan_path: str) -> None:
    """Build as the rank that the environment says."""
    torch.set_num_threads(1)
    plan = json.loads(Path(plan_path).read_text())
    recipe = tiny_training.tiny_recipe(Path(plan["data"]), **plan["overrides"])
    with distributed_session("cpu") as ranks:
        result = build_cache(recipe, ranks=ranks, stop=StopSignal(), batch_size=plan["batch_size"])
    if ranks.is_main:
        print(json.dumps({"images": result.images, "digest": result.digest}))


def kill_and_resume(plan_path: str) -> None:
    """Kill builds of one cache until `plan["kills"]` were killed, or one of them came to its end; then finish it."""
    plan = json.loads(Path(plan_path).read_text())
    moments = random.Random(0)
    began = time.perf_counter()
    _wait(_start(plan, "reference"))
    duration = time.perf_counter() - began
    folder, done, lost, kills = Path(plan["folder"]) / "killed", 0, 0, 0
    for _ in range(plan["kills"]):
        child = _start(plan, folder.name)
        time.sleep(moments.uniform(0.1, 0.4) * duration)
        os.kill(child, signal.SIGKILL)
        kills += _wait(child) != 0
        lost += max(0, done - (done := _blocks_done(folder)))
    _wait(_start(plan, folder.name))
    equal = _digests(folder) == _digests(Path(plan["folder"]) / "reference")
    print(json.dumps({"kills": kills, "lost": lost, "equal": equal}))


def _start(plan: dict, name: str) -> int:
    """Fork a build into a folder; its process id. It ends with 0 where the cache is complete."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        cache = str(Path(plan["folder"]) / name)
        recipe = tiny_training.tiny_recipe(Path(plan["data"]), **plan["overrides"], teacher__cache=cache)
        build_cache(recipe, ranks=Ranks(), stop=StopSignal(), batch_size=plan["batch_size"])
        code = 0
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    """How a child ended: 0, or -9 where it was killed. Anything else is an error of the build."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a build ended with {code}")
    return code


def _digests(folder: Path) -> list[str]:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES), list(folder.iterdir())
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]


def _blocks_done(folder: Path) -> int:
    """Slots that are not empty."""
    path = folder / "blocks.bin"
    if not (folder / "header.json").exists() or not path.exists():
        return 0
    body = path.read_bytes()
    slots = [body[start : start + SLOT_BYTES] for start in range(0, len(body), SLOT_BYTES)]
    return sum(slot != bytes(SLOT_BYTES) for slot in slots)


if __name__ == "__main__":
    {"build": build_as_rank, "kills": kill_and_resume}[sys.argv[1]](sys.argv[2])
