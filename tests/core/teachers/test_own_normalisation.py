"""What an ONNX network does to its images itself is read from its graph, and held against what is stated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adadistill.core.distributed import Ranks
from adadistill.core.teachers import TeacherConfig, TeacherError, load_source
from adadistill.core.teachers.own_normalisation import own_normalisation

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

helper, numpy_helper = onnx.helper, onnx.numpy_helper
SIDE, DIM = 8, 16
HALF, ZERO, ONE, PIXELS = (0.5,) * 3, (0.0,) * 3, (1.0,) * 3, (1 / 255,) * 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def channels(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32).reshape(1, 3, 1, 1)


def write(path: Path, steps: list[tuple[str, Any]], *, constants_as_nodes: bool = False) -> Path:
    """A network that begins with some steps: (kind, constant), (kind, attributes), or (kind, several constants)."""
    nodes, weights, current = [], {}, "data"
    for number, (kind, what) in enumerate(steps):
        out, attributes, names = f"s{number}", dict(what) if isinstance(what, dict) else {}, []
        values = attributes.pop("inputs", []) if isinstance(what, dict) else what if isinstance(what, list) else [what]
        for place, value in enumerate(values):
            name = f"c{number}_{place}"
            array = np.asarray(value, dtype=None if np.asarray(value).dtype.kind == "i" else np.float32)
            names.append(name)
            if constants_as_nodes:
                nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name)))
            else:
                weights[name] = array
        inputs = [*names, current] if kind.startswith("r") else [current, *names]
        nodes.append(helper.make_node(kind.removeprefix("r"), inputs, [out], **attributes))
        current = out
    random = np.random.default_rng(0)
    weights |= {
        "kernel": random.standard_normal((4, 3, 3, 3)).astype(np.float32) / 5,
        "matrix": random.standard_normal((4 * (SIDE - 2) ** 2, DIM)).astype(np.float32) / 12,
    }
    nodes += [
        helper.make_node("Conv", [current, "kernel"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("data", kind, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("embedding", kind, ["N", DIM])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def open_network(path: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    config = TeacherConfig(onnx=str(path), color="rgb", mean=mean, std=std)
    load_source(config, image_size=SIDE, ranks=Ranks()).network()


TO_NHWC, TO_NCHW = ("Transpose", {"perm": [0, 2, 3, 1]}), ("Transpose", {"perm": [0, 3, 1, 2]})
SUB_MUL = [("Sub", 127.5), ("Mul", 0.0078125)]
ON_UNIT = [("Sub", channels(*IMAGENET_MEAN)), ("Div", channels(*IMAGENET_STD))]
TAKES_PIXELS = {
    "insightface's": SUB_MUL,
    "scaled first": [("Mul", 1 / 127.5), ("Sub", 1.0)],
    "to 0..1": [("Div", 255.0)],
    "cast": [("Cast", {"to": 1}), ("Identity", []), *SUB_MUL],
    "batch norm": [("BatchNormalization", [ONE, ZERO, (127.5,) * 3, (4000.0,) * 3])],
    "depthwise convolution": [
        ("Conv", {"inputs": [np.full((3, 1, 1, 1), 1 / 128), np.full(3, -127.5 / 128)], "group": 3})
    ],
    "channels last": [TO_NHWC, ("Sub", (127.5, 127.5, 127.5)), ("Mul", 0.0078125), TO_NCHW],
    "bgr listed": [("Gather", {"inputs": [np.array([2, 1, 0])], "axis": 1}), *SUB_MUL],
    "bgr turned": [
        ("Slice", [np.array([-1]), np.array([-(2**63)]), np.array([1]), np.array([-1])]),
        *SUB_MUL,
    ],
    "imagenet on pixels": [("Div", 255.0), *ON_UNIT],
    "turned around": [("rSub", 127.5), ("Mul", -1 / 128)],
}


@pytest.mark.parametrize("name", TAKES_PIXELS)
def test_a_network_that_takes_pixels_is_told_from_one_that_does_not(tmp_path: Path, name: str):
    path = write(tmp_path / "net.onnx", TAKES_PIXELS[name], constants_as_nodes=name.startswith("bgr"))
    open_network(path, ZERO, PIXELS)
    for mean, std in ((HALF, HALF), (IMAGENET_MEAN, IMAGENET_STD)):
        with pytest.raises(TeacherError) as refused:
            open_network(path, mean, std)
        assert re.search(r"net\.onnx normalises its images itself: its graph begins with \w+", str(refused.value))
        assert "from 0 to 255" in str(refused.value)
        assert "State mean [0, 0, 0] and std [0.00392157, 0.00392157, 0.00392157]" in str(refused.value)


@pytest.mark.parametrize("steps", [ON_UNIT, [("Sub", 0.5), ("Div", 0.5)], [("Mul", 255.0), *SUB_MUL]])
def test_a_network_that_takes_0_to_1_is_told_too(tmp_path: Path, steps: list):
    path = write(tmp_path / "net.onnx", steps)
    open_network(path, ZERO, ONE)
    for mean, std in ((HALF, HALF), (IMAGENET_MEAN, IMAGENET_STD), (ZERO, PIXELS)):
        with pytest.raises(TeacherError, match=r"from 0 to 1\. .*State mean \[0, 0, 0\] and std \[1, 1, 1\]"):
            open_network(path, mean, std)


def test_a_network_that_turns_minus_1_to_1_into_what_it_was_trained_on_is_left_alone(tmp_path: Path):
    path = write(tmp_path / "net.onnx", [("Mul", 0.5), ("Add", 0.5), *ON_UNIT])
    open_network(path, HALF, HALF)
    with pytest.raises(TeacherError, match=r"-1 to 1.*State mean \[0\.5, 0\.5, 0\.5\] and std \[0\.5, 0\.5, 0\.5\]"):
        open_network(path, IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [("Mul", 1.0)],
        [("BatchNormalization", [(0.9, 1.1, 1.0), (0.1, 0.0, -0.1), (-0.2, -0.1, -0.15), (0.3, 0.25, 0.3)])],  # learnt
        [("Relu", []), *SUB_MUL],  # by then they are no images any more
    ],
)
def test_what_fits_or_says_nothing_raises_no_alarm(tmp_path: Path, steps: list):
    open_network(write(tmp_path / "net.onnx", steps), HALF, HALF)


def test_statistics_are_of_the_channels_as_they_come_in(tmp_path: Path):
    turned = [("Gather", {"inputs": [np.array([2, 0, 1])], "axis": 1}), ("Sub", channels(1.0, 2.0, 3.0))]
    model = onnx.load(write(tmp_path / "net.onnx", turned))
    assert own_normalisation(model, "data", onnx).shift.tolist() == [-2.0, -3.0, -1.0]


def test_what_is_no_number_for_each_channel_ends_the_walk(tmp_path: Path):
    for steps in ([("Sub", np.zeros((1, 3, SIDE, SIDE)))], [("Sub", np.ones((1, 1, 1, 3)))], [("Div", 0.0)]):
        assert own_normalisation(onnx.load(write(tmp_path / "net.onnx", steps)), "data", onnx) is None


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "mean", "std"), [("EdgeFace-XS", HALF, HALF), ("MobileFaceNet", IMAGENET_MEAN, IMAGENET_STD)]
)
def test_real_networks_that_do_not_normalise_raise_no_alarm(data_dir: Path, name: str, mean: tuple, std: tuple):
    path = data_dir / "teachers" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    config = TeacherConfig(onnx=str(path), color="rgb", mean=mean, std=std)
    load_source(config, image_size=112, ranks=Ranks()).network()
