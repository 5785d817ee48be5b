"""A `teacher` section names one source, and keys that mean nothing beside it are refused with all other problems."""

from __future__ import annotations

import pytest

from adadistill.core.config.schema import config_schema
from adadistill.core.teachers import TeacherConfig
from adadistill.core.teachers.config import NETWORK_SOURCES
from adadistill.core.teachers.interface import NetworkSource

ONNX = {"onnx": "a.onnx", "color": "rgb", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"checkpoint": "runs/a"}, "checkpoint"),
        ({"weights": "a.pth", "arch": "iresnet50"}, "weights"),
        ({"weights": "a.ckpt", "format": "adaface", "color": "auto", "color_set": "lfw.bin"}, "weights"),
        ({"cvlface": "cvlface_ir50", "revision": "0" * 40, "cache": "cache/a"}, "cvlface"),
        (ONNX, "onnx"),
        ({"cache": "cache/a", "cache_on_device": True}, None),
        ({"embeddings": "rows.npy"}, None),
    ],
)
def test_one_source_is_enough(fields: dict, source: str | None):
    assert TeacherConfig(**fields).source == source


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of checkpoint, weights, cvlface, onnx, embeddings .* got none"),
        ({"checkpoint": "a", "embeddings": "b"}, "got checkpoint and embeddings"),
        ({"weights": "a", "cvlface": "b"}, "got weights and cvlface"),
        ({"embeddings": "a", "cache": "b"}, "two stores of the same thing"),
        ({"checkpoint": ""}, "checkpoint must be a path or a name, got an empty text"),
        ({"checkpoint": "a", "arch": "ir50"}, "arch is for weights, got it with checkpoint"),
        ({"weights": "a", "revision": "0" * 40}, "revision is for cvlface"),
        ({"cvlface": "a", "revision": "main"}, "full commit, 40 lower-case hex digits, got 'main'"),
        ({"cache": "a", "color": "rgb"}, "got it with no network"),
        ({"checkpoint": "a", "color_set": "lfw.bin"}, "color_set is what color: auto scores on"),
        ({"onnx": "a"}, "color, mean, std missing"),
        ({"checkpoint": "a", "mean": (0.5, 0.5, 0.5)}, "mean and std belong together"),
        ({**ONNX, "mean": (127.5, 127.5, 127.5)}, "scale of 0 to 1"),
        ({**ONNX, "std": (0.5, 0.5)}, "three finite numbers"),
        ({**ONNX, "std": (0.5, 0.0, 0.5)}, "std must be positive"),
        ({**ONNX, "compile": True}, "compile is for checkpoint, weights, cvlface, got it with onnx"),
        ({"checkpoint": "a", "sha256": "abc"}, "64 lower-case hex digits"),
        ({"checkpoint": "a", "format": "adaface"}, "format is for weights"),
        ({"checkpoint": "a", "provider": "cpu"}, "provider is for onnx"),
        ({"checkpoint": "a", "cache_verify": False}, "there is none"),
    ],
)
def test_what_does_not_belong_together_is_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TeacherConfig(**fields)


def test_all_problems_are_said_at_once():
    with pytest.raises(ValueError) as caught:
        TeacherConfig(weights="a", onnx="b", revision="c")
    assert len(str(caught.value).splitlines()) == 4


def test_every_source_is_there_and_its_options_are_keys():
    for registered in NETWORK_SOURCES.values():
        assert isinstance(registered.source(), NetworkSource)
        assert set(registered.options) <= config_schema(TeacherConfig).fields.keys()
