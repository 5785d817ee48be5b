"""ONNX files teach what onnxruntime makes of them, whatever their batch, or are refused with what is wrong."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.pair_metrics import area_under_roc
from adadistill.core.teachers import LoadedTeacher, TeacherConfig, TeacherError, load_source
from adadistill.core.teachers.network_teacher import NetworkTeacher
from adadistill.core.teachers.onnx_network import MAX_FIXED_BATCH, OnnxNetwork, load_onnx
from adadistill.core.teachers.preprocessing import Preprocessing
from adadistill.loaders.evaluation_sets.verification_pairs import decode_pairs, read_verification_bin
from adadistill.loaders.pixels import to_network_input

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper
SIDE, DIM = 8, 16
CPU = torch.device("cpu")
OPEN = ["N", 3, SIDE, SIDE]


def _weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "kernel": random.standard_normal((4, 3, 3, 3)).astype(np.float32) / 5,
        "matrix": random.standard_normal((4 * (SIDE - 2) ** 2, DIM)).astype(np.float32) / 12,
    }


def _expected(images: torch.Tensor) -> torch.Tensor:
    """What the network of `_model` computes, in float64."""
    weights = {name: torch.from_numpy(value).double() for name, value in _weights().items()}
    return F.conv2d(images.double(), weights["kernel"]).relu().flatten(1) @ weights["matrix"]


def _nodes() -> list[Any]:
    return [
        helper.make_node("Conv", ["data", "kernel"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
    ]


def _value(name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    shape: list[Any] | None = OPEN,
    *,
    out: list[Any] | None = None,
    nodes: list[Any] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    half: bool = False,
) -> Any:
    """Convolution, ReLU, matrix product; parts of it replaced by what the test is about."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    constants = _weights() if weights is None else weights
    graph = helper.make_graph(
        _nodes() if nodes is None else nodes,
        "teacher",
        [_value("data", shape, kind)] if inputs is None else inputs,
        [_value("embedding", out, kind)] if outputs is None else outputs,
        [numpy_helper.from_array(v.astype(np.float16) if half else v, name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _save(model: Any, folder: Path, name: str = "teacher.onnx") -> Path:
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def _load(path: Path, *, image_size: int = SIDE, device: torch.device = CPU, provider: str = "auto") -> LoadedTeacher:
    return load_onnx(path, image_size=image_size, device=device, provider=provider)  # type: ignore[arg-type]


def _refused(message: str, path: Path, **changes: Any) -> None:
    with pytest.raises(TeacherError, match=message):
        _load(path, **changes)


def _images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.rand((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _assert_near_truth(embeddings: torch.Tensor, images: torch.Tensor, tolerance: float) -> None:
    truth = _expected(images)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == truth.shape
    error = ((embeddings - truth).norm() / truth.norm()).item()
    assert error <= tolerance, f"{error=:.2e}"


# Embeddings


# Open batch; fixed ones of which 5 images are several, one and a part, and a part.
@pytest.mark.parametrize("batch", ["N", 1, 4, 8])
def test_embeddings_are_the_networks_for_any_batch_of_the_file(tmp_path: Path, batch: int | str):
    network = _load(_save(_model([batch, 3, SIDE, SIDE]), tmp_path)).body
    images = _images(5)

    embeddings = network(images)

    _assert_near_truth(embeddings, images, 1e-6)
    assert network(images[:0]).shape == (0, DIM)
    assert torch.equal(embeddings, network(images)), "the same images give the same bits"


def test_files_in_float16_and_images_of_any_dtype_and_memory_format_are_taken(tmp_path: Path):
    loaded = _load(_save(_model(half=True), tmp_path))
    assert loaded.body.signature.input_dtype == loaded.body.signature.output_dtype == torch.float16
    _assert_near_truth(loaded.body(_images(5)), _images(5), 3e-3)
    network = _load(_save(_model(), tmp_path)).body
    for dtype in (torch.float64, torch.bfloat16):
        images = _images(3).to(dtype)
        _assert_near_truth(network(images.to(memory_format=torch.channels_last)), images, 1e-6)


def test_the_module_has_no_parameters_or_gradient_and_refuses_compilation_and_other_shapes(tmp_path: Path):
    network = _load(_save(_model(["N", 3, "H", "W"]), tmp_path)).body
    assert isinstance(network, OnnxNetwork)
    assert not network.training
    assert not network.state_dict()
    with pytest.raises(ValueError, match="compile"):
        NetworkTeacher(network, embedding_dim=DIM, device=CPU, compile=True, batch_size=2)
    images = _images(3)
    embeddings = network(images.clone().requires_grad_())
    assert not embeddings.requires_grad
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(images), embeddings)
    for shape in ((3, SIDE, SIDE), (2, 1, SIDE, SIDE), (2, 3, SIDE, SIDE + 1)):
        with pytest.raises(ValueError, match=r"images must be \(B, 3, 8, 8\)"):
            network(torch.zeros(shape))


def test_the_number_of_threads_changes_no_bit_and_follows_torch(tmp_path: Path):
    path = _save(_model(), tmp_path)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            network = _load(path).body
            assert network._session.get_session_options().intra_op_num_threads == threads
            found.append(network(_images(7)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_a_recipes_teacher_embeds_as_the_network_does(tmp_path: Path):
    path = _save(_model(), tmp_path)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    config = TeacherConfig(onnx=str(path), color="bgr", mean=mean, std=std)
    loaded = load_source(config, image_size=SIDE, ranks=Ranks())
    images = _images(5)
    pixels = (images.double().flip(1) + 1) / 2
    wanted = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    embeddings = NetworkTeacher(loaded.network(), embedding_dim=DIM, device=CPU).embed(images)

    assert loaded.identity.preprocessing == Preprocessing(color="bgr", mean=mean, std=std)
    torch.testing.assert_close(embeddings, F.normalize(_expected(wanted)).float(), rtol=0, atol=1e-6)


def test_what_the_output_declares_does_not_matter(tmp_path: Path):
    """insightface's files declare a single embedding beside an open batch."""
    for out in (["N", "D"], [1, DIM]):
        loaded = _load(_save(_model(out=out), tmp_path))
        assert loaded.identity.embedding_dim == DIM
        _assert_near_truth(loaded.body(_images(5)), _images(5), 1e-6)


def test_open_height_and_width_take_the_recipes_size(tmp_path: Path):
    pooled = [
        helper.make_node("Conv", ["data", "kernel"], ["maps"]),
        helper.make_node("GlobalMaxPool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    path = _save(_model(["N", 3, "H", "W"], nodes=pooled), tmp_path)
    for size in (8, 12):
        loaded = _load(path, image_size=size)
        assert loaded.identity.image_size == size
        assert loaded.body(torch.rand(2, 3, size, size)).shape == (2, 4)


def test_initialisers_listed_among_the_inputs_are_no_inputs(tmp_path: Path):
    kernel = _weights()["kernel"]
    model = _model(inputs=[_value("data", OPEN), _value("kernel", list(kernel.shape))])
    model.ir_version = 3
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 8))
    _assert_near_truth(_load(_save(model, tmp_path)).body(_images(2)), _images(2), 1e-6)


# Identity


def test_the_identity_names_the_file_and_its_bytes(tmp_path: Path):
    path = _save(_model(), tmp_path)
    loaded = _load(path)
    assert loaded.stated_color is None
    assert loaded.identity.to_json() == {
        "kind": "onnx",
        "name": "teacher.onnx",
        "arch": "onnx",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "embedding_dim": DIM,
        "image_size": SIDE,
        "preprocessing": {"color": "rgb", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    }


def test_the_identity_covers_every_external_file(tmp_path: Path):
    path = _save_external(tmp_path, {"kernel": "b/kernel.bin", "matrix": "a.bin"})
    lines = b"".join(
        f"{name}\0{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}\n".encode()
        for name in ("teacher.onnx", "a.bin", "b/kernel.bin")
    )
    assert _load(path).identity.sha256 == hashlib.sha256(lines).hexdigest()

    body = bytearray((tmp_path / "a.bin").read_bytes())
    body[0] ^= 1
    (tmp_path / "a.bin").write_bytes(body)
    assert _load(path).identity.sha256 != hashlib.sha256(lines).hexdigest()


# External data


def _save_external(folder: Path, locations: dict[str, str], **fields: str) -> Path:
    """The model with initialisers in external files of those names; `fields` replace what it says of every one."""
    model = _model()
    for tensor in model.graph.initializer:
        if tensor.name not in locations:
            continue
        location, body = locations[tensor.name], tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        stated = {"location": location, "offset": "0", "length": str(len(body))} | fields
        for key, value in stated.items():
            tensor.external_data.add(key=key, value=value)
        if not (folder / location).exists() and not os.path.isabs(location) and ".." not in location:
            (folder / location).parent.mkdir(parents=True, exist_ok=True)
            (folder / location).write_bytes(body)
    return _save(model, folder)


def test_external_data_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    path = _save_external(tmp_path / "model", {"kernel": "b/kernel.bin", "matrix": "a.bin"})
    monkeypatch.chdir(tmp_path)
    (path.parent / "a.bin").rename(path.parent / "moved.bin")
    (path.parent / "a.bin").symlink_to("moved.bin")  # a link inside the folder is followed
    for found in (path, path.relative_to(tmp_path)):
        _assert_near_truth(_load(found).body(_images(3)), _images(3), 1e-6)


@pytest.mark.parametrize(
    "location",
    ["../outside.bin", "b/../../outside.bin", "ABSOLUTE", "..\\outside.bin", "C:outside.bin", "", "*/_ORT_MEM_ADDR_/*",
     "a\nb.bin", "a\0b.bin"],
)  # fmt: skip
def test_external_data_that_leaves_the_models_folder_is_refused(tmp_path: Path, location: str):
    (tmp_path / "model").mkdir()
    outside = tmp_path / "outside.bin"
    outside.write_bytes(_weights()["matrix"].tobytes())  # it is there, and would do
    path = _save_external(tmp_path / "model", {"matrix": "a.bin"}, location=location.replace("ABSOLUTE", str(outside)))
    _refused(r"'matrix'.*not a plain path inside the model's folder", path)


def test_a_link_out_of_the_models_folder_is_refused(tmp_path: Path):
    (tmp_path / "model").mkdir()
    path = _save_external(tmp_path / "model", {"matrix": "b/a.bin"})
    shutil.move(tmp_path / "model" / "b", tmp_path / "b")
    (tmp_path / "model" / "b").symlink_to(tmp_path / "b")
    _refused("outside the model's folder", path)
    (tmp_path / "model" / "b").unlink()
    (tmp_path / "model" / "b").mkdir()
    (tmp_path / "model" / "b" / "a.bin").symlink_to(tmp_path / "b" / "a.bin")
    _refused(r"'b/a.bin' is a link to .*outside the model's folder", path)


def test_external_data_that_is_missing_cut_or_of_another_extent_is_refused(tmp_path: Path):
    path = _save_external(tmp_path, {"matrix": "a.bin"}, length="16")
    _refused("onnxruntime cannot load it", path)
    for key, value in (("length", "-1"), ("length", "9" * 30), ("offset", "1e3"), ("offset", "4 ")):
        _refused(f"{key} must be a number of bytes", _save_external(tmp_path, {"matrix": "a.bin"}, **{key: value}))
    path = _save_external(tmp_path, {"matrix": "a.bin"})
    size = (tmp_path / "a.bin").stat().st_size
    os.truncate(tmp_path / "a.bin", size - 1)
    _refused(rf"has {size - 1} bytes, the model needs {size}", path)
    (tmp_path / "a.bin").unlink()
    _refused(r"there is no file .*a\.bin", path)


@pytest.mark.parametrize("text", [b"a.bin", b"location", b"matrix"])
def test_texts_that_are_no_utf8_are_refused(tmp_path: Path, text: bytes):
    path = _save_external(tmp_path, {"matrix": "a.bin"})
    body = path.read_bytes()
    path.write_bytes(body.replace(text, b"\xff" + text[1:], 1))
    assert path.read_bytes() != body
    _refused(r"teacher\.onnx", path)


def test_a_tensor_with_two_locations_is_refused(tmp_path: Path):
    path = _save_external(tmp_path, {"matrix": "a.bin"})
    model = onnx.load_model_from_string(path.read_bytes())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "matrix")
    tensor.external_data.add(key="location", value="../outside.bin")
    _refused("a key is given twice", _save(model, tmp_path))


# A tensor may hide where no initialiser is: in an attribute, in a subgraph, in a function, in a sparse tensor.
@pytest.mark.parametrize("place", ["attribute", "subgraph", "function", "sparse"])
def test_external_data_is_checked_wherever_it_hides(tmp_path: Path, place: str):
    hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    constant = helper.make_node("Constant", [], ["unused"], value=hidden)
    model = _model()
    if place == "attribute":
        model.graph.node.append(constant)
    elif place == "subgraph":
        branch = helper.make_graph([constant], "branch", [], [_value("unused", [1])])
        model.graph.node.append(
            helper.make_node("If", ["condition"], ["either"], then_branch=branch, else_branch=branch)
        )
    elif place == "function":
        model.functions.append(
            helper.make_function("local", "f", [], ["unused"], [constant], [helper.make_opsetid("", 17)])
        )
    else:
        model.graph.sparse_initializer.add().values.CopyFrom(hidden)
    _refused(r"'hidden'.*not a plain path inside the model's folder", _save(model, tmp_path / "model"))


# What is no teacher


def test_what_is_no_whole_onnx_file_is_refused(tmp_path: Path):
    for path in (tmp_path / "absent.onnx", tmp_path):
        _refused("is not a file", path)
    body, path = _model().SerializeToString(), tmp_path / "cut.onnx"
    for length in [*range(0, len(body), 997), len(body) - 1]:
        path.write_bytes(body[:length])
        _refused(r"cut\.onnx", path)
    for seed in range(10):
        path.write_bytes(np.random.default_rng(seed).bytes(seed * 50))
        _refused("not an ONNX file", path)


def test_a_file_too_large_for_a_protobuf_is_refused_unparsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = _save(_model(), tmp_path)
    monkeypatch.setattr("adadistill.core.teachers.onnx_network.MAX_MODEL_BYTES", path.stat().st_size - 1)
    _refused("export with external data", path)


def test_an_operator_of_another_domain_is_refused(tmp_path: Path):
    foreign = helper.make_node("Whiten", ["flat2"], ["embedding"], domain="somebody.ops")
    nodes = [*_nodes()[:-1], helper.make_node("MatMul", ["flat", "matrix"], ["flat2"]), foreign]
    model = _model(nodes=nodes, out=["N", DIM])
    model.opset_import.append(helper.make_opsetid("somebody.ops", 1))
    _refused(r"onnxruntime cannot load it.*somebody\.ops:Whiten", _save(model, tmp_path))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, SIDE, SIDE, 3], r"\(B, 3, H, W\), got 'data' tensor\(float\) \(1, 8, 8, 3\); channels must come first"),
        (["N", None, None, 3], r"\(\?, \?, \?, 3\); channels must come first"),
        ([3, SIDE, SIDE], r"got 'data' tensor\(float\) \(3, 8, 8\)$"),
        (None, r"got 'data' tensor\(float\) \(\)"),
        (["N", 3, 16, 16], "takes 16 x 16 images, the recipe's are 8 x 8"),
        ([MAX_FIXED_BATCH + 1, 3, SIDE, SIDE], "fixed batch must be 1 to"),
    ],
)
def test_an_input_that_takes_no_such_images_is_refused(tmp_path: Path, shape: list[Any] | None, message: str):
    flat = [helper.make_node("Flatten", ["data"], ["embedding"])]  # fits images of any shape
    _refused(message, _save(_model(shape, nodes=flat, weights={}), tmp_path))


def test_two_inputs_two_outputs_and_an_output_of_another_rank_are_refused(tmp_path: Path):
    inputs = [_value("data", OPEN), _value("matrix", [144, DIM])]
    norm = helper.make_node("ReduceL2", ["embedding"], ["norm"], axes=[1])
    outputs = [_value("embedding", ["N", DIM]), _value("norm", ["N", 1])]
    for model, message in (
        (
            _model(inputs=inputs, weights={"kernel": _weights()["kernel"]}),
            r"one input.*'data' tensor\(float\) \(\?, 3, 8, 8\), 'matrix' tensor",
        ),
        (
            _model(nodes=[*_nodes(), norm], outputs=outputs),
            r"one output.*'embedding' tensor\(float\) .*, 'norm' tensor\(float\) ",
        ),
        (_model(nodes=_nodes()[:2], outputs=[_value("active", ["N", 4, 6, 6])]), r"not \(1, D\) embeddings"),
        (_model(nodes=_nodes()[:2], outputs=[_value("active", None)]), r"not \(1, D\) embeddings"),
    ):
        _refused(message, _save(model, tmp_path))


def test_outputs_that_are_no_floats_are_refused(tmp_path: Path):
    cast = helper.make_node("Cast", ["embedding"], ["integers"], to=TensorProto.INT32)
    integers = _model(nodes=[*_nodes(), cast], outputs=[_value("integers", ["N", DIM], TensorProto.INT32)])
    sequence = _model(
        nodes=[*_nodes(), helper.make_node("SequenceConstruct", ["embedding"], ["list"])],
        outputs=[helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None)],
    )
    for model, message in ((integers, r"'integers' tensor\(int32\)"), (sequence, r"'list' seq\(tensor\(float\)\)")):
        _refused(f"float or float16 tensors, got {message}", _save(model, tmp_path))


# What shows when it runs


def test_weights_that_give_no_vectors_are_refused(tmp_path: Path):
    for value in (np.nan, np.inf, 1e30):  # float32 holds 1e30, but not its square, which the length is made of
        weights = _weights()
        weights["matrix"][:, 3] = value
        _refused(r"embeddings of lengths (nan|inf), (nan|inf), .*damaged", _save(_model(weights=weights), tmp_path))
    weights = {name: np.zeros_like(value) for name, value in _weights().items()}
    _refused("embeddings of lengths 0, 0, ", _save(_model(weights=weights), tmp_path))


def _norm(axis_first: bool, size: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The network with a batch norm in training mode, of the maps or of the embeddings, as PyTorch exports it."""
    source, target = ("maps", "normed") if axis_first else ("raw", "embedding")
    norm = helper.make_node(
        "BatchNormalization", [source, "gamma", "beta", "mean", "var"], [target, "new_mean", "new_var"], training_mode=1
    )
    statistics = dict.fromkeys(("beta", "mean"), np.zeros(size, np.float32))
    statistics |= dict.fromkeys(("gamma", "var"), np.ones(size, np.float32))
    conv, relu, flat, product = _nodes()
    if axis_first:
        relu.input[0] = "normed"
        return [conv, norm, relu, flat, product], _weights() | statistics
    product.output[0] = "raw"
    return [conv, relu, flat, product, norm], _weights() | statistics


@pytest.mark.parametrize(("batch", "axis_first"), [("N", True), (4, False)], ids=["maps", "embeddings"])
def test_a_batch_norm_left_in_training_mode_is_refused(tmp_path: Path, axis_first: bool, batch: int | str):
    nodes, weights = _norm(axis_first, 4 if axis_first else DIM)
    path = _save(_model([batch, 3, SIDE, SIDE], nodes=nodes, weights=weights), tmp_path)
    _refused("training mode", path)


def test_embeddings_left_to_chance_are_refused_for_a_batch_of_one_too(tmp_path: Path):
    conv, relu, flat, product = _nodes()
    product.output[0] = "clean"
    noise = helper.make_node("RandomNormalLike", ["clean"], ["noise"], scale=1.0)
    noisy = helper.make_node("Add", ["clean", "noise"], ["embedding"])
    model = _model([1, 3, SIDE, SIDE], nodes=[conv, relu, flat, product, noise, noisy])
    _refused("or on chance", _save(model, tmp_path))


def test_a_batch_fixed_inside_the_graph_and_images_mixed_up_are_refused(tmp_path: Path):
    conv, relu, _, product = _nodes()
    fixed = helper.make_node("Reshape", ["active", "sizes"], ["flat"])
    weights = _weights() | {"sizes": np.array([1, 4 * (SIDE - 2) ** 2])}
    model = _model(nodes=[conv, relu, fixed, product], weights=weights)
    mixed = _model(  # (1, 2 * 144): both images in one embedding
        nodes=[conv, relu, fixed], outputs=[_value("flat", None)], weights=_weights() | {"sizes": np.array([1, -1])}
    )
    for refused in (model, mixed):
        _refused("it cannot embed two", _save(refused, tmp_path))


# Packages and providers


def test_a_missing_package_is_named_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            _refused(r"pip install 'adadistill\[onnx\]'", _save(_model(), tmp_path))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_without_cuda_the_provider_is_refused_or_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path, cuda = _save(_model(), tmp_path), torch.device("cuda", 0)
    _refused("provider cuda needs a run on CUDA, this one is on cpu", path, provider="cuda")
    _refused(r"no CUDA \(pip install onnxruntime-gpu", path, device=cuda, provider="cuda")
    with caplog.at_level(logging.WARNING):
        network = _load(path, device=cuda).body  # nothing of it touches the device, which need not exist
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "onnxruntime-gpu" in caplog.text
    _assert_near_truth(network(_images(3)), _images(3), 1e-6)


def test_a_provider_that_onnxruntime_silently_replaces_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As where onnxruntime-gpu is installed and its CUDA libraries are not: offered, asked for, then left out.
    session = onnxruntime.InferenceSession
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers, **kwargs: session(model, options, providers=["CPUExecutionProvider"]),
    )
    _refused(
        "asked for CUDAExecutionProvider and took CPUExecutionProvider",
        _save(_model(), tmp_path),
        device=torch.device("cuda", 0),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("batch", ["N", 4])
def test_cuda_gives_the_same_embeddings_in_torchs_memory(tmp_path: Path, batch: int | str):
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    loaded = _load(_save(_model([batch, 3, SIDE, SIDE]), tmp_path), device=torch.device("cuda"), provider="cuda")
    images = _images(5)
    with torch.cuda.stream(torch.cuda.Stream()):  # written on a stream that onnxruntime knows nothing of
        embeddings = loaded.body(images.cuda())
    assert embeddings.is_cuda
    _assert_near_truth(embeddings.cpu(), images, 1e-4)  # float32, with sums in another order


# A real teacher


@pytest.fixture(scope="module")
def real(data_dir: Path) -> LoadedTeacher:
    path = data_dir / "teachers" / "MobileFaceNet.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    loaded = _load(path, image_size=112)
    imagenet = Preprocessing(color="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return replace(loaded, identity=replace(loaded.identity, preprocessing=imagenet))


@pytest.mark.realdata
def test_a_real_files_batch_of_one_equals_its_single_runs_bit_for_bit(real: LoadedTeacher, data_dir: Path):
    path = data_dir / "teachers" / "MobileFaceNet.onnx"
    assert real.body.signature.batch == 1
    _refused(r"112 x 112 images, the recipe's are 128 x 128", path, image_size=128)
    images = torch.rand((3, 3, 112, 112), generator=torch.Generator().manual_seed(0)) * 2 - 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    single = np.concatenate([session.run(None, {name: image[None].numpy()})[0] for image in images])
    assert np.array_equal(real.body(images).numpy(), single)


@pytest.mark.realdata
def test_a_real_file_tells_real_faces_apart_with_its_own_preprocessing(real: LoadedTeacher, data_dir: Path):
    pairs = read_verification_bin(data_dir / "faces" / "faces_holdout.bin")
    count = min(100, len(pairs.same))
    pixels = torch.from_numpy(decode_pairs(pairs, 112, stop=2 * count))
    images = to_network_input(pixels, device=CPU, dtype=torch.float32, channels_last=True)
    unit = F.normalize(real.network()(images))
    cosine = (unit[0::2] * unit[1::2]).sum(dim=1).numpy()
    assert area_under_roc(cosine, pairs.same[:count]) > 0.97
