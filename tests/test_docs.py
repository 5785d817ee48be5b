"""README and docs: links lead somewhere, and commands have the verbs and options that they are written with."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from tests_support import ROOT

from adadistill.recipes import cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SUB_VERBS = ("data", "recipes", "cache", "teacher", "centres", "bench")


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _commands(page: Path) -> list[str]:
    """Commands of ours in fenced blocks, continued lines joined, comments cut."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    found = (re.search(r"(?:^|\s)(adadistill \w.*|-m adadistill\.\w.*)", line) for line in lines)
    return [match[1] for match in found if match]


@cache
def _help(words: tuple[str, ...]) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return text.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name) if name else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(there), f"{page.name}: no heading {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_their_verbs_and_options(page: Path) -> None:
    for command in _commands(page):
        words = shlex.split(command.replace("[", "").replace("]", ""), comments=True)
        if words[0] == "-m":
            words = ["adadistill", {"cache_teacher": "cache"}.get(name := words[1].split(".")[-1], name), *words[2:]]
            words[2:2] = ["build"] if words[1] == "cache" else []
        if words[1] not in cli.VERBS:  # a module that is no verb: the generators of docs
            assert (ROOT / "recipes" / f"{words[1]}.py").exists(), f"{page.name}: {command}"
            continue
        verbs = tuple(words[1 : 3 if words[1] in SUB_VERBS else 2])
        usage = _help(verbs) if verbs[-1] != "--help" else _help(verbs[:-1])
        assert usage, f"{page.name}: {command}: no such verb"
        for option in re.findall(r"(?<=\s)--[a-z][a-z-]+", " ".join(words)):
            assert option == "--help" or option in usage, f"{page.name}: {command}: no {option}"


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    assert re.match(r"accuracy [\d.]+ \+- ", capsys.readouterr().out)
