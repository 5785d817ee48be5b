"""The command line that all benches share: the docstring as help, a device, a file for the rows."""

from __future__ import annotations

import argparse

import torch


def bench_parser(name: str, about: str | None, *, takes_device: bool = True) -> argparse.ArgumentParser:
    """A parser with `--device` and `--rows`; a bench adds what it measures at.

    Args:
        name: as the bench is asked for.
        about: its docstring.
        takes_device: whether it can run elsewhere than on the CPU.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m adadistill.bench {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if takes_device:
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", help="JSONL file for the rows (default: print only)")
    return parser
