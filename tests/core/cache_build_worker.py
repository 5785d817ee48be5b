"""Processes for test_cache_build.py. Started as a script, with a JSON file that says which recipe to build:

    build PLAN          one rank of a build, with torchrun's variables in its environment
    kills PLAN OUT      builds killed at random moments and started again; what was seen of them goes to OUT

Children of `kills` are forked from a process that has imported everything and computed nothing, so that a build starts
in milliseconds and many of them fit into a test.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
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
MOST_STARTS = 30


def build_as_rank(plan_path: str) -> None:
    """Build as the rank that the environment says."""
    torch.set_num_threads(1)
    plan = json.loads(Path(plan_path).read_text())
    recipe = tiny_training.tiny_recipe(Path(plan["data"]), **plan["overrides"])
    with distributed_session("cpu") as ranks:
        result = build_cache(recipe, ranks=ranks, stop=StopSignal(), batch_size=plan["batch_size"])
    if ranks.is_main:
        print(json.dumps({"images": result.images, "digest": result.digest}))


def kill_and_resume(plan_path: str, out: str) -> None:
    """Kill `plan["kills"]` running builds; whenever one comes to its end, compare its files and begin a new cache."""
    plan = json.loads(Path(plan_path).read_text())
    moments = random.Random(plan["seed"])
    began = time.perf_counter()
    _wait(_start(plan, "reference"))
    duration = time.perf_counter() - began
    wanted = _digests(Path(plan["folder"]) / "reference")
    seen = {
        "duration": duration,
        "starts": 0,
        "kills": 0,
        "kills_before_header": 0,
        "finished": 0,
        "equal": 0,
        "lost": 0,
    }
    folder, done = Path(plan["folder"]) / "killed", 0
    while seen["kills"] < plan["kills"] and seen["starts"] < MOST_STARTS:
        seen["starts"] += 1
        child = _start(plan, folder.name)
        time.sleep(moments.uniform(0.0, duration))
        os.kill(child, signal.SIGKILL)
        if _wait(child) == 0:
            seen["finished"] += 1
            seen["equal"] += _digests(folder) == wanted
            shutil.rmtree(folder)
            done = 0
            continue
        seen["kills"] += 1
        seen["kills_before_header"] += not (folder / "header.json").exists()
        seen["lost"] += max(0, done - (done := _blocks_done(folder)))
    _wait(_start(plan, folder.name))
    seen["finished"] += 1
    seen["equal"] += _digests(folder) == wanted
    Path(out).write_text(json.dumps(seen))


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
    {"build": build_as_rank, "kills": kill_and_resume}[sys.argv[1]](*sys.argv[2:])
