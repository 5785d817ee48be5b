"""The `teacher` section of a recipe: a network from one of the sources, its embeddings on disk, or both.

A source is one class in a file of its own, registered by the field of `TeacherConfig` that names it. Its module is
imported where it is used, so that a run loads no more than its own. docs/extending.md adds one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, Final, Literal, TypeAlias

from adadistill.core.backbones import BackboneName
from adadistill.core.teachers.preprocessing import check_statistics

WeightFormat: TypeAlias = Literal["auto", "adadistill", "insightface", "adaface", "cvlface"]
Provider: TypeAlias = Literal["auto", "cpu", "cuda"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """A source as a field of `TeacherConfig` registers it."""

    module: str
    """File of `core/teachers` that holds it, as `SOURCE`: a `NetworkSource`, or a `RowSource`."""
    options: tuple[str, ...] = ("compile",)
    """Fields of `TeacherConfig` that say something of a network, beside `color`, `mean`, `std` and `sha256`."""
    states_input: bool = True
    """Whether a network says how it wants its images; else `color`, `mean` and `std` must."""
    gives_rows: bool = False
    """Whether it gives stored embeddings in place of a network."""

    def source(self) -> Any:
        """The source itself."""
        return import_module(f"adadistill.core.teachers.{self.module}").SOURCE


def from_source(module: str, **facts: Any) -> Any:
    """The field of `TeacherConfig` that makes a source known by the field's name; left out by default.

    Args:
        module: as `Registered.module`; `facts` are its other fields.
    """
    registered = Registered(module=module, **facts)
    return field(default=None, metadata={"source": registered})


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """Source of the teacher's embeddings: a network (checkpoint, weights, cvlface or onnx), rows on disk, or both."""

    checkpoint: str | None = from_source("checkpoint")
    """A checkpoint of ours: its directory, or a run folder, whose newest valid checkpoint is taken."""
    weights: str | None = from_source("weight_source", options=("arch", "format", "compile"))
    """Public weights: insightface's `.pth`/`.pt`, AdaFace's `.ckpt`, AdaDistill's, or `.safetensors` of any of them."""
    cvlface: str | None = from_source("cvlface", options=("revision", "compile"))
    """A CVLface IR network: a repository on the Hugging Face Hub (`minchul/cvlface_adaface_ir50_webface4m`), a folder
    laid out like one, or the short names `cvlface_ir50` and `cvlface_ir101`."""
    onnx: str | None = from_source("onnx_network", options=("provider",), states_input=False)
    """An ONNX file with one image input and one embedding output; needs the extra onnx, and `color`, `mean`, `std`."""
    embeddings: str | None = from_source("stored_embeddings", gives_rows=True)
    """`.npy` file of stored embeddings, (N, V, D) floating point: row = record id, view 0 as stored, view 1 mirrored.
    Nothing binds it to the records; `adadistill cache import` makes a cache of it, which is bound. V = 1 serves recipes
    that never mirror."""
    cache: str | None = from_source("cached_teacher", gives_rows=True)
    """Folder of cached embeddings. With a network it must have been made by that very network (`adadistill cache build`
    makes it), and the network does not run in training; alone, its own header says where it came from."""
    arch: BackboneName | None = None
    """Architecture of `weights`. Left out: recognised by the names of the tensors."""
    format: WeightFormat = "auto"
    """Who published `weights`, which tells the colour order: adaface is BGR, the others RGB. auto: by the names."""
    color: Literal["rgb", "bgr", "auto"] | None = None
    """Channel order the network was trained on. Left out: what its source says. auto: both orders are scored on pairs
    of faces, the result is reported, and a source that says otherwise is refused."""
    color_set: str | None = None
    """Verification set (`.bin`) on which `color: auto` scores. Left out: pairs made from the training records."""
    mean: tuple[float, ...] | None = None
    """Mean of each input channel on the scale of 0 to 1, in the network's channel order. Left out: 0.5, as everywhere
    in face recognition; an ONNX file must say."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each input channel on the scale of 0 to 1. Left out: 0.5; an ONNX file must say."""
    sha256: str | None = None
    """What the weights (or the ONNX file) must hash to, 64 hex digits. Left out: not checked, but recorded."""
    revision: str | None = None
    """Commit of the `cvlface` repository, 40 hex digits. Left out: the one in the lock file, else the newest, which is
    then locked."""
    lock: str = "teachers.lock.json"
    """File that pins each `cvlface` source to a revision and hashes, written when a source is first used. Keep it with
    the recipes."""
    provider: Provider = "auto"
    """Where onnxruntime computes. auto: on CUDA where the run is and onnxruntime can, else on the CPU, with a warning
    where that is slower than it could be."""
    compile: bool | None = None
    """Run the network through `torch.compile`. Left out: on CUDA. Not for ONNX."""
    cache_on_device: bool = False
    """Hold the whole cache in the memory of the training device: N x V x D x 2 bytes, 12 GB for MS1MV2."""
    cache_verify: bool = True
    """Check the checksum of every block before training, the work shared by the ranks: seconds, and the disk is read
    once. Off: only sizes and header are checked, and a flipped bit is not found."""

    check: bool = field(default=True, metadata={"hashed": "if changed"})
    """Try the teacher, or its stored rows, on some of the records before anything is learned from it, and refuse one
    that does not know their people. Off: for records whose labels name no people."""

    def __post_init__(self) -> None:
        problems = self._source_problems() + self._value_problems()
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def source(self) -> str | None:
        """Name of the field that says where the network comes from, None where there is only a cache or embeddings."""
        return next((name for name in NETWORK_SOURCES if getattr(self, name) is not None), None)

    def _source_problems(self) -> list[str]:
        alternatives = [name for name in _SOURCES if name != "cache"]
        named = [name for name in alternatives if getattr(self, name) is not None]
        problems = []
        if len(named) > 1 or (not named and self.cache is None):
            found = " and ".join(named) or "none"
            problems.append(f"needs exactly one of {', '.join(alternatives)} (or a cache alone), got {found}")
        if self.embeddings is not None and self.cache is not None:
            problems.append("embeddings and cache are two stores of the same thing; keep one")
        for name in (*_SOURCES, "color_set", "lock"):
            if getattr(self, name) == "":
                problems.append(f"{name} must be a path or a name, got an empty text")
        return problems

    def _value_problems(self) -> list[str]:
        problems = []
        takes: dict[str, list[str]] = {name: list(NETWORK_SOURCES) for name in ("color", "mean", "std", "sha256")}
        for source, known in NETWORK_SOURCES.items():
            for name in known.options:
                takes.setdefault(name, []).append(source)
        left_out = {known.name: known.default for known in fields(self)}
        for name, sources in takes.items():
            if getattr(self, name) != left_out[name] and self.source not in sources:
                problems.append(f"{name} is for {', '.join(sources)}, got it with {self.source or 'no network'}")
        if self.color_set is not None and self.color != "auto":
            problems.append("color_set is what color: auto scores on; set color to auto, or remove it")
        missing = [name for name in ("color", "mean", "std") if getattr(self, name) is None]
        for source, known in NETWORK_SOURCES.items():
            if getattr(self, source) is not None and not known.states_input and missing:
                problems.append(
                    f"{source} does not say how the network wants its images: {', '.join(missing)} missing. "
                    "insightface's files take color: rgb, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]"
                )
        if (self.mean is None) != (self.std is None):
            problems.append("mean and std belong together, got one of them")
        elif self.mean is not None and self.std is not None:
            try:
                check_statistics(self.mean, self.std)
            except ValueError as error:
                problems.append(str(error))
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            problems.append(f"sha256 must be 64 lower-case hex digits, got {self.sha256!r}")
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            problems.append(f"revision must be a full commit, 40 lower-case hex digits, got {self.revision!r}")
        if self.cache is None and (self.cache_on_device or not self.cache_verify):
            problems.append("cache_on_device and cache_verify are about a cache, and there is none")
        return problems


_SOURCES: Final[dict[str, Registered]] = {
    known.name: known.metadata["source"] for known in fields(TeacherConfig) if "source" in known.metadata
}
ROW_SOURCES: Final = {name: known for name, known in _SOURCES.items() if known.gives_rows}
"""Where stored embeddings can be read from, by the field that names it."""
NETWORK_SOURCES: Final = {name: known for name, known in _SOURCES.items() if not known.gives_rows}
"""Where a network can come from, by the field that names it."""
