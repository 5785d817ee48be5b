"""Summaries of recordings made by hand, so that every number is known; a GPU's too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from adadistill.core.profiling.summary import covered, summarise, summary_text

MAIN, AUTOGRAD, LOADER = 1, 2, 3


class Event(SimpleNamespace):
    """As `torch.autograd.profiler_util.FunctionEvent`, in milliseconds."""

    def __init__(self, name: str, start_ms: float, end_ms: float, thread: int = MAIN, **more: Any) -> None:
        elapsed = (end_ms - start_ms) * 1e3
        span = SimpleNamespace(start=start_ms * 1e3, end=end_ms * 1e3, elapsed_us=lambda: elapsed)
        given = {"is_user_annotation": False, "device_type": DeviceType.CPU, "kernels": [], "cpu_parent": None, **more}
        super().__init__(name=name, thread=thread, time_range=span, self_cpu_time_total=elapsed, **given)

    def launches(self, *kernels: Event) -> Event:
        self.kernels = [SimpleNamespace(duration=kernel.time_range.elapsed_us()) for kernel in kernels]
        return self


def step_on_the_host(number: int, start_ms: float) -> dict[str, Event]:
    """100 ms: load 10, student_fwd 20 (operators 15), head 30 with teacher and centres 5 each, backward 30, rest 10."""
    made: dict[str, Event] = {}
    for name, start, end, parent, is_range in (
        ("ProfilerStep*", 0, 100, None, True),
        (f"step {number}", 0, 100, "ProfilerStep*", True),
        ("load", 0, 10, f"step {number}", True),
        ("student_fwd", 10, 30, f"step {number}", True),
        ("aten::conv2d", 12, 27, "student_fwd", False),
        ("aten::convolution", 13, 26, "aten::conv2d", False),
        ("head", 30, 60, f"step {number}", True),
        ("teacher", 32, 37, "head", True),
        ("centres", 40, 45, "head", True),
        ("backward", 60, 90, f"step {number}", True),
        ("Optimizer.step#SGD.step", 91, 92, f"step {number}", True),
    ):
        around = None if parent is None else made[parent]
        made[name] = Event(name, start_ms + start, start_ms + end, is_user_annotation=is_range, cpu_parent=around)
    made["aten::conv2d"].self_cpu_time_total = 2e3
    made["h2d"] = Event("h2d", start_ms + 1, start_ms + 5, LOADER, is_user_annotation=True)
    return made


def test_a_ranges_own_time_is_what_none_inside_it_took_and_whole_steps_alone_count():
    cut_short = [Event("step 6", 300, 400, is_user_annotation=True), Event("aten::conv2d", 310, 390)]
    steps = [*step_on_the_host(4, 0.0).values(), *step_on_the_host(5, 100.0).values(), *cut_short]
    summary = summarise(steps, [4, 5])
    assert [(row.name, row.calls, row.host_ms, row.host_share) for row in summary.ranges] == [
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
    assert [(row.name, row.calls, row.ms, row.share) for row in summary.operators] == [
        ("aten::convolution", 2, pytest.approx(26.0), pytest.approx(0.13)),
        ("aten::conv2d", 2, pytest.approx(4.0), pytest.approx(0.02)),
    ]
    assert summary.operator_share == pytest.approx(0.15)
    assert (summary.device_time, summary.kernels) == (None, ())
    assert all(row.device_ms is None for row in summary.ranges)


def step_on_a_gpu() -> list[Event]:
    """One step whose kernels run later than they are launched: 10..90 ms, 44 of it busy."""
    made = step_on_the_host(4, 0.0)
    on_device = {"device_type": DeviceType.CUDA}
    forward, teacher = Event("conv_forward", 10, 30, 7, **on_device), Event("teacher_kernel", 40, 45, 7, **on_device)
    backward = [Event("conv_backward", 70, 80, 7, **on_device), Event("conv_backward_too", 75, 85, 8, **on_device)]
    augment, decode = Event("augment", 88, 90, 9, **on_device), Event("decode", 44, 47, 10, **on_device)
    made["aten::convolution"].launches(forward)
    made["teacher"].launches(teacher)
    made["h2d"].launches(augment)
    node = Event("autograd::engine::evaluate_function: ConvolutionBackward0", 65, 66, AUTOGRAD)
    made["node"] = node
    made["backward op"] = Event("aten::convolution_backward", 65, 66, AUTOGRAD, cpu_parent=node).launches(*backward)
    made["of a thread without ranges"] = Event("cudaLaunchKernel", 3, 3.1, 50).launches(decode)
    copy = Event("Memcpy HtoD", 31, 38, 7, **on_device)
    shadow = Event("student_fwd", 10, 30, 7, is_user_annotation=True, **on_device)
    return [*made.values(), forward, teacher, *backward, augment, decode, copy, shadow]


def test_a_kernel_belongs_to_the_range_that_launched_it_backward_threads_included():
    summary = summarise(step_on_a_gpu(), [4])
    assert {row.name: row.device_ms for row in [*summary.ranges, *summary.beside]} == {
        "load": 0.0, "student_fwd": pytest.approx(20.0), "head": 0.0, "teacher": pytest.approx(5.0), "centres": 0.0,
        "backward": pytest.approx(20.0), "other": 0.0, "h2d": pytest.approx(2.0),
    }  # fmt: skip
    assert summary.kernels[0].name == "conv_forward"


def test_the_device_is_idle_while_no_kernel_of_any_stream_runs():
    device = summarise(step_on_a_gpu(), [4]).device_time
    assert device is not None
    assert (device.span_ms, device.busy_ms, device.copy_ms) == pytest.approx((80.0, 20 + 7 + 15 + 2, 7.0))
    assert device.idle_share == pytest.approx(1 - 44 / 80)
    assert covered([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5), (7.0, 8.0)]) == 6.0
    assert covered([]) == 0.0


def test_a_recording_without_the_steps_is_refused():
    with pytest.raises(RuntimeError, match="no range of the steps 8, 9"):
        summarise(step_on_the_host(4, 0.0).values(), [8, 9])


def test_the_text_says_what_bounds_a_gpu_and_what_is_reported_where_there_is_none():
    hostile = Event("void f<a|b>`x`\n" + "y" * 300, 10, 11, 7, device_type=DeviceType.CUDA)
    on_gpu = summary_text(summarise([*step_on_a_gpu(), hostile], [4]), title="Profile", facts=["A fact."], on_cuda=True)
    assert "# Profile\n\nA fact.\n" in on_gpu
    assert "idle for 45.0%** of the 80.0 ms" in on_gpu
    assert "| `student_fwd` | 1.0 | 20.00 | 20.0% | 20.00 |" in on_gpu
    assert "| `conv_forward` | 1 | 20.00 |" in on_gpu
    row = next(line for line in on_gpu.splitlines() if "void f" in line)
    assert row.count("|") == 5
    assert len(row) < 150

    alone = summarise(step_on_the_host(4, 0.0).values(), [4])
    on_cpu = summary_text(alone, title="Profile", facts=[], on_cuda=False)
    assert "Waiting for images took 10.0% of the steps; operators ran for 15.0%" in on_cpu
    assert "Kernels" not in on_cpu
    assert "no kernel was recorded" in summary_text(alone, title="Profile", facts=[], on_cuda=True)
