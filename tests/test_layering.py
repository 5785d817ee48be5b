"""The arrows between folders: kernels are leaves, loaders use them, core composes, recipes launch; bench sees all."""

from __future__ import annotations

import ast
import subprocess
import sys

from tests_support import ROOT

ALLOWED = {
    "kernels": {"kernels"},
    "loaders": {"loaders", "kernels"},
    "core": {"core", "kernels", "loaders"},
    "recipes": {"recipes", "core", "loaders"},
    "bench": {"bench", "recipes", "core", "kernels", "loaders"},
}
# Heavy, optional or unimportable beside a CPU-only torch: imported where they are used, never at module level.
LAZY = {
    "nvidia",
    "simplejpeg",
    "sklearn",
    "torchvision",
    "apex",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "PIL",
    "pyarrow",
    "huggingface_hub",
}

SOURCES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def _imports(tree: ast.AST) -> set[str]:
    """Dotted names of all modules a piece of code imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
            if node.module == "adadistill":
                names.update(f"adadistill.{alias.name}" for alias in node.names)
    return names


def _module_level(tree: ast.Module) -> ast.Module:
    """The statements that run on import: without function bodies and without `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            node.body = [ast.Pass()]
            return node

        def visit_If(self, node: ast.If) -> ast.AST:
            return ast.Pass() if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(tree)


def test_there_are_sources_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(ALLOWED)


def test_imports_follow_the_arrows():
    for path in SOURCES:
        folder = path.relative_to(ROOT).parts[0]
        for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            top, _, rest = name.partition(".")
            assert top not in {*ALLOWED, "tests"}, f"{path} imports {name}; write adadistill.{name}"
            if top == "adadistill" and rest:
                allowed = ALLOWED[folder]
                assert rest.split(".")[0] in allowed, f"{path} imports {name}: {folder} may import {sorted(allowed)}"


def test_optional_and_heavy_packages_are_imported_where_they_are_used():
    for path in SOURCES:
        names = {
            name.partition(".")[0] for name in _imports(_module_level(ast.parse(path.read_text(encoding="utf-8"))))
        }
        assert not names & LAZY, f"{path} imports {sorted(names & LAZY)} at module level"


def test_importing_everything_touches_neither_cuda_nor_the_process_group():
    modules = [".".join(("adadistill", *path.relative_to(ROOT).with_suffix("").parts)) for path in SOURCES]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = f"""
import sys, os
sys.path.insert(0, {str(ROOT / "tests")!r})
import tests_support
tests_support.make_importable()
before = dict(os.environ)
import importlib, random, torch
state = torch.get_rng_state()
for name in {modules!r}:
    importlib.import_module(name)
assert not torch.cuda.is_initialized()
assert not torch.distributed.is_initialized()
assert torch.equal(state, torch.get_rng_state())
assert before == dict(os.environ)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr


def test_help_is_fast_because_the_command_line_imports_lazily():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import tests_support
tests_support.make_importable()
from adadistill.recipes import cli
for verb in ([], ["recipes"], ["teacher"], ["evaluate"]):
    try:
        assert cli.main([*verb, "--help"]) in (None, 0)
    except SystemExit as leaving:
        assert leaving.code == 0
assert "torch" not in sys.modules and "numpy" not in sys.modules, "the command line imports torch before it has to"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
