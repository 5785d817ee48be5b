"""A profile's summary for people: one page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from adadistill.core.profiling.trace_summary import NameTime, RangeTime, TraceSummary

_LONGEST_NAME = 90


def summary_text(summary: TraceSummary, *, title: str, facts: Sequence[str], on_cuda: bool) -> str:
    """The page.

    Args:
        title: its heading.
        facts: sentences about launch, schedule and files, a paragraph each.
        on_cuda: whether kernels should have been recorded.
    """
    steps, times = len(summary.steps), summary.step_ms
    paragraphs = [
        f"# {title}",
        *facts,
        f"A step took {sum(times) / steps:.1f} ms on the host ({min(times):.1f} to {max(times):.1f}). The profiler "
        "slows what is short more than what is long, so shares are worth more than times.",
        "## Time of a step by range",
        _range_table(summary.ranges),
        *_beside(summary.beside),
        _device_text(summary, on_cuda),
        "## Operators by own time",
        _name_table(summary.operators, "Operator", "of the steps"),
    ]
    if summary.kernels:
        paragraphs += ["## Kernels", _name_table(summary.kernels, "Kernel", "of all kernels")]
    return "\n\n".join(paragraphs) + "\n"


def _device_text(summary: TraceSummary, on_cuda: bool) -> str:
    device = summary.device_time
    if device is None:
        why = (
            "**no kernel was recorded**: does the driver let this user profile (docs/profiling.md)?"
            if on_cuda
            else "there is no device beside the CPU."
        )
        return (
            f"Waiting for images took {summary.load_share:.1%} of the steps; operators ran for "
            f"{summary.operator_share:.1%} of them, and the rest is Python. No idle share of a device: {why}"
        )
    return (
        f"**The device was idle for {device.idle_share:.1%}** of the {device.span_ms:.1f} ms between its first kernel "
        f"and its last: no kernel ran. Copies took {device.copy_ms:.1f} ms. Waiting for images took "
        f"{summary.load_share:.1%} of the steps on the host, which is harmless while the device has work queued."
    )


def _beside(rows: Sequence[RangeTime]) -> list[str]:
    return ["On other threads, while the step goes on:", _range_table(rows)] if rows else []


def _range_table(rows: Sequence[RangeTime]) -> str:
    on_device = any(row.device_ms is not None for row in rows)
    head = "| Range | Calls a step | Own ms | Share |" + (" Kernels ms |" if on_device else "")
    rule = "| --- | ---: | ---: | ---: |" + (" ---: |" if on_device else "")
    return "\n".join([head, rule, *(_range_row(row) for row in rows)])


def _range_row(row: RangeTime) -> str:
    kernels = "" if row.device_ms is None else f" {row.device_ms:.2f} |"
    return f"| `{row.name}` | {row.calls:.1f} | {row.host_ms:.2f} | {row.host_share:.1%} |{kernels}"


def _name_table(rows: Sequence[NameTime], what: str, of: str) -> str:
    lines = [f"| {what} | Calls | Own ms | Share {of} |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| `{_shown(row.name)}` | {row.calls} | {row.ms:.2f} | {row.share:.1%} |" for row in rows]
    return "\n".join(lines)


def _shown(name: str) -> str:
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
    return short.replace("|", "/").replace("`", "'").replace("\n", " ")
