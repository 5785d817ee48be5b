"""A frozen network as a teacher that looks at every batch: folded, in the formats that run fast, and compiled."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadistill.core.precision import Precision
from adadistill.core.teachers.batch_norm_folding import fold_batch_norms_
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import LoadedTeacher
from adadistill.core.training.compiler_check import compile_failures_told


def computes_in_torch(network: nn.Module) -> bool:
    """False where a part of it has a runtime of its own (an ONNX file), whose number formats are not ours to choose."""
    return all(getattr(module, "compilable", True) for module in network.modules())


def compiles_in_loop(loaded: LoadedTeacher, config: TeacherConfig, device: torch.device) -> bool:
    """Whether the recipe's teacher is compiled: as it says, or on CUDA wherever it can be."""
    if config.compile is None:
        return device.type == "cuda" and computes_in_torch(loaded.body)
    return config.compile


def in_loop_teacher(
    loaded: LoadedTeacher, config: TeacherConfig, *, precision: Precision, device: torch.device, batch_size: int
) -> NetworkTeacher:
    """The recipe's teacher as training runs it: whoever checks it or fills a cache with it runs the same."""
    return NetworkTeacher(
        loaded.network(),
        embedding_dim=loaded.identity.embedding_dim,
        device=device,
        dtype=precision.dtype,
        autocast_dtype=precision.autocast_dtype,
        channels_last=precision.channels_last,
        compile=compiles_in_loop(loaded, config, device),
        batch_size=batch_size,
    )


class NetworkTeacher:
    """A frozen copy of a network in evaluation mode, outside DDP. The network that it is made of stays as it is.

    A network that computes elsewhere than in torch (an ONNX file) says so by an attribute `compilable = False` on one
    of its modules. It is not copied, computes as its own runtime was told to, and takes contiguous float32 images.

    Args:
        network: images (n, 3, H, W), RGB in [-1, 1] -> raw embeddings (n, D).
        dtype: of the returned embeddings, and of the network where `autocast_dtype` is None: float32 or float64.
        autocast_dtype: what all but norms and the embedding layer compute in.
        channels_last: memory format of images and weights.
        fold_batch_norm: fold norms into the maps beside them, the same embeddings up to rounding.
        compile: run it through `torch.compile`. The first call takes the time to compile; a later one that would have
            to compile again is an error: a teacher that does so every few steps is slower than one that never does.
        batch_size: images in each run of the network: fewer are padded, more are cut, and it only ever sees one shape.
            None runs whatever comes; `compile` needs one.
        compile_backend: of `torch.compile`.

    Raises:
        ValueError: another dtype, a batch size under 1, or compilation of what cannot be compiled.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        embedding_dim: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        autocast_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        fold_batch_norm: bool = True,
        compile: bool = False,
        batch_size: int | None = None,
        compile_backend: str = "inductor",
    ) -> None:
        in_torch = computes_in_torch(network)
        _check(dtype=dtype, compile=compile, batch_size=batch_size, in_torch=in_torch)
        self.embedding_dim = embedding_dim
        self._device = device
        self._dtype = dtype
        self._autocast_dtype = autocast_dtype if in_torch else None
        self._image_dtype = (autocast_dtype or dtype) if in_torch else torch.float32
        self._memory_format = torch.channels_last if channels_last and in_torch else torch.contiguous_format
        self._batch_size = batch_size
        if in_torch:
            network = copy.deepcopy(network).eval().to(dtype)
            if fold_batch_norm:
                fold_batch_norms_(network)
            if autocast_dtype is not None:
                _cast_weights_(network, autocast_dtype)
            network.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        self.network = network.to(device).eval().requires_grad_(False)
        self._compiled: Any = None
        self._compiled_shape: torch.Size | None = None
        if compile:
            self._compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=compile_backend)

    def embed(self, images: Tensor) -> Tensor:
        """See `ImageTeacher.embed`. A zero embedding stays zero.

        Images in another dtype or memory format are converted. The result is a constant to autograd, and may enter a
        graph even where the caller is in inference mode.

        Raises:
            CompileError: the network cannot be compiled here.
            RuntimeError: the compiled network would have to be compiled again for this call.
        """
        # What is made in inference mode cannot enter a graph, so only the network runs in it.
        with torch.inference_mode(False), torch.no_grad():
            return F.normalize(self._raw_embeddings(images).to(self._dtype), dim=1)

    def _raw_embeddings(self, images: Tensor) -> Tensor:
        rows = self._batch_size
        if rows is None:
            return self._run(images)
        if len(images) == 0:
            return images.new_empty(0, self.embedding_dim)  # there is no last image to pad with
        return torch.cat([self._run(_padded(chunk, rows))[: len(chunk)] for chunk in images.split(rows)])

    def _run(self, images: Tensor) -> Tensor:
        images = images.detach().to(self._device, self._image_dtype).contiguous(memory_format=self._memory_format)
        if self._compiled is not None and images.is_inference():
            images = images.clone()  # the compiler takes what was made in inference mode for another kind of input
        autocast = torch.autocast(
            self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None
        )
        with torch.inference_mode(), autocast:
            return self.network(images) if self._compiled is None else self._run_compiled(images)

    def _run_compiled(self, images: Tensor) -> Tensor:
        if self._compiled_shape is None:
            with compile_failures_told(["teacher.compile=false"]):
                embeddings = self._compiled(images)
            self._compiled_shape = images.shape
            return embeddings
        try:
            with torch.compiler.set_stance("fail_on_recompile"):
                return self._compiled(images)
        except RuntimeError as error:
            if "fail_on_recompile" not in str(error):
                raise
            raise RuntimeError(
                f"the teacher was compiled for images {tuple(self._compiled_shape)} and would need compiling again "
                f"for images {tuple(images.shape)} or changed settings of torch. Keep both as they were, or set "
                f"teacher.compile to false.\n{error}"
            ) from error


def _check(*, dtype: torch.dtype, compile: bool, batch_size: int | None, in_torch: bool) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"embeddings of a teacher are float32 or float64, got {dtype}; see autocast_dtype")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if compile and not in_torch:
        raise ValueError("this teacher does not compute in torch and cannot be compiled; set teacher.compile to false")
    if compile and batch_size is None:
        raise ValueError("a compiled teacher needs a batch_size: every other number of images would be compiled anew")


def _cast_weights_(network: nn.Module, dtype: torch.dtype) -> None:
    """Store in `dtype` what autocast would otherwise cast in every step.

    Norms keep float32, in which they compute whatever their input is, and so does the embedding layer, which leaves
    autocast and computes in the dtype of its weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.PReLU):
            module.to(dtype)


def _padded(images: Tensor, rows: int) -> Tensor:
    """The images (n, 3, H, W) followed by copies of the last one, `rows` in all."""
    missing = rows - len(images)
    return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
