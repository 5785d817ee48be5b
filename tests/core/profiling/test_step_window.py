"""Which steps a launch profiles."""

from __future__ import annotations

import pytest

from adadistill.core.profiling import StepWindow


@pytest.mark.parametrize(
    ("text", "wait", "warm_up", "end"), [("10:5", 8, 2, 15), ("1:1", 0, 1, 2), ("2:100", 0, 2, 102)]
)
def test_a_window_is_waited_for_warmed_up_for_and_over(text: str, wait: int, warm_up: int, end: int):
    window = StepWindow.parse(text)
    assert (window.wait, window.warm_up, window.end, str(window)) == (wait, warm_up, end, text)


@pytest.mark.parametrize(
    "text", ["", "5", "5:", ":5", "a:b", "5:-1", "-1:5", "5:5:5", "5 : 5", "1.5:2", "9999999999:1"]
)
def test_what_is_no_window_is_named(text: str):
    with pytest.raises(ValueError, match=r"--profile-steps must be FIRST:COUNT, .* got '"):
        StepWindow.parse(text)


@pytest.mark.parametrize(("text", "what"), [("0:5", "at least 1 step"), ("5:0", "1 to 100"), ("5:101", "1 to 100")])
def test_a_window_out_of_range_is_named(text: str, what: str):
    with pytest.raises(ValueError, match=f"--profile-steps .*{what}.* got {text}"):
        StepWindow.parse(text)
