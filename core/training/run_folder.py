"""The folder of one run: what it ran, where, how it went, and what came out.

    recipe.resolved.yaml   the whole recipe, defaults and overrides included; reloads to the same hash
    environment.json       versions, devices, commit, command line, date of the start; `resumed`: those of each resume;
                           under torchrun `launch`, by which a restart knows its own folder (see `restarts.py`)
    metrics.jsonl          one line per logged step
    owner-N.json           which launch works here; owner-N.released once it has left, see `folder_owner.py`
    checkpoints/           see `checkpoints/files.py`
    report/                tables and figures
    heartbeat/             what each rank last did; hang/: stacks of a launch that hung, see `watchdog.py`
    profile/               of a launch with --profile, see docs/performance.md

A folder holds one run: starting another one in it is refused. Run folders get shared, so nothing of the process
environment is written but the owner's host while it works, and passwords in URLs and secret-looking arguments are
blotted out. Only rank 0 writes.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from adadistill.core.checkpoints.files import list_checkpoints
from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.errors import Refused
from adadistill.loaders.usable_cpus import usable_cpus

_log = logging.getLogger(__name__)

_BLOT = "[redacted]"
_PACKAGES = {  # key in environment.json: distributions that provide it, under whatever CUDA version
    "adadistill": ("adadistill",),
    "torch": ("torch",),
    "numpy": ("numpy",),
    "dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"),
    "simplejpeg": ("simplejpeg",),
    "safetensors": ("safetensors",),
    "triton": ("triton",),
}
_SECRET_WORD = r"(?:token|secret|passw(?:or)?d|passphrase|(?:api|access)[_-]?key|credential|signature)"
_SECRET_NAME = rf"[\w.-]*{_SECRET_WORD}[\w.-]*"
_SECRET_OPTION = re.compile(rf"--?{_SECRET_NAME}", re.IGNORECASE)
_SECRET_SETTING = re.compile(rf"({_SECRET_NAME}[=:]).+", re.IGNORECASE | re.DOTALL)
_URL_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE)
_URL_SECRET = re.compile(rf"([?&](?:{_SECRET_NAME}|sig|key|auth)=)[^\s&#'\"]+", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8  # shorter values of secret-looking variables ("true", "1") would blot out ordinary words


class RunFolderError(Refused, RuntimeError):
    """The folder cannot take this run; the text says why and what to do."""


class RunFolder:
    """Paths inside a run folder, and its beginning. Making one touches nothing on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.resolved.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.report = self.path / "report"
        self.profile = self.path / "profile"

    def refuse_other_run(self, *, resuming: bool) -> None:
        """See whether the folder may take a run. Touches nothing.

        Raises:
            RunFolderError: it is a file, or holds a run and this is no resume.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; a run needs a folder. Give another path")
        traces = self.traces_of_a_run()
        if traces and not resuming:
            raise RunFolderError(
                f"{self.path} already holds a run ({', '.join(traces)}). "
                "Continue it with --resume auto, or give the new run a folder of its own"
            )

    def traces_of_a_run(self) -> list[str]:
        """What shows that the folder already holds a run, for people to read; empty if it holds none."""
        traces = [path.name for path in (self.recipe, self.environment, self.metrics) if path.exists()]
        saved = len(list_checkpoints(self.checkpoints))
        return traces + ([f"{saved} checkpoint(s)"] if saved else [])

    def belongs_to(self, launch: Sequence[str]) -> bool:
        """Whether a launch with one of these tokens (`restarts.agent_token`) began or continued the run in here."""
        try:
            content = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # none, or damaged: `start` says so where that matters
            return False
        if not isinstance(content, dict):
            return False
        resumed = content.get("resumed")
        starts = [content, *(resumed if isinstance(resumed, list) else [])]
        written = [start.get("launch") for start in starts if isinstance(start, dict)]
        return any(token in tokens for tokens in written if isinstance(tokens, list) for token in launch)

    def start(self, *, recipe_yaml: str, environment: Mapping[str, Any], resuming: bool, rank: int = 0) -> bool:
        """Create the folder and write what is known at the start. Ranks other than 0 do nothing.

        A resume adds to `environment.json` and keeps a recipe that has since changed as `recipe.before-resume-N.yaml`.
        Resuming in a folder without a run starts one.

        Args:
            recipe_yaml: the resolved recipe.
            environment: of `describe_environment`.
            resuming: whether a run already in the folder is to be continued.
            rank: of this process.

        Returns:
            Whether a run begins in it.

        Raises:
            RunFolderError: the folder holds another run, is no folder, or cannot be written.
        """
        if rank != 0:
            return False
        self.refuse_other_run(resuming=resuming)
        is_new = not self.traces_of_a_run()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.report.mkdir(exist_ok=True)
            self._write_environment(environment)  # first: it says whose folder this is
            self._write_recipe(recipe_yaml)
        except OSError as error:
            raise RunFolderError(
                f"cannot write the run folder {self.path}: {error}. Give another path, or make room"
            ) from error
        return is_new

    def withdraw(self) -> None:
        """Take back what `start` wrote for a new run that has trained nothing: the folder holds none any more."""
        for path in (self.metrics, self.recipe, self.environment):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.report):
            with suppress(OSError):  # not empty
                folder.rmdir()

    def _write_recipe(self, recipe_yaml: str) -> None:
        text = redact_urls(recipe_yaml)
        if text != recipe_yaml:
            _log.warning("%s: a password in a URL was left out, so this copy has another hash", self.recipe)
        if self.recipe.exists():
            # What a damaged file holds is kept as well, letters or not, and does not keep the run from resuming.
            earlier = self.recipe.read_bytes().decode(encoding="utf-8", errors="backslashreplace")
            if earlier == text:
                return
            number = 1 + len(list(self.path.glob("recipe.before-resume-*.yaml")))
            write_whole(self.path / f"recipe.before-resume-{number}.yaml", earlier)
        write_whole(self.recipe, text)

    def _write_environment(self, environment: Mapping[str, Any]) -> None:
        content: dict[str, Any] = {**environment, "resumed": []}
        if self.environment.exists():
            first = self._read_environment()
            if first is not None:
                content = {**first, "resumed": [*first["resumed"], dict(environment)]}
        write_whole(self.environment, json.dumps(content, indent=1) + "\n")

    def _read_environment(self) -> dict[str, Any] | None:
        """The earlier starts; a damaged file must not keep a run from resuming, so it is moved aside."""
        try:
            content = json.loads(self.environment.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict) and isinstance(content.get("resumed"), list):
            return content
        aside = self.environment.with_name("environment.damaged.json")
        _log.warning("%s is damaged and was moved to %s", self.environment, aside.name)
        os.replace(self.environment, aside)
        return None


_TRAINING_FOLDERS = ("core", "kernels", "loaders")


def describe_environment(*, world_size: int, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What a result depends on beside the recipe. Holds no host name, user name or environment variable.

    Args:
        world_size: number of processes of the run.
        argv: command line, `sys.argv` when left out; redacted.

    Returns:
        JSON-able: date, command, commit, versions, driver, devices. What is not there is None.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(redact_arguments(sys.argv if argv is None else argv)),
        "commit": source_commit(),
        "training_code": training_code(),
        "world_size": world_size,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        **{key: _version(distributions) for key, distributions in _PACKAGES.items()},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "driver": _driver_version(),
        "devices": _device_names(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def training_code() -> str:
    """The version of the code that trains: 12 hex digits of a hash over all Python of core, kernels and loaders.

    Unlike a commit it stays where documents, tests, recipes or measured rows change.
    """
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for folder in _TRAINING_FOLDERS for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


@functools.cache
def source_commit() -> str | None:
    """Commit of the checkout that this code runs from, with `+changes` when files differ; None if it runs from none.

    It is asked once: a process runs the code that it was started with, whatever is edited while it works.
    """
    root = Path(__file__).resolve().parents[2]
    top = _git(root, "rev-parse", "--show-toplevel")
    # An installed copy may lie inside somebody else's repository, whose commit says nothing about this code.
    if top is None or Path(top).resolve() != root:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit


def redact_arguments(argv: Sequence[str]) -> list[str]:
    """Blot out values of secret-looking options and settings, values of secret-looking variables, passwords in URLs."""
    variables = [
        value for name, value in os.environ.items() if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name)
    ]
    redacted = []
    after_secret_option = False
    for argument in argv:
        text = redact_urls(_SECRET_SETTING.sub(rf"\1{_BLOT}", argument))
        for value in variables:
            text = text.replace(value, _BLOT)
        redacted.append(_BLOT if after_secret_option else text)
        after_secret_option = _SECRET_OPTION.fullmatch(argument) is not None
    return redacted


def redact_urls(text: str) -> str:
    """Blot out user names, passwords and secret query values in URLs; all other text stays as it is."""
    return _URL_SECRET.sub(rf"\1{_BLOT}", _URL_PASSWORD.sub(rf"\1{_BLOT}@", text))


def _version(distributions: Sequence[str]) -> str | None:
    """Asked of the installer's records, which imports nothing."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:  # no NVIDIA driver here
        return None
    match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return match[1] if match else None


def _device_names() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _cpu_name() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not on Linux
        return platform.processor() or None
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, or its disk hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None
