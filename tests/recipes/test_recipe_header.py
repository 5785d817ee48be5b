"""The comment of a recipe as data, and what the comments of the shipped ones must say."""

from __future__ import annotations

import re
from pathlib import Path

from adadistill.core.recipe import shipped_recipes
from adadistill.recipes.ablation.plan import shipped_variants, variant_description
from adadistill.recipes.recipe_header import first_sentence, read_recipe_header

SHIPPED = shipped_recipes()
FOR_THE_FIELD = [name for name in SHIPPED if not name.startswith("demo_")]
POOLING = re.compile(r"Norm:(True|False), Det:(True|False)")
IJB_FIGURE = re.compile(r"IJB\D{0,40}\d\d\.\d\d|IJB[^.]*TAR \d\d\.\d\d")

HEADER = """\
# Digits from digits. Nothing else,
# on two lines.
#
# Launch   adadistill train digits
# Aims at  an accuracy of 99.5 %, as published. One seed;
#            LFW  99.50
# Result   not measured
name: digits
# Needs    what stands below the first key is no header
"""


def test_a_header_is_read_part_by_part(tmp_path: Path):
    path = tmp_path / "digits.yaml"
    path.write_text(HEADER)

    header = read_recipe_header(path)

    assert (header.purpose, header.text) == ("Digits from digits.", "Digits from digits. Nothing else, on two lines.")
    assert header.launch == "adadistill train digits"
    assert header.needs == ""
    assert header.aim == "an accuracy of 99.5 %, as published."
    assert header.aims_at == "an accuracy of 99.5 %, as published. One seed; LFW 99.50"
    assert header.result == "not measured"


def test_a_number_does_not_end_a_sentence_and_a_file_may_have_no_comment(tmp_path: Path):
    (tmp_path / "bare.yaml").write_text("name: bare\n")
    bare = read_recipe_header(tmp_path / "bare.yaml")
    assert {bare.purpose, bare.launch, bare.aims_at, bare.result} == {""}
    assert first_sentence("IJB-C TAR 93.98 at FAR 1e-4. More.") == "IJB-C TAR 93.98 at FAR 1e-4."
    assert first_sentence("no full stop") == "no full stop"


def test_shipped_recipes_and_variants_say_in_one_line_what_they_are_and_how_to_launch_them():
    for name, path in SHIPPED.items():
        header = read_recipe_header(path)
        assert re.search(rf"\b{name}\b", header.launch)
        assert header.result
    purposes = [read_recipe_header(path).purpose for path in SHIPPED.values()]
    for text in (*purposes, *map(variant_description, shipped_variants().values())):
        assert text.endswith(".")
        assert 20 <= len(text) <= 110, text


def test_recipes_for_the_field_say_what_they_need_and_aim_at_and_claim_nothing():
    for name in FOR_THE_FIELD:
        header = read_recipe_header(SHIPPED[name])
        assert header.needs, name
        assert len(header.aim) > 15, name
        assert header.result == "not measured", (
            "a result brings hardware, commit and date, and its row in bench/results"
        )
        for text in (header.aim, header.aims_at):  # figures of IJB come with the pooling of their templates
            assert POOLING.search(text) or not IJB_FIGURE.search(text), text


# Method 1.5, 2.5, 3.5, 5.5 and 9.6.
PUBLISHED = {
    "ms1mv2_ir50_to_mobilefacenet": "93.98 90.33 91.95 84.96 99.48 95.10 96.20 95.27 90.22 93.14 59.31 93.27 91.21",
    "ms1mv2_ir50_to_mobilefacenet_no_geometry": "93.82 90.00 91.67 83.76 99.50 95.24 95.82 94.92 89.73 58.69 93.05",
    "ms1mv2_ir50_to_mobilefacenet_static_geometry": "93.77 90.17 99.50 94.33 96.07 89.83 58.93 63.30",
    "ms1mv2_iresnet50_to_mobilefacenet": "93.27 89.32 91.21 95.43 93.26 89.31 91.22 84.14 92.45 57.22 63.12 67.09",
    "ms1mv2_iresnet50_to_mobilefacenet_unweighted": "88.23 89.13 84.57",
    "ms1mv2_iresnet50_to_mobilefacenet_frozen_arcface": "84.57 89.13",
    "ms1mv2_mobilefacenet_arcface_no_teacher": "89.13 81.65 87.07 94.01",
    "ms1mv2_mobilefacenet_no_teacher": "89.13 81.65",
    "ms1mv2_iresnet50_arcface_step_teacher": "96.05",
    "ms1mv2_iresnet50_arcface_teacher": "95.97 94.07",
    "ms1mv2_mbf_arcface_no_teacher": "93.61 90.28",
    "ms1mv2_ir50_adaface_teacher": "94.82 96.27 99.82 97.86 97.85 96.07 92.83",
    "ms1mv3_iresnet50_arcface_teacher": "96.37 94.47",
    "ms1mv3_mbf_arcface_no_teacher": "94.23 91.33",
    "glint360k_iresnet50_cosface_teacher": "97.16 95.81",
    "glint360k_iresnet100_cosface_teacher": "97.55 96.38",
    "glint360k_mbf_cosface_no_teacher": "95.04 92.62",
    "webface4m_iresnet100_cosface_teacher": "97.19 95.48",
    "webface4m_ir50_adaface_teacher": "95.44 96.98 99.78 98.97 94.17 95.98 97.78",
    "webface4m_ir101_adaface_teacher": "96.10 97.46 99.83 94.63 99.27 96.05 97.90 72.13 74.49",
    "webface12m_iresnet100_cosface_teacher": "97.59 95.97",
    "webface12m_ir101_adaface_teacher": "96.41 97.66 99.82 99.26 94.57 96.12 98.00 72.29 74.97",
    "casia_iresnet50_to_mobilefacenet": "94.81 92.25",
    "casia_mobilefacenet_arcface_no_teacher": "92.25",
    "casia_ir50_adaface_teacher": "99.42 96.41 89.97 93.23 94.38 52.97 46.04",
    "casia_ir18_adaface_teacher": "99.13 92.59 87.00 92.65 92.72 37.10 30.36",
}


def test_the_published_figures_are_quoted_as_they_were_published():
    for name in FOR_THE_FIELD:
        header = read_recipe_header(SHIPPED[name])
        if name in PUBLISHED:
            assert set(PUBLISHED[name].split()) <= set(re.findall(r"\d\d\.\d\d", header.aims_at)), name
        else:
            assert header.aim.startswith("nothing"), "a figure to aim at belongs into PUBLISHED above"
