"""Numbers out of a timeline that torch's profiler exported: where the time of the recorded steps went.

A timeline is a list of events of the Chrome trace format. Read are `user_annotation` (our named ranges), `cpu_op`
(torch's operators), `cuda_runtime` and `cuda_driver` (launches), and `kernel`, `gpu_memcpy` and `gpu_memset` (what the
device did). Time belongs to the innermost range or operator: its own time is what none inside it took. A kernel belongs
to the range that launched it, however much later it runs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, get_args

from adadistill.loaders.records.named_ranges import RangeName

OTHER = "other"
"""A step's time outside all named ranges: metrics, logging, saving, the loop itself."""

_ROWS = 15
_OUR_RANGES = frozenset(get_args(RangeName))
_BACKWARD_NODE = "autograd::engine::evaluate_function"


class Span(NamedTuple):
    """A piece of a timeline in microseconds."""

    start: float
    end: float
    name: str


@dataclass(frozen=True, slots=True)
class RangeTime:
    """Own time of a named range, per step."""

    name: str
    calls: float
    """Times a step that it was entered."""
    host_ms: float
    """Own time on the host."""
    host_share: float
    """Of the step's time on the host."""
    device_ms: float | None
    """Time of the kernels launched in it, summed over streams; None where the device has no timeline of its own."""


@dataclass(frozen=True, slots=True)
class NameTime:
    """All calls of an operator, or of a kernel, in the recorded steps."""

    name: str
    calls: int
    ms: float
    """Own time of all calls."""
    share: float
    """Operators: of the steps' time. Kernels: of all kernels' time."""


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """What the device did between the start of the first kernel and the end of the last."""

    span_ms: float
    busy_ms: float
    """Time in which some kernel ran; overlapping ones count once, copies do not count."""
    copy_ms: float
    """Time of copies and fills, overlapping kernels or not."""

    @property
    def idle_share(self) -> float:
        """Share of the time in which no kernel ran."""
        return 1.0 - self.busy_ms / self.span_ms


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """Where the time of the recorded steps went."""

    steps: tuple[int, ...]
    step_ms: tuple[float, ...]
    """Each step on the host."""
    ranges: tuple[RangeTime, ...]
    """Of the thread that trains, in order of appearance; `other` last."""
    beside: tuple[RangeTime, ...]
    """Of other threads, which work while the step does."""
    operators: tuple[NameTime, ...]
    """Largest first, of the thread that trains and of autograd's."""
    operator_share: float
    """Share of the steps in which the thread that trains was inside some operator; the rest is Python and waiting."""
    kernels: tuple[NameTime, ...]
    """Largest first."""
    device_time: DeviceTime | None
    """None where no kernel was recorded."""

    @property
    def load_share(self) -> float:
        """Share of the steps spent waiting for images."""
        return sum(row.host_share for row in self.ranges if row.name == "load")


def summarise(events: Iterable[Mapping[str, Any]], steps: Sequence[int]) -> TraceSummary:
    """The summary of the given steps of a timeline.

    Args:
        events: `traceEvents` of an exported timeline.
        steps: of the run; ranges `step N` of others are left out.

    Raises:
        RuntimeError: the timeline holds none of these steps.
    """
    timeline = _Timeline.of(events)
    wanted = {f"step {step}" for step in steps}
    found = sorted((span, thread) for thread, spans in timeline.ranges.items() for span in spans if span.name in wanted)
    if not found:
        raise RuntimeError(f"the timeline holds no range of the steps {', '.join(map(str, steps))}")
    whole, thread = [span for span, _ in found], found[0][1]
    total_us = _length(whole)

    ranges = {each: _begun_in(whole, spans) for each, spans in timeline.ranges.items()}
    own_ranges = {each: own_segments(spans) for each, spans in ranges.items()}
    threads = {thread, *timeline.backward_threads()}
    operators = {each: _begun_in(whole, timeline.operators.get(each, [])) for each in threads}
    own_operators = {each: own_segments(spans) for each, spans in operators.items()}

    launched = [(timeline.launches[kernel.correlation], kernel) for kernel in timeline.known_kernels()]
    kernels = [(launch, kernel.span) for launch, kernel in launched if _begun_in(whole, [launch.at])]
    device_us = _device_time_by_range(kernels, own_ranges, thread, threads) if timeline.kernels else None
    others = [each for each in ranges if each != thread]
    beside, own_beside = ([span for each in others for span in of[each]] for of in (ranges, own_ranges))
    kernel_spans = [span for _, span in kernels]
    return TraceSummary(
        steps=tuple(steps),
        step_ms=tuple((span.end - span.start) / 1e3 for span in whole),
        ranges=tuple(_range_rows(ranges[thread], own_ranges[thread], len(whole), total_us, device_us)),
        beside=tuple(_range_rows(beside, own_beside, len(whole), total_us, device_us)),
        operators=_name_rows(operators.values(), own_operators.values(), total_us),
        operator_share=_length(own_operators[thread]) / total_us,
        kernels=_name_rows([kernel_spans], [kernel_spans], _length(kernel_spans)),
        device_time=_device_time(timeline),
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of [start, end) spans."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def own_segments(spans: Iterable[Span]) -> list[Span]:
    """The timeline of nested spans cut into pieces in order, each named for the innermost span there."""
    segments: list[Span] = []
    open_spans: list[Span] = []
    now = -float("inf")
    for span in [*sorted(spans, key=lambda span: (span.start, -span.end)), Span(float("inf"), float("inf"), "")]:
        while open_spans and open_spans[-1].end <= span.start:
            ended = open_spans.pop()
            if ended.end > now:
                segments.append(Span(now, ended.end, ended.name))
                now = ended.end
        if open_spans and span.start > now:
            segments.append(Span(now, span.start, open_spans[-1].name))
        now = max(now, span.start)
        open_spans.append(span)
    return segments


Thread: TypeAlias = tuple[object, object]
"""Process and thread number of an event."""


class _Launch(NamedTuple):
    thread: Thread
    at: Span


class _Kernel(NamedTuple):
    span: Span
    correlation: int | None
    """Number that its launch has too."""


@dataclass(frozen=True, slots=True)
class _Timeline:
    """Events by kind."""

    ranges: dict[Thread, list[Span]]
    operators: dict[Thread, list[Span]]
    launches: dict[int | None, _Launch]
    """By correlation number."""
    kernels: list[_Kernel]
    copies: list[Span]

    @staticmethod
    def of(events: Iterable[Mapping[str, Any]]) -> _Timeline:
        timeline = _Timeline(defaultdict(list), defaultdict(list), {}, [], [])
        for event in events:
            if event.get("ph") == "X" and "dur" in event:
                timeline._add(event)
        return timeline

    def backward_threads(self) -> set[Thread]:
        """Threads on which autograd ran backward."""
        return {
            thread
            for thread, operators in self.operators.items()
            if any(operator.name.startswith(_BACKWARD_NODE) for operator in operators)
        }

    def known_kernels(self) -> list[_Kernel]:
        """Kernels whose launch was recorded; those of steps before were launched before recording began."""
        return [kernel for kernel in self.kernels if kernel.correlation in self.launches]

    def _add(self, event: Mapping[str, Any]) -> None:
        kind, start = event.get("cat"), float(event["ts"])
        span = Span(start, start + float(event["dur"]), str(event["name"]))
        thread = (event.get("pid"), event.get("tid"))
        correlation = event.get("args", {}).get("correlation")
        if kind == "user_annotation":
            # Profilers annotate on their own account too: ProfilerStep#3, Optimizer.step#SGD.step, DDP's forward.
            if span.name in _OUR_RANGES or span.name.startswith("step "):
                self.ranges[thread].append(span)
        elif kind == "cpu_op":
            self.operators[thread].append(span)
        elif kind in ("cuda_runtime", "cuda_driver"):
            if correlation is not None:
                self.launches[correlation] = _Launch(thread, span)
        elif kind == "kernel":
            self.kernels.append(_Kernel(span, correlation))
        elif kind in ("gpu_memcpy", "gpu_memset"):
            self.copies.append(span)


def _begun_in(windows: Sequence[Span], spans: Iterable[Span]) -> list[Span]:
    """Spans that begin inside one of the windows, which are in order and apart."""
    starts = [window.start for window in windows]
    chosen = []
    for span in spans:
        at = bisect_right(starts, span.start) - 1
        if at >= 0 and span.start < windows[at].end:
            chosen.append(span)
    return chosen


def _label(name: str) -> str:
    return OTHER if name.startswith("step ") else name


def _length(spans: Iterable[Span]) -> float:
    return sum(span.end - span.start for span in spans)


def _range_rows(
    spans: Sequence[Span], own: Sequence[Span], steps: int, total_us: float, launched_us: Mapping[str, float] | None
) -> list[RangeTime]:
    calls: dict[str, int] = defaultdict(int)
    for span in sorted(spans):
        calls[_label(span.name)] += 1
    own_us: dict[str, float] = defaultdict(float)
    for span in own:
        own_us[_label(span.name)] += span.end - span.start
    return [
        RangeTime(
            name=name,
            calls=calls[name] / steps,
            host_ms=own_us[name] / steps / 1e3,
            host_share=own_us[name] / total_us,
            device_ms=None if launched_us is None else launched_us.get(name, 0.0) / steps / 1e3,
        )
        for name in sorted(calls, key=lambda name: name == OTHER)  # stable: order of appearance, the rest last
    ]


def _device_time_by_range(
    kernels: Iterable[tuple[_Launch, Span]],
    own_ranges: Mapping[Thread, Sequence[Span]],
    trains: Thread,
    its_threads: set[Thread],
) -> dict[str, float]:
    """Microseconds of kernels by the range that launched them; autograd's threads work for the thread that trains."""
    time_us: dict[str, float] = defaultdict(float)
    starts = {thread: [span.start for span in segments] for thread, segments in own_ranges.items()}
    for launch, kernel in kernels:
        thread = trains if launch.thread in its_threads else launch.thread
        at = bisect_right(starts.get(thread, []), launch.at.start) - 1
        if at >= 0 and launch.at.start < own_ranges[thread][at].end:
            time_us[_label(own_ranges[thread][at].name)] += kernel.end - kernel.start
    return time_us


def _name_rows(spans: Iterable[Sequence[Span]], own: Iterable[Sequence[Span]], total_us: float) -> tuple[NameTime, ...]:
    calls: dict[str, int] = defaultdict(int)
    for span in (span for each in spans for span in each):
        calls[span.name] += 1
    own_us: dict[str, float] = defaultdict(float)
    for span in (span for each in own for span in each):
        own_us[span.name] += span.end - span.start
    largest = sorted(own_us, key=lambda name: (-own_us[name], name))[:_ROWS]
    return tuple(NameTime(name, calls[name], own_us[name] / 1e3, own_us[name] / total_us) for name in largest)


def _device_time(timeline: _Timeline) -> DeviceTime | None:
    if not timeline.kernels:
        return None
    kernels = [kernel.span for kernel in timeline.kernels]
    return DeviceTime(
        span_ms=(max(span.end for span in kernels) - min(span.start for span in kernels)) / 1e3,
        busy_ms=covered((span.start, span.end) for span in kernels) / 1e3,
        copy_ms=_length(timeline.copies) / 1e3,
    )
