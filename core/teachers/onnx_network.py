"""An ONNX file as a teacher: checked before anything of it runs, then run by onnxruntime on torch's own memory.

The file is a stranger's. Its protobuf is read without its external data, every external file is held to the model's own
folder and to the size that the model states, and no library of custom operators is ever registered, so nothing but
onnxruntime's own kernels can run. What it claims is then tried on three images: an exporter that forgot `eval()`, fixed
the batch in the middle of the graph, or wrote NaNs is found here and not in the student's accuracy.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadistill.core.distributed import Ranks
from adadistill.core.teachers.config import Provider, TeacherConfig
from adadistill.core.teachers.interface import LoadedTeacher, NetworkSource, TeacherError, file_sha256, teacher_of_file
from adadistill.core.teachers.own_normalisation import OwnNormalisation, own_normalisation
from adadistill.loaders.first_bytes import what_it_is

MAX_MODEL_BYTES: Final = (1 << 31) - 1
"""What a protobuf can hold; larger networks keep their weights in external data."""
MAX_FIXED_BATCH: Final = 4096
"""A larger fixed batch is refused: a single image would be padded to it, and memory is taken for all of it."""
SAME_EMBEDDING: Final = 0.999
"""Least cosine between an image's embeddings alone and in company. Rounding, by other kernels for another batch size,
leaves it far above, in float16 too; the statistics of another batch do not."""

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_SILENT: Final = 4  # onnxruntime's level FATAL: errors are raised, and texts on stderr would say them twice
_FORMATS: Final[Mapping[str, torch.dtype]] = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
_NUMPY: Final[Mapping[torch.dtype, type[np.generic]]] = {torch.float32: np.float32, torch.float16: np.float16}

_log = logging.getLogger(__name__)


def load_onnx(path: Path, *, image_size: int, device: torch.device, provider: Provider) -> LoadedTeacher:
    """Load an ONNX file with one image input (B, 3, H, W) and one embedding output (B, D).

    Args:
        path: `.onnx` file; its external data, if any, lies in the same folder or below.
        image_size: side of the images that it will be given, in pixels.
        device: where the run computes. `provider: auto` follows it, and falls back to the CPU with a warning where
            onnxruntime was installed without CUDA.
        provider: where onnxruntime computes.

    Returns:
        The network with its identity. sha256: of the file; where it has external data, of the lines
        "name NUL sha256 LF" of the file and then of each external file, sorted by name (in UTF-8, external names as the
        model spells them). An ONNX file says nothing of colour order or normalisation: `preprocessing` is the project's
        own until the caller puts the recipe's in its place.

    Raises:
        TeacherError: onnx or onnxruntime is missing, or cannot use the provider; the file is damaged, unsafe, or takes
            or gives something else; or its embeddings are not finite, or depend on the other images of a batch.

    Threads: onnxruntime gets as many as torch has now. Deterministic kernels are asked for; on CUDA float32 is not
    rounded to TF32, and the algorithm of convolutions is chosen by rule rather than by timing.
    """
    onnx, onnxruntime = _import_packages()
    model, digest = _read_model(path, onnx)
    try:
        externals = _external_files(model, path, onnx)
    except UnicodeDecodeError as error:  # protobuf decodes a text when it is looked at
        raise TeacherError(f"{path}: a damaged ONNX file: a name in it is no UTF-8 ({error})") from error
    for output in (one for one in model.graph.output if one.type.HasField("tensor_type")):
        # insightface's exporter opens the batch of the input afterwards and leaves the output at (1, 512), on which
        # onnxruntime would insist; what comes out is seen when it runs.
        output.type.tensor_type.ClearField("shape")
    providers = _providers(provider, device, onnxruntime, path)
    on_cuda = providers[0][0] == _CUDA
    stream = torch.cuda.Stream(_indexed(device)) if on_cuda and torch.cuda.is_available() else None
    if stream is not None:
        providers[0][1]["user_compute_stream"] = str(stream.cuda_stream)
    session = _open_session(model, path, providers, onnxruntime)
    signature = _signature(session, path, image_size)
    own = own_normalisation(model, signature.input_name, onnx)
    network = OnnxNetwork(
        session,
        signature,
        embedding_dim=_embedding_dim(session, signature, path, onnxruntime),
        device=device if on_cuda else torch.device("cpu"),
        own_normalisation=own,
        stream=stream,
    ).eval()
    _try_two_images(network, path, onnxruntime)
    return teacher_of_file(
        path,
        network,
        kind="onnx",
        arch="onnx",
        embedding_dim=network.embedding_dim,
        image_size=image_size,
        stated_color=None,
        sha256=_combined_sha256(path.name, digest, externals),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a network takes and gives."""

    input_name: str
    input_dtype: torch.dtype
    output_name: str
    output_dtype: torch.dtype
    image_size: int
    """Side of the square images it is run on, in pixels."""
    batch: int | None
    """Images per call, None where any number will do."""


class OnnxNetwork(nn.Module):
    """An onnxruntime session as a module without parameters: (B, 3, H, W) images -> (B, D) float32 raw embeddings.

    Args:
        session: an `onnxruntime.InferenceSession`.
        own_normalisation: what its graph does to images first; settings that contradict it are refused where they meet.
        device: where the session computes. Images and embeddings may live elsewhere; they are then copied.
        stream: on which the session computes, as its provider was told; on CUDA only.

    No gradient passes, and autocast does not reach into it: it computes in the file's own formats.
    """

    compilable = False
    """torch.compile cannot look into a session, and would only break its graph around it."""

    def __init__(
        self,
        session: Any,
        signature: Signature,
        *,
        embedding_dim: int,
        device: torch.device,
        own_normalisation: OwnNormalisation | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        super().__init__()
        self.own_normalisation = own_normalisation
        self.signature = signature
        self.embedding_dim = embedding_dim
        self._session = session
        self._device = _indexed(device)
        self._stream = stream

    def forward(self, images: Tensor) -> Tensor:
        """Images as the network wants them, any floating dtype and memory format -> embeddings on the same device.

        A network with a fixed batch runs as often as needed; its last batch is filled up with copies of the last image,
        whose embeddings are cut off again.

        Raises:
            ValueError: the images have another shape.
        """
        side = self.signature.image_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images must be (B, 3, {side}, {side}), got {tuple(images.shape)}")
        inputs = images.detach().to(self._device, self.signature.input_dtype).contiguous()
        count = len(inputs)
        size = self.signature.batch or max(count, 1)
        embeddings = inputs.new_empty((count, self.embedding_dim), dtype=self.signature.output_dtype)  # (B, D)
        whole = count - count % size
        for first in range(0, whole, size):
            self._run(inputs[first : first + size], embeddings[first : first + size])
        if whole < count:
            rest = inputs[whole:]
            filled = torch.cat([rest, rest[-1:].expand(size - len(rest), -1, -1, -1)])  # (size, 3, H, W)
            filled_embeddings = embeddings.new_empty((size, self.embedding_dim))
            self._run(filled, filled_embeddings)
            embeddings[whole:] = filled_embeddings[: len(rest)]
        return embeddings.to(images.device, torch.float32)

    def _run(self, images: Tensor, embeddings: Tensor) -> None:
        """Run the session on contiguous images, into `embeddings`, both where and as it wants them: nothing is copied.

        On CUDA the session computes on `stream`, which waits on the device for what torch has queued, and torch's
        stream for it: the host waits for neither.
        """
        place = (self._device.type, self._device.index or 0)
        binding = self._session.io_binding()
        binding.bind_input(
            self.signature.input_name, *place, _NUMPY[images.dtype], tuple(images.shape), images.data_ptr()
        )
        binding.bind_output(
            self.signature.output_name, *place, _NUMPY[embeddings.dtype], tuple(embeddings.shape), embeddings.data_ptr()
        )
        if self._stream is None:
            self._session.run_with_iobinding(binding)
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        for tensor in (images, embeddings):  # torch must not hand out their memory while the session uses it
            tensor.record_stream(self._stream)
        self._session.run_with_iobinding(binding, _without_waiting())
        current.wait_stream(self._stream)


def _without_waiting() -> Any:
    """onnxruntime's options of a run that returns when all is queued."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _import_packages() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise TeacherError(
            f"an ONNX teacher needs onnx and onnxruntime ({error}); install them: pip install 'adadistill[onnx]'. "
            "To run it on CUDA, put onnxruntime-gpu in place of onnxruntime"
        ) from error
    return onnx, onnxruntime


def _read_model(path: Path, onnx: ModuleType) -> tuple[Any, str]:
    """The model without its external data, and the sha256 of the very bytes it was read from."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise TeacherError(f"{path} is not a file")
    with path.open("rb") as file:
        data = file.read(MAX_MODEL_BYTES + 1)
    if len(data) > MAX_MODEL_BYTES:
        raise TeacherError(
            f"{path}: more than {MAX_MODEL_BYTES:,} bytes, which no protobuf can hold; export with external data"
        )
    if (other := what_it_is(data, "onnx")) is not None:
        raise TeacherError(f"{path}: not an ONNX file: it {other}")
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise TeacherError(f"{path}: not an ONNX file, or one damaged or cut short: {_one_line(error)}") from error
    # A few bytes of anything often decode as a message without fields.
    if not model.ir_version or not model.graph.node or not model.opset_import:
        raise TeacherError(f"{path}: not an ONNX file: it has no graph, or no version of ONNX or of its operators")
    return model, hashlib.sha256(data).hexdigest()


def _external_files(model: Any, path: Path, onnx: ModuleType) -> dict[str, Path]:
    """Names of all external files, as the model spells them -> where they really are; each checked to be allowed."""
    files: dict[str, Path] = {}
    for tensor in _external_tensors(model, onnx):
        where = f"{path}: external data of tensor {tensor.name!r}"
        fields = {entry.key: entry.value for entry in tensor.external_data}
        if len(fields) != len(tensor.external_data):
            raise TeacherError(f"{where}: a key is given twice, {[entry.key for entry in tensor.external_data]}")
        location = fields.get("location", "")
        if not isinstance(location, str):  # protobuf gives bytes, or raises, where a text is no UTF-8
            raise TeacherError(f"{where}: location {location!r} is no UTF-8; the file is damaged, or an attack")
        if location not in files:
            files[location] = _external_file(location, path.parent, where)
        _check_extent(fields, files[location], where)
    return files


def _external_tensors(message: Any, onnx: ModuleType) -> Iterator[Any]:
    """Every tensor kept outside the file: initialisers, sparse ones, attributes, subgraphs, functions, wherever.

    Walks messages by their own description, so that no place is forgotten; a protobuf nests 100 deep at most. Looks
    into no tensor, whose values it would copy.
    """
    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                yield from _external_tensors(child, onnx)


def _external_file(location: str, folder: Path, where: str) -> Path:
    """Where an external file is, links followed; refused unless that is a file in the model's folder or below.

    onnxruntime gives `*/_ORT_MEM_ADDR_/*` a meaning of its own, an address in memory, hence no `*`.
    """
    for name in (PurePosixPath(location), PureWindowsPath(location)):
        if not name.parts or name.anchor or ".." in name.parts or "*" in location or not location.isprintable():
            raise TeacherError(
                f"{where}: location {location!r} is not a plain path inside the model's folder; "
                "such a file may be an attack, and nothing of it was read"
            )
    found = (folder / location).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise TeacherError(
            f"{where}: {location!r} is a link to {found}, outside the model's folder; put the file itself there"
        )
    if not found.is_file():
        raise TeacherError(f"{where}: there is no file {folder / location}; it belongs beside the model")
    return found


def _check_extent(fields: Mapping[str, str], file: Path, where: str) -> None:
    """Refuse bytes [offset, offset + length) that the file does not have."""
    extent = {}
    for key in ("offset", "length"):
        text = fields.get(key, "0")
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise TeacherError(f"{where}: {key} must be a number of bytes, got {text[:40]!r}")
        extent[key] = int(text)
    if (other := what_it_is(file, "unknown")) is not None and not other.startswith(("is text", "is zeros")):
        raise TeacherError(f"{where}: {file} {other}")
    size = file.stat().st_size
    stop = extent["offset"] + extent["length"]
    if stop > size:
        raise TeacherError(f"{where}: {file.name} has {size} bytes, the model needs {stop}; it was cut, copy it again")


def _combined_sha256(name: str, digest: str, externals: Mapping[str, Path]) -> str:
    """See `load_onnx`."""
    if not externals:
        return digest
    lines = [(name, digest), *((external, file_sha256(file)) for external, file in sorted(externals.items()))]
    return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in lines).encode()).hexdigest()


def _signature(session: Any, path: Path, image_size: int) -> Signature:
    """What the session says of its one input and its one output, checked."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1:
        raise TeacherError(f"{path}: a teacher takes one input, the images; this has {_listed(inputs)}")
    if len(outputs) != 1:
        raise TeacherError(
            f"{path}: a teacher gives one output, the embeddings; this has {_listed(outputs)}. Export the embeddings "
            "alone, or cut the others off (onnx.utils.extract_model)"
        )
    for value in (inputs[0], outputs[0]):
        if value.type not in _FORMATS:
            raise TeacherError(f"{path}: inputs and outputs are float or float16 tensors, got {_listed([value])}")
    return Signature(
        input_name=inputs[0].name,
        input_dtype=_FORMATS[inputs[0].type],
        output_name=outputs[0].name,
        output_dtype=_FORMATS[outputs[0].type],
        image_size=image_size,
        batch=_checked_batch(inputs[0], path, image_size),
    )


def _checked_batch(value: Any, path: Path, image_size: int) -> int | None:
    """Refuse anything but (B, 3, image_size, image_size), sizes left open included; the batch if it is fixed."""
    shape, described = _shape(value), _listed([value])
    if len(shape) != 4:
        raise TeacherError(f"{path}: the input must be images (B, 3, H, W), got {described}")
    batch, channels, height, width = shape
    if channels not in (3, None) or (channels is None and width == 3):
        hint = "; channels must come first: export from (B, 3, H, W), or transpose in the graph" if width == 3 else ""
        raise TeacherError(f"{path}: the input must be images (B, 3, H, W), got {described}{hint}")
    if height not in (image_size, None) or width not in (image_size, None):
        raise TeacherError(
            f"{path}: the input takes {height or 'any'} x {width or 'any'} images, the recipe's are "
            f"{image_size} x {image_size}"
        )
    if batch is not None and not 1 <= batch <= MAX_FIXED_BATCH:
        raise TeacherError(f"{path}: a fixed batch must be 1 to {MAX_FIXED_BATCH} images, got {described}")
    return batch


def _shape(value: Any) -> tuple[int | None, ...]:
    """Declared sizes, None for one left open: a name, a negative number or nothing."""
    return tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)


def _listed(values: list[Any]) -> str:
    """Names, types and shapes, at most eight, as `'data' tensor(float) (?, 3, 112, 112)`."""
    texts = [
        f"{value.name[:80]!r} {value.type} ({', '.join('?' if size is None else str(size) for size in _shape(value))})"
        for value in values[:8]
    ]
    rest = [f"and {len(values) - 8} more"] if len(values) > 8 else []
    return ", ".join(texts + rest) or "none"


def _providers(provider: Provider, device: torch.device, onnxruntime: ModuleType, path: Path) -> list[tuple[str, dict]]:
    """Execution providers with their options, by preference."""
    cpu: list[tuple[str, dict]] = [(_CPU, {})]
    if provider == "cuda" and device.type != "cuda":
        raise TeacherError(f"{path}: provider cuda needs a run on CUDA, this one is on {device}")
    if provider == "cpu" or device.type != "cuda":
        return cpu
    if _CUDA not in onnxruntime.get_available_providers():
        problem = f"{path}: this onnxruntime has no CUDA (pip install onnxruntime-gpu in place of onnxruntime)"
        if provider == "cuda":
            raise TeacherError(f"{problem}; or set provider: cpu")
        _log.warning("%s; the teacher runs on the CPU, which is slow", problem)
        return cpu
    options = {
        "device_id": str(_indexed(device).index),
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles, and the memory is torch's too
        "cudnn_conv_algo_search": "HEURISTIC",  # the default times all of them, for every batch size and in every run
    }
    return [(_CUDA, options), *cpu]


def _indexed(device: torch.device) -> torch.device:
    """`cuda` -> `cuda:N`, N the current device; others unchanged."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _open_session(model: Any, path: Path, providers: list[tuple[str, dict]], onnxruntime: ModuleType) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.use_deterministic_compute = True
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that spin for work take it from decoders. MobileFaceNet on 2 CPU cores, 2 threads, images/s with spinning
    # and without: 375 and 291 on an idle machine, 79 and 128 beside other work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # A model given as bytes has no folder of its own. Bytes, so that what was checked is what runs.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    wanted = [name for name, _ in providers]
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=providers, enable_fallback=False
        )
    except _errors(onnxruntime) as error:
        raise TeacherError(f"{path}: onnxruntime cannot load it on {wanted[0]}: {_one_line(error)}") from error
    if session.get_providers()[0] != wanted[0]:
        raise TeacherError(
            f"{path}: onnxruntime was asked for {wanted[0]} and took {', '.join(session.get_providers())}; its CUDA "
            "and cuDNN libraries do not fit this machine. Install those that it wants, or set provider: cpu"
        )
    return session


def _embedding_dim(session: Any, signature: Signature, path: Path, onnxruntime: ModuleType) -> int:
    """D, learnt from a black image, since a file need not declare it, nor tell the truth."""
    batch, side = signature.batch or 1, signature.image_size
    black = np.zeros((batch, 3, side, side), dtype=_NUMPY[signature.input_dtype])
    try:
        shape = session.run([signature.output_name], {signature.input_name: black})[0].shape
    except _errors(onnxruntime) as error:
        raise TeacherError(f"{path}: cannot embed a black image: {_one_line(error)}") from error
    if len(shape) != 2 or shape[0] != batch or shape[1] == 0:
        raise TeacherError(f"{path}: {batch} images gave an output of shape {shape}, not ({batch}, D) embeddings")
    return int(shape[1])


def _try_two_images(network: OnnxNetwork, path: Path, onnxruntime: ModuleType) -> None:
    """Refuse a network whose embeddings are no vectors, or differ between an image alone and in company.

    A network in training mode normalises by the batch that it sees, or drops out at random.
    """
    images = _contrasting_images(network.signature.image_size)
    try:
        alone = torch.cat([network(images[:1]), network(images[1:])])  # (2, D)
        together = network(images)  # (2, D)
    except _errors(onnxruntime) as error:
        raise TeacherError(
            f"{path}: its input declares any number of images, but it cannot embed two: {_one_line(error)}. Export it "
            "with a dynamic batch throughout, or with a fixed one"
        ) from error
    lengths = together.norm(dim=1)
    if not (lengths.isfinite() & alone.norm(dim=1).isfinite() & (lengths > 0.0)).all():
        raise TeacherError(
            f"{path}: two test images gave embeddings of lengths {', '.join(f'{length:.4g}' for length in lengths)}, "
            "which cannot be made unit vectors; its weights are damaged, or overflow float16"
        )
    cosine = F.cosine_similarity(alone.double(), together.double()).min().item()
    if cosine < SAME_EMBEDDING:
        raise TeacherError(
            f"{path}: an image's embedding depends on the other images of its batch, or on chance (cosine "
            f"{cosine:.4f} to itself, at least {SAME_EMBEDDING} wanted); it was probably exported in training mode. "
            "Export it after eval()"
        )


def _contrasting_images(side: int) -> Tensor:
    """(2, 3, side, side) in [-1, 1]: full-range noise and a dark ramp, whose statistics could hardly differ more."""
    noise = torch.rand((3, side, side), generator=torch.Generator().manual_seed(0)) * 2 - 1
    ramp = torch.linspace(-1.0, -0.6, side).expand(3, side, side)
    return torch.stack([noise, ramp])


def _errors(onnxruntime: ModuleType) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its own types, without a common base; RuntimeError, where memory is bound; and
    UnicodeDecodeError, where its message quotes what is no text.
    """
    state = onnxruntime.capi.onnxruntime_pybind11_state
    own = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*own, RuntimeError, UnicodeDecodeError)


def _one_line(error: Exception) -> str:
    """A library's message on one line, cut where it becomes a listing."""
    return " ".join(str(error).split())[:300]


class _Onnx(NetworkSource):
    def load(self, config: TeacherConfig, image_size: int, ranks: Ranks) -> LoadedTeacher:
        assert config.onnx is not None
        return load_onnx(Path(config.onnx), image_size=image_size, device=ranks.device, provider=config.provider)


SOURCE = _Onnx()
