"""CVLface's own words on a network are read as data, completely, or refused with what is wrong."""

from __future__ import annotations

import json

import pytest

from adadistill.core.teachers import TeacherError
from adadistill.core.teachers.cvlface_description import read_config_colors, read_description, settle_color

# As the repositories have it, to the byte.
PUBLISHED = """\
input_size:
- 3
- 112
- 112
color_space: RGB
name: ir101
output_dim: 512
start_from: ''
freeze: false
yaml_path: models/iresnet/configs/v1_ir101.yaml
"""
# As CVLface's own configs have it.
CONFIG = "input_size: [3, 112, 112]\ncolor_space: 'RGB'\nname: 'ir18'\noutput_dim: 512\nstart_from: ''\nfreeze: False"


def _read(text: str):
    return read_description(text.encode(), "teacher, model.yaml")


def _with(**changes: str | None) -> str:
    values = {"name": "ir50", "input_size": "[3, 112, 112]", "output_dim": "512", "color_space": "RGB", **changes}
    return "".join(f"{key}: {value}\n" for key, value in values.items() if value is not None)


def test_the_published_file_and_flow_style_describe_their_networks():
    for text, arch in ((PUBLISHED, "ir101"), (CONFIG, "ir18")):
        described = _read(text)
        assert (described.backbone.arch, described.backbone.embedding_dim) == (arch, 512)
        assert (described.image_size, described.color) == (112, "rgb")


def test_names_of_the_classes_and_colour_orders_are_understood():
    for name, arch in (("ir34", "ir34"), ("IR_50", "ir50"), ("IR101", "ir101"), ("ir_101", "ir101")):
        assert _read(_with(name=name)).backbone.arch == arch
    for written, color in (("BGR", "bgr"), ("bgr", "bgr"), (None, None)):
        assert _read(_with(color_space=written)).color == color


@pytest.mark.parametrize("name", ["base", "ir152", "ir_se_50"])
def test_other_networks_are_refused_with_another_way(name: str):
    with pytest.raises(TeacherError, match=rf"`{name}`; .* only ir18, ir34, ir50, ir101 are built") as error:
        _read(_with(name=name))
    assert "adadistill cache import" in str(error.value)
    assert "keypoints" not in str(error.value)


@pytest.mark.parametrize("text", [_with(name="base") + "rpe_config:\n  name: KPRPE_shared\n", _with(name="vit_KPRPE")])
def test_kprpe_networks_are_refused_with_what_they_need(text: str):
    with pytest.raises(TeacherError, match=r"KPRPE network, .* need the five facial keypoints .* cache import"):
        _read(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("name: !!python/object/apply:os.system [id]\n", "tags"),
        ("[" * 5000, "nested deeper"),
        (_with(name=None), "names no network"),
        (_with(name="[ir50]"), "names no network"),
        (_with(input_size="[1, 112, 112]"), r"input_size must be \[3, side, side\]"),
        (_with(input_size="[3, 112, 96]"), r"input_size must be \[3, side, side\]"),
        (_with(input_size="[3, true, true]"), r"input_size must be \[3, side, side\]"),
        (_with(input_size="[3, 100, 100]"), "multiple of 16 up to 1024, got 100"),
        (_with(input_size="[3, 1000000000000, 1000000000000]"), "multiple of 16 up to 1024"),
        (_with(output_dim=None), "output_dim must be a length"),
        (_with(output_dim="0"), "output_dim must be a length from 1 to 16384, got 0"),
        (_with(output_dim="99999999999"), "output_dim must be a length"),
        (_with(color_space="GRB"), "color_space must be RGB or BGR, got 'GRB'"),
        (_with(color_space="''"), "color_space must be RGB or BGR, got ''"),
    ],
)
def test_what_is_no_description_is_refused_with_its_reason(text: str, message: str):
    with pytest.raises(TeacherError, match=message) as error:
        _read(text)
    assert str(error.value).startswith("teacher, model.yaml")


def test_every_problem_is_said_at_once():
    with pytest.raises(TeacherError) as error:
        _read(_with(input_size="x", output_dim="y", color_space="z"))
    assert all(key in str(error.value) for key in ("input_size", "output_dim", "color_space"))


@pytest.mark.parametrize(
    ("document", "colors"),
    [
        ({}, set()),
        ({"conf": {"color_space": "RGB"}}, {"rgb"}),
        ({"conf": {"model": {"color_space": "BGR"}}}, {"bgr"}),
        ({"conf": [{"color_space": "bgr"}, {"color_space": "RGB"}]}, {"bgr", "rgb"}),
        ({"color_space": "BGR", "auto_map": {"AutoModel": "wrapper.Model"}}, set()),
    ],
)
def test_colours_of_a_config_are_those_in_its_conf(document: object, colors: set[str]):
    assert read_config_colors(json.dumps(document).encode(), "config.json") == colors


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 300_000, "no JSON"),
        (b'{"conf": {"color_space": "CMYK"}}', "must be RGB or BGR, got 'CMYK'"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(body: bytes, message: str):
    with pytest.raises(TeacherError, match=message):
        read_config_colors(body, "config.json")


def test_colour_is_what_the_files_agree_on():
    for of_description, of_config, settled in (("bgr", ("bgr",), "bgr"), (None, ("bgr",), "bgr"), (None, (), None)):
        assert settle_color(of_description, of_config, None, "teacher") == settled


@pytest.mark.parametrize(("of_description", "of_config"), [("rgb", ("bgr",)), (None, ("rgb", "bgr"))])
def test_a_contradiction_states_nothing_and_needs_a_word_of_the_recipe(of_description, of_config):
    with pytest.raises(TeacherError, match=r"model\.yaml says .* config\.json says .* set teacher\.color to auto"):
        settle_color(of_description, of_config, None, "teacher")
    for wanted in ("auto", "rgb", "bgr"):
        assert settle_color(of_description, of_config, wanted, "teacher") is None
