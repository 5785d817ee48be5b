"""A profile follows the steps of a window of a launch, and never stands in its way."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from adadistill.core.distributed import Ranks
from adadistill.core.profiling import NO_PROFILE, StepProfile, StepWindow
from adadistill.loaders.named_ranges import OFF, named_range


class Tape(StepProfile):
    """A profile whose tool notes what it is told, and fails where asked to."""

    def __init__(self, window: StepWindow, failing: str = "", rank: int = 0) -> None:
        super().__init__(window, Ranks(rank=rank, world_size=rank + 1))
        self.seen: list[str] = []
        self._failing = failing

    @contextmanager
    def open_range(self, name: str) -> Iterator[None]:
        self.seen.append(name)
        yield

    def before_step(self, number: int) -> None:
        self.note(f"before {number}")

    def finish(self, steps: Sequence[int]) -> None:
        self.note(f"finish {list(steps)}")

    def abandon(self) -> None:
        self.note("abandon")

    def note(self, what: str) -> None:
        self.seen.append(what)
        if self._failing and what.startswith(self._failing):
            raise OSError(f"no room for {what}")


def train(profile: StepProfile, steps: range) -> list[bool]:
    """Go through steps as the loop does; whether each ended the profile."""
    ended = []
    for step in steps:
        with profile.step(step), named_range("load"):
            pass
        ended.append(profile.finish_if_due())
    return ended


def test_it_waits_warms_up_records_and_ends_by_itself():
    profile = Tape(StepWindow(3, 2))
    assert train(profile, range(100, 107)) == [False, False, False, False, True, False, False]
    assert profile.seen == [
        "before 0", "step 101", "load",
        "before 1", "step 102", "load",
        "before 2", "step 103", "load",
        "before 3", "step 104", "load",
        "finish [103, 104]",
    ]  # fmt: skip
    assert profile.step(107) is OFF, "and costs nothing more"


def test_no_profile_is_off_for_every_step():
    assert NO_PROFILE.step(0) is OFF
    assert not NO_PROFILE.finish_if_due()
    NO_PROFILE.close()


def test_a_run_that_ends_within_the_window_keeps_its_whole_steps_and_says_so(caplog: pytest.LogCaptureFixture):
    profile = Tape(StepWindow(1, 5))
    train(profile, range(3))
    with pytest.raises(KeyError), profile.step(3):
        raise KeyError("something ends the run within step 3")
    profile.close()
    assert profile.seen[-1] == "finish [1, 2]"
    assert "--profile-steps 1:5 asks for steps that did not come: the run ended after 2 of 5" in caplog.text


@pytest.mark.parametrize(("steps", "seen"), [(2, []), (4, ["before 0", "step 3", "load", "abandon"])])
def test_a_run_that_ends_before_the_window_says_that_nothing_was_recorded(
    steps: int, seen: list[str], caplog: pytest.LogCaptureFixture
):
    profile = Tape(StepWindow(5, 5))
    train(profile, range(steps))
    profile.close()
    assert profile.seen == (seen or ["abandon"])
    assert f"the run ended in step {steps} of this launch. Nothing was recorded" in caplog.text


@pytest.mark.parametrize("failing", ["before 0", "before 2", "finish"])
def test_a_tool_that_fails_is_given_up_by_name_and_training_goes_on(failing: str, caplog: pytest.LogCaptureFixture):
    profile = Tape(StepWindow(2, 2), failing, rank=3)
    with caplog.at_level(logging.ERROR):
        train(profile, range(6))
    profile.close()
    assert profile.seen[-1] == "abandon"
    assert f"rank 3: no profile, training goes on without: OSError: no room for {failing}" in caplog.text
    assert named_range("load") is OFF
    assert caplog.text.count("no profile") == 1


def test_a_tool_that_cannot_even_be_stopped_stops_nothing(caplog: pytest.LogCaptureFixture):
    class Broken(Tape):
        def note(self, what: str) -> None:
            raise RuntimeError(f"broken: {what}")

    profile = Broken(StepWindow(1, 1))
    train(profile, range(3))
    assert "RuntimeError: broken: before 0" in caplog.text


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
