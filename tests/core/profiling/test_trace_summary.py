"""Summaries of timelines written by hand, so that every number is known; a GPU's too."""

from __future__ import annotations

from typing import Any

import pytest

from adadistill.core.profiling.summary_text import summary_text
from adadistill.core.profiling.trace_summary import Span, covered, own_segments, summarise

MAIN, AUTOGRAD, LOADER, STREAM = 1, 2, 3, 7


def event(cat: str, name: str, start_ms: float, end_ms: float, tid: int = MAIN, **args: int) -> dict[str, Any]:
    """An event of the Chrome trace format, as torch's profiler writes it."""
    return {
        "ph": "X", "cat": cat, "name": name, "pid": 0 if tid == STREAM else 99, "tid": tid,
        "ts": start_ms * 1e3, "dur": (end_ms - start_ms) * 1e3, "args": args,
    }  # fmt: skip


def step_on_the_host(number: int, start_ms: float) -> list[dict[str, Any]]:
    """100 ms: load 10, student_fwd 20 (operators 15), head 30 with teacher and centres 5 each, backward 30, rest 10."""
    spans = [
        ("user_annotation", f"ProfilerStep#{number}", 0, 100),
        ("user_annotation", f"step {number}", 0, 100),
        ("user_annotation", "load", 0, 10),
        ("user_annotation", "student_fwd", 10, 30),
        ("cpu_op", "aten::conv2d", 12, 27),
        ("cpu_op", "aten::convolution", 13, 26),
        ("user_annotation", "head", 30, 60),
        ("user_annotation", "teacher", 32, 37),
        ("user_annotation", "centres", 40, 45),
        ("user_annotation", "backward", 60, 90),
        ("user_annotation", "Optimizer.step#SGD.step", 91, 92),
    ]
    events = [event(cat, name, start_ms + start, start_ms + end) for cat, name, start, end in spans]
    return [*events, event("user_annotation", "h2d", start_ms + 1, start_ms + 5, LOADER)]


def test_a_ranges_own_time_is_what_none_inside_it_took():
    summary = summarise([*step_on_the_host(4, 0.0), *step_on_the_host(5, 100.0)], [4, 5])
    rows = [(row.name, row.calls, row.host_ms, row.host_share) for row in summary.ranges]
    assert rows == [
        ("load", 1.0, pytest.approx(10.0), pytest.approx(0.10)),
        ("student_fwd", 1.0, pytest.approx(20.0), pytest.approx(0.20)),
        ("head", 1.0, pytest.approx(20.0), pytest.approx(0.20)),
        ("teacher", 1.0, pytest.approx(5.0), pytest.approx(0.05)),
        ("centres", 1.0, pytest.approx(5.0), pytest.approx(0.05)),
        ("backward", 1.0, pytest.approx(30.0), pytest.approx(0.30)),
        ("other", 1.0, pytest.approx(10.0), pytest.approx(0.10)),
    ]
    assert summary.step_ms == pytest.approx((100.0, 100.0))
    assert summary.load_share == pytest.approx(0.1)
    assert [(row.name, row.host_ms) for row in summary.beside] == [("h2d", pytest.approx(4.0))]


def test_threads_beside_the_one_that_trains_are_reported_together():
    next_epochs_loader = event("user_annotation", "h2d", 50, 56, LOADER + 1)
    beside = summarise([*step_on_the_host(4, 0.0), next_epochs_loader], [4]).beside
    assert [(row.name, row.calls, row.host_ms) for row in beside] == [("h2d", 2.0, pytest.approx(10.0))]


def test_operators_are_ranked_by_their_own_time():
    summary = summarise([*step_on_the_host(4, 0.0), *step_on_the_host(5, 100.0)], [4, 5])
    assert [(row.name, row.calls, row.ms, row.share) for row in summary.operators] == [
        ("aten::convolution", 2, pytest.approx(26.0), pytest.approx(0.13)),
        ("aten::conv2d", 2, pytest.approx(4.0), pytest.approx(0.02)),
    ]
    assert summary.operator_share == pytest.approx(0.15)


def test_what_happens_between_and_outside_whole_steps_is_left_out():
    evaluation = [event("cpu_op", "aten::conv2d", 110, 190)]
    cut_short = [event("user_annotation", "step 6", 300, 400), event("user_annotation", "load", 300, 390)]
    summary = summarise([*step_on_the_host(4, 0.0), *evaluation, *step_on_the_host(5, 200.0), *cut_short], [4, 5])
    assert summary.load_share == pytest.approx(0.1)
    assert next(row for row in summary.operators if row.name == "aten::conv2d").calls == 2


def test_without_kernels_nothing_is_said_of_a_device():
    summary = summarise(step_on_the_host(4, 0.0), [4])
    assert summary.device_time is None
    assert summary.kernels == ()
    assert all(row.device_ms is None for row in summary.ranges)


def launch(correlation: int, at_ms: float, tid: int = MAIN, cat: str = "cuda_runtime") -> dict[str, Any]:
    return event(cat, "cudaLaunchKernel", at_ms, at_ms + 0.01, tid, correlation=correlation)


def step_on_a_gpu() -> list[dict[str, Any]]:
    """Launches of one step, and kernels that run later: 10..90 ms, 40 of it busy."""
    backward_node = event("cpu_op", "autograd::engine::evaluate_function: ConvolutionBackward0", 65, 66, AUTOGRAD)
    return [
        *step_on_the_host(4, 0.0),
        backward_node,
        launch(1, 14.0),
        event("kernel", "conv_forward", 10, 30, STREAM, correlation=1),
        launch(2, 33.0, cat="cuda_driver"),
        event("kernel", "teacher_kernel", 40, 45, STREAM, correlation=2),
        launch(3, 65.5, AUTOGRAD),
        event("kernel", "conv_backward", 70, 80, STREAM, correlation=3),
        event("kernel", "conv_backward_too", 75, 85, STREAM + 1, correlation=3),
        launch(4, 2.0, LOADER),
        event("kernel", "augment", 88, 90, STREAM + 2, correlation=4),
        launch(5, 3.0, tid=50),  # of a thread without ranges: DALI's
        event("kernel", "decode", 44, 47, STREAM + 3, correlation=5),
        event("gpu_memcpy", "Memcpy HtoD", 31, 38, STREAM, correlation=6),
        event("gpu_user_annotation", "student_fwd", 10, 30, STREAM),
    ]


def test_a_kernel_belongs_to_the_range_that_launched_it_backward_threads_included():
    summary = summarise(step_on_a_gpu(), [4])
    on_device = {row.name: row.device_ms for row in [*summary.ranges, *summary.beside]}
    assert on_device == {
        "load": 0.0, "student_fwd": pytest.approx(20.0), "head": 0.0, "teacher": pytest.approx(5.0), "centres": 0.0,
        "backward": pytest.approx(20.0), "other": 0.0, "h2d": pytest.approx(2.0),
    }  # fmt: skip


def test_the_device_is_idle_while_no_kernel_of_any_stream_runs():
    device = summarise(step_on_a_gpu(), [4]).device_time
    assert device is not None
    assert device.span_ms == pytest.approx(80.0)
    assert device.busy_ms == pytest.approx(20 + 7 + 15 + 2)
    assert device.idle_share == pytest.approx(1 - 44 / 80)
    assert device.copy_ms == pytest.approx(7.0)


def test_kernels_of_earlier_steps_count_as_busy_but_belong_to_no_range():
    earlier = event("kernel", "optimiser_of_step_3", 5, 9, STREAM, correlation=1234)
    summary = summarise([*step_on_a_gpu(), earlier], [4])
    assert "optimiser_of_step_3" not in {row.name for row in summary.kernels}
    assert summary.device_time is not None
    assert summary.device_time.busy_ms == pytest.approx(48.0)


def test_a_timeline_without_the_steps_is_refused():
    with pytest.raises(RuntimeError, match="no range of the steps 8, 9"):
        summarise(step_on_the_host(4, 0.0), [8, 9])


def test_segments_name_the_innermost_span_and_bear_ends_that_stick_out_by_a_rounding():
    spans = [Span(0, 10, "a"), Span(0, 4, "b"), Span(1, 4.001, "c"), Span(12, 13, "d")]
    segments = own_segments(spans)
    assert segments == [
        Span(0, 1, "b"), Span(1, 4.001, "c"), Span(4.001, 10, "a"), Span(12, 13, "d"),
    ]  # fmt: skip
    assert own_segments([]) == []


def test_overlapping_spans_are_covered_once():
    assert covered([]) == 0.0
    assert covered([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5), (7.0, 8.0)]) == 6.0


def test_the_text_says_what_bounds_a_gpu_and_what_is_reported_where_there_is_none():
    on_gpu = summary_text(summarise(step_on_a_gpu(), [4]), title="Profile", facts=["A fact."], on_cuda=True)
    assert "# Profile\n\nA fact.\n" in on_gpu
    assert "idle for 45.0%** of the 80.0 ms" in on_gpu
    assert "| `student_fwd` | 1.0 | 20.00 | 20.0% | 20.00 |" in on_gpu
    assert "| `conv_forward` | 1 | 20.00 |" in on_gpu

    on_cpu = summary_text(summarise(step_on_the_host(4, 0.0), [4]), title="Profile", facts=[], on_cuda=False)
    assert "Waiting for images took 10.0% of the steps; operators ran for 15.0%" in on_cpu
    assert "Kernels" not in on_cpu
    nothing_seen = summary_text(summarise(step_on_the_host(4, 0.0), [4]), title="Profile", facts=[], on_cuda=True)
    assert "no kernel was recorded" in nothing_seen


def test_names_of_kernels_cannot_break_the_table():
    hostile = event("kernel", "void f<a|b>`x`\n" + "y" * 300, 10, 11, STREAM, correlation=1)
    text = summary_text(
        summarise([*step_on_the_host(4, 0.0), launch(1, 12.0), hostile], [4]), title="t", facts=[], on_cuda=True
    )
    row = next(line for line in text.splitlines() if "void f" in line)
    assert row.count("|") == 5
    assert len(row) < 150
