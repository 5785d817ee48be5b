"""Where the time of the recorded steps went, out of what torch's profiler recorded: numbers, and a page for people.

Time belongs to the innermost range or operator: its own time is what none inside it took. A kernel belongs to the range
that launched it, however much later it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch.autograd import DeviceType

from adadistill.loaders.named_ranges import RangeName

OTHER = "other"
"""A step's time outside all named ranges: metrics, logging, saving, the loop itself."""
_ROWS = 15
_LONGEST_NAME = 90
_OUR_RANGES = frozenset(get_args(RangeName))
_BACKWARD_NODE = "autograd::engine::evaluate_function"


@dataclass(frozen=True, slots=True)
class RangeTime:
    """Own time of a named range, per step."""

    name: str
    calls: float
    """Times a step that it was entered."""
    host_ms: float
    host_share: float
    """Share of the step's time on the host."""
    device_ms: float | None
    """Time of the kernels launched in it, summed over streams; None where no kernel was recorded."""


@dataclass(frozen=True, slots=True)
class NameTime:
    """All calls of an operator, or of a kernel, in the recorded steps."""

    name: str
    calls: int
    ms: float
    share: float
    """Operators: share of the steps' time. Kernels: share of all kernels' time."""


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """What the device did between the start of the first kernel and the end of the last."""

    span_ms: float
    busy_ms: float
    """Time in which some kernel ran; overlapping ones count once, copies do not count."""
    copy_ms: float
    idle_share: float
    """Share of the time in which no kernel ran."""


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """Where the time of the recorded steps went."""

    steps: tuple[int, ...]
    step_ms: tuple[float, ...]
    """Each step on the host."""
    ranges: tuple[RangeTime, ...]
    """Ranges of the thread that trains, in order of appearance; `other` last."""
    beside: tuple[RangeTime, ...]
    """Ranges of other threads, which work while the step does."""
    operators: tuple[NameTime, ...]
    """Largest first, of the thread that trains and of autograd's."""
    operator_share: float
    """Share of the steps in which the thread that trains was inside some operator; the rest is Python and waiting."""
    kernels: tuple[NameTime, ...]
    """Largest first."""
    device_time: DeviceTime | None
    """None where no kernel was recorded."""
    load_share: float
    """Share of the steps spent waiting for images."""


def summarise(events: Iterable[Any], steps: Sequence[int]) -> TraceSummary:
    """The summary of the given steps.

    Args:
        events: `torch.profiler.profile.events()`.
        steps: of the run; ranges `step N` of others are left out.

    Raises:
        RuntimeError: nothing was recorded of these steps.
    """
    events = list(events)
    wanted = {f"step {step}" for step in steps}
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    whole = sorted((e.time_range.start, e.time_range.end, e.thread) for e in on_host if e.name in wanted)
    if not whole:
        raise RuntimeError(f"the profiler recorded no range of the steps {', '.join(map(str, steps))}")
    trains, total_us = whole[0][2], sum(end - start for start, end, _ in whole)
    inside = [e for e in on_host if any(start <= e.time_range.start < end for start, end, _ in whole)]
    on_device = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    copies = [e for e in on_device if e.name.startswith(("Memcpy", "Memset"))]
    kernels = [e for e in on_device if not e.name.startswith(("Memcpy", "Memset"))]

    calls: Counter[tuple[bool, str]] = Counter()
    own_us: Counter[tuple[bool, str]] = Counter()
    launched_us: Counter[tuple[bool, str]] = Counter()
    for event in inside:
        if _is_range(event):
            place = (event.thread == trains, _label(event.name))
            calls[place] += 1
            own_us[place] += event.time_range.elapsed_us()
            if (outer := _range_around(event.cpu_parent, trains)) is not None:
                own_us[outer] -= event.time_range.elapsed_us()
        if event.kernels and (around := _range_around(event, trains)) is not None:
            launched_us[around] += sum(kernel.duration for kernel in event.kernels)
    rows = [
        (main, RangeTime(
            name, calls[main, name] / len(whole), own_us[main, name] / len(whole) / 1e3, own_us[main, name] / total_us,
            launched_us[main, name] / len(whole) / 1e3 if kernels else None,
        ))
        for main, name in sorted(calls, key=lambda place: place[1] == OTHER)  # stable: in order of appearance
    ]  # fmt: skip
    backward = {event.thread for event in inside if event.name.startswith(_BACKWARD_NODE)}
    operators = [e for e in inside if not e.is_user_annotation and e.thread in {trains, *backward}]
    ranges = tuple(row for main, row in rows if main)
    return TraceSummary(
        steps=tuple(steps),
        step_ms=tuple((end - start) / 1e3 for start, end, _ in whole),
        ranges=ranges,
        beside=tuple(row for main, row in rows if not main),
        operators=_by_name([(e.name, e.self_cpu_time_total) for e in operators], total_us),
        operator_share=sum(e.self_cpu_time_total for e in operators if e.thread == trains) / total_us,
        kernels=_by_name([(e.name, e.time_range.elapsed_us()) for e in kernels]),
        device_time=_device_time(kernels, copies) if kernels else None,
        load_share=sum(row.host_share for row in ranges if row.name == "load"),
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of [start, end) spans."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _is_range(event: Any) -> bool:
    """Profilers annotate on their own account too: ProfilerStep#3, Optimizer.step#SGD.step, DDP's forward."""
    return bool(event.is_user_annotation and (event.name in _OUR_RANGES or event.name.startswith("step ")))


def _label(name: str) -> str:
    return OTHER if name.startswith("step ") else name


def _range_around(event: Any, trains: int) -> tuple[bool, str] | None:
    """The innermost range that an event lies in; autograd's own threads work for `backward`."""
    runs_backward = False
    while event is not None:
        if _is_range(event):
            return event.thread == trains, _label(event.name)
        runs_backward = runs_backward or event.name.startswith(_BACKWARD_NODE)
        event = event.cpu_parent
    return (True, "backward") if runs_backward else None


def _by_name(times_us: Sequence[tuple[str, float]], total_us: float | None = None) -> tuple[NameTime, ...]:
    calls = Counter(name for name, _ in times_us)
    own_us: Counter[str] = Counter()
    for name, time_us in times_us:
        own_us[name] += time_us  # type: ignore[assignment]  # a Counter adds floats as well
    total_us = own_us.total() if total_us is None else total_us
    return tuple(NameTime(name, calls[name], us / 1e3, us / total_us) for name, us in own_us.most_common(_ROWS))


def _device_time(kernels: Sequence[Any], copies: Sequence[Any]) -> DeviceTime:
    spans = [(kernel.time_range.start, kernel.time_range.end) for kernel in kernels]
    busy_us, span_us = covered(spans), max(end for _, end in spans) - min(start for start, _ in spans)
    copy_us = sum(copy.time_range.elapsed_us() for copy in copies)
    return DeviceTime(span_us / 1e3, busy_us / 1e3, copy_us / 1e3, 1.0 - busy_us / span_us)


def summary_text(summary: TraceSummary, *, title: str, facts: Sequence[str], on_cuda: bool) -> str:
    """The page, in Markdown.

    Args:
        title: its heading.
        facts: sentences about launch, schedule and files, a paragraph each.
        on_cuda: whether kernels should have been recorded.
    """
    times = summary.step_ms
    paragraphs = [
        f"# {title}",
        *facts,
        f"A step took {sum(times) / len(times):.1f} ms on the host ({min(times):.1f} to {max(times):.1f}). The "
        "profiler slows what is short more than what is long, so shares are worth more than times.",
        "## Time of a step by range",
        _range_table(summary.ranges),
        *(["On other threads, while the step goes on:", _range_table(summary.beside)] if summary.beside else []),
        _device_text(summary, on_cuda),
        "## Operators by own time",
        _name_table(summary.operators, "Operator", "of the steps"),
        *(["## Kernels", _name_table(summary.kernels, "Kernel", "of all kernels")] if summary.kernels else []),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _device_text(summary: TraceSummary, on_cuda: bool) -> str:
    device = summary.device_time
    if device is not None:
        return (
            f"**The device was idle for {device.idle_share:.1%}** of the {device.span_ms:.1f} ms between its first "
            f"kernel and its last: no kernel ran. Copies took {device.copy_ms:.1f} ms. Waiting for images took "
            f"{summary.load_share:.1%} of the steps on the host, which is harmless while the device has work queued."
        )
    why = "there is no device beside the CPU."
    if on_cuda:
        why = "**no kernel was recorded**: does the driver let this user profile (docs/performance.md)?"
    return (
        f"Waiting for images took {summary.load_share:.1%} of the steps; operators ran for "
        f"{summary.operator_share:.1%} of them, and the rest is Python. No idle share of a device: {why}"
    )


def _range_table(rows: Sequence[RangeTime]) -> str:
    on_device = any(row.device_ms is not None for row in rows)
    lines = ["| Range | Calls a step | Own ms | Share |" + (" Kernels ms |" if on_device else "")]
    lines.append("| --- | ---: | ---: | ---: |" + (" ---: |" if on_device else ""))
    for row in rows:
        kernels = "" if row.device_ms is None else f" {row.device_ms:.2f} |"
        lines.append(f"| `{row.name}` | {row.calls:.1f} | {row.host_ms:.2f} | {row.host_share:.1%} |{kernels}")
    return "\n".join(lines)


def _name_table(rows: Sequence[NameTime], what: str, of: str) -> str:
    lines = [f"| {what} | Calls | Own ms | Share {of} |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        name = " ".join(row.name.replace("|", "/").replace("`", "'").split())
        shown = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
        lines.append(f"| `{shown}` | {row.calls} | {row.ms:.2f} | {row.share:.1%} |")
    return "\n".join(lines)
