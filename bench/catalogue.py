"""Which benches there are, found by looking: a file of this folder with a `main`, or `kernels/bench_*.py`.

Reads them without importing them, so that the list costs no torch. Every bench says in a constant how it runs in
seconds on any CPU, as typed in a shell; FOLDER stands for a folder of faces (`image_sources.py`), where it needs one:

    TINY = "--batch 2 --repeats 2 --device cpu"
"""

from __future__ import annotations

import ast
import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NO_BENCHES = ("__main__", "demo", "gpu_check")
"""Files with a `main` that measure nothing themselves."""


class UnknownBenchError(ValueError):
    """No bench has that name; the text has the nearest one."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One bench."""

    name: str
    """As it is asked for: `step`, `kernels.bench_prelu`."""
    about: str
    """First line of its docstring."""
    tiny: str | None
    """Its `TINY`; None where it has none."""

    @property
    def module(self) -> str:
        """What to import."""
        return f"adadistill.bench.{self.name}"

    @property
    def needs_faces(self) -> bool:
        """Whether its first argument is a folder of faces."""
        return self.tiny is not None and "FOLDER" in shlex.split(self.tiny)

    @property
    def rows_file(self) -> str:
        """Where its rows go when it runs with others."""
        return self.name.rpartition(".")[2].removeprefix("bench_") + ".jsonl"


@cache
def benches() -> tuple[Bench, ...]:
    """All of them, stages of a training step first, each group by name."""
    files = [path for path in sorted(FOLDER.glob("*.py")) if path.stem not in NO_BENCHES]
    found = [(path.stem, path) for path in files]
    found += [(f"kernels.{path.stem}", path) for path in sorted((FOLDER / "kernels").glob("bench_*.py"))]
    listed = []
    for name, path in found:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            listed.append(Bench(name, (ast.get_docstring(tree) or "").split("\n")[0], _constant(tree, "TINY")))
    return tuple(listed)


def _constant(tree: ast.Module, name: str) -> str | None:
    """Text that a module assigns to a name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            value = ast.literal_eval(node.value)
            return value if isinstance(value, str) else None
    return None


def bench_named(name: str, others: Sequence[str] = ()) -> Bench:
    """The bench of a name; `prelu` and `bench_prelu` are found as `kernels.bench_prelu` is.

    Args:
        others: further words that would have been understood, for the nearest one.

    Raises:
        UnknownBenchError: there is none.
    """
    if name == "reliability":
        raise UnknownBenchError("reliability is no bench any more: `make trials` in a checkout does its damage")
    by_name = {bench.name: bench for bench in benches()}
    for known in (name, f"kernels.{name}", f"kernels.bench_{name}"):
        if known in by_name:
            return by_name[known]
    short = {known.removeprefix("kernels.bench_"): known for known in by_name}
    near = difflib.get_close_matches(name, [*by_name, *short, *others], n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise UnknownBenchError(f"no bench is called {name!r}{hint}")


def tiny_arguments(bench: Bench, folder: Path) -> list[str]:
    """Arguments with which a bench runs in seconds on any CPU.

    Args:
        folder: an empty one, for the faces that it may need.

    Raises:
        ValueError: the bench does not say how.
    """
    if bench.tiny is None:
        raise ValueError(f"{bench.name} has no TINY: the arguments with which it runs in seconds on any CPU")
    if bench.needs_faces:
        from adadistill.bench.image_sources import write_tiny_faces

        write_tiny_faces(folder)
    return [str(folder) if word == "FOLDER" else word for word in shlex.split(bench.tiny)]
