"""The part of `adadistill train` that profiles: its options, and launching under NVIDIA Nsight Systems.

torch's profiler records from inside. nsys has to start the process itself, so a launch that is not under it yet is told
the command that puts it there, or is replaced by it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from adadistill.core.profiling import ProfileRequest, StepWindow

_NSYS = (
    "nsys", "profile", "-t", "cuda,nvtx,osrt", "--sample=none", "--cpuctxsw=none", "--cuda-graph-trace=node",
    "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--force-overwrite=true",
)  # fmt: skip
_MODULE = "adadistill.recipes.train"


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """`--profile`, `--profile-steps` and `--run`."""
    group = parser.add_argument_group(
        "profiling", "of a few steps, without changing what is trained; docs/performance.md"
    )
    group.add_argument("--profile", choices=("torch", "nsys"), help="tool that records; nsys needs a CUDA device")
    group.add_argument(
        "--profile-steps",
        metavar="FIRST:COUNT",
        help=f"pass over FIRST steps of this launch, record COUNT (default: {StepWindow()})",
    )
    group.add_argument("--run", action="store_true", help="with --profile nsys: start this launch again under nsys")


def profile_request(arguments: argparse.Namespace) -> ProfileRequest | None:
    """The profile that the options ask for.

    Raises:
        ValueError: they are wrong, or do not fit together.
    """
    if arguments.run and arguments.profile != "nsys":
        raise ValueError("--run starts a launch again under nsys; it goes with --profile nsys")
    if arguments.profile is None:
        if arguments.profile_steps is not None:
            raise ValueError("--profile-steps needs a tool: add --profile torch or --profile nsys")
        return None
    window = StepWindow() if arguments.profile_steps is None else StepWindow.parse(arguments.profile_steps)
    return ProfileRequest(arguments.profile, window)


def refuse_without_cuda(device: str | None) -> None:
    """Raise ValueError where a launch with this `--device` does not train on CUDA."""
    named = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not named.startswith("cuda"):
        raise ValueError(
            f"--profile nsys records what CUDA devices do, this launch trains on {named}; use --profile torch"
        )


def nsys_process(argv: Sequence[str], folder: Path, environment: Mapping[str, str]) -> list[str]:
    """What starts this process again under nsys: one report per rank, in the run folder's `profile`.

    Args:
        argv: arguments of `adadistill train`.
        folder: the run folder.
        environment: of this process; torchrun and other launchers say there which rank it is.

    Raises:
        ValueError: nsys is not installed.
    """
    if shutil.which("nsys", path=environment.get("PATH")) is None:
        raise ValueError(
            "nsys is not on the PATH. It comes with NVIDIA Nsight Systems and with the CUDA toolkit (often "
            "/usr/local/cuda/bin); without it use --profile torch"
        )
    report = folder / "profile" / ("nsys-rank%q{RANK}" if "RANK" in environment else "nsys-rank0")
    train = [argument for argument in argv if argument != "--run"]
    return [*_NSYS, "-o", str(report), sys.executable, "-m", _MODULE, *train]


def nsys_command(process: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """The line to type that starts this launch, with all its ranks, under nsys."""
    command = shlex.join(process)
    if "LOCAL_WORLD_SIZE" in environment:
        nodes, per_node = environment.get("GROUP_WORLD_SIZE", "1"), environment["LOCAL_WORLD_SIZE"]
        where = "--standalone" if nodes == "1" else f"--nnodes={nodes} YOUR_RENDEZVOUS_OPTIONS"
        command = f"torchrun {where} --nproc_per_node={per_node} --no-python {command}"
    return f"mkdir -p {shlex.quote(str(folder / 'profile'))} && {command}"


def hand_to_nsys(argv: Sequence[str], folder: Path, *, run: bool) -> None:
    """Print the command that starts this launch under nsys, or become it; then this does not return.

    Raises:
        ValueError: nsys is not installed.
        OSError: the run folder or nsys cannot be used.
    """
    process = nsys_process(argv, folder, os.environ)
    if run:
        (folder / "profile").mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        os.execvp(process[0], process)
    if os.environ.get("RANK", "0") == "0":
        print("nsys has to start the processes that it profiles. Nothing was trained; run this, or add --run:")
        print(nsys_command(process, folder, os.environ))
