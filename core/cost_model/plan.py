"""The plan of a run: the batch and the placement of centres that a step model is asked about, and why these.

The recipe's global batch is kept where the devices can share it, since another batch trains another model; where they
cannot, one is picked. Centres are replicated, and trainable ones sharded where they only fit so. What fits in no way is
refused, with the largest parts and what would help.
"""

from __future__ import annotations

from dataclasses import replace

from adadistill.core.communication import Placement
from adadistill.core.cost_model.measured_rows import MeasuredRows
from adadistill.core.cost_model.step_model import Launch, Plan, PlanError, StepModel
from adadistill.core.recipe import Recipe

_LARGEST_BATCH = 8192
_ENOUGH = 0.95
"""Share of the best rate that a smaller batch must reach to be preferred."""


def make_plan(recipe: Recipe, launch: Launch, rows: MeasuredRows) -> Plan:
    """Predict a recipe's run: at its global batch where the devices can share it, else at one that is picked.

    Raises:
        PlanError: it does not fit whatever the placement, or what is needed is not known.
        ValueError: `data.micro_batch_size` does not divide a device's share of the batch.
    """
    ranks, recipe_batch = launch.ranks, recipe.data.global_batch_size
    if recipe_batch % ranks == 0:
        parts = recipe.data.parts(recipe_batch // ranks)
        plan = _placed(recipe, launch, rows, recipe_batch // ranks)
        if not plan.fits:
            raise PlanError(_refusal(recipe, launch, rows, plan))
        reason = f"batch: {plan.batch_per_device} a device is the recipe's data.global_batch_size {recipe_batch}"
        reasons = [reason if ranks == 1 else f"{reason} over {ranks}"]
        if parts > 1:
            reasons.append(
                f"micro-batches: {parts} of data.micro_batch_size {recipe.data.micro_batch_size}, for a third more of "
                "the student's time"
            )
        better = _fastest(recipe, launch, rows)
        if better is not None and better.images_per_s > plan.images_per_s / _ENOUGH:
            reasons.append(
                f"{better.batch_per_device} a device (data.global_batch_size={better.batch_per_device * ranks}) would "
                f"reach {better.images_per_s:,.0f} images/s; another batch trains otherwise, its rate scales by "
                "optim.lr_batch_size"
            )
        return replace(plan, reasons=[*reasons, *plan.reasons])
    picked = _fastest(recipe, launch, rows)
    if picked is None:
        raise PlanError(_refusal(recipe, launch, rows, _placed(recipe, launch, rows, 1)))
    reason = (
        f"batch: data.global_batch_size {recipe_batch} does not divide by {ranks} devices; planned at "
        f"{picked.batch_per_device * ranks}, the smallest within 5 % of the best rate that fits"
    )
    return replace(picked, reasons=[reason, *picked.reasons])


def _fastest(recipe: Recipe, launch: Launch, rows: MeasuredRows) -> Plan | None:
    """At the smallest power of two within 5 % of the best rate that fits; None where none does."""
    most = min(_LARGEST_BATCH, launch.images // launch.ranks)
    batches = [2**power for power in range(1, most.bit_length())]
    fitting = [plan for plan in (_placed(recipe, launch, rows, batch) for batch in batches) if plan.fits]
    if not fitting:
        return None
    best = max(plan.images_per_s for plan in fitting)
    return next(plan for plan in fitting if plan.images_per_s >= _ENOUGH * best)


def _placed(recipe: Recipe, launch: Launch, rows: MeasuredRows, batch: int) -> Plan:
    """At this batch; centres as the recipe places them, but trainable ones sharded where they only fit so."""
    kind = recipe.centres.kind
    asked: Placement = recipe.centres.placement
    plan = StepModel(recipe, launch, rows, batch, asked).plan()
    if kind == "none":
        return plan
    size = f"{plan.memory_gb['centres']:.2f} GB a device"
    if asked == "sharded":
        return replace(plan, reasons=[f"centres: sharded, as the recipe says, {size}"])
    if plan.fits:
        return replace(plan, reasons=[f"centres: replicated, {size} fit"])
    if kind != "trainable" or launch.ranks == 1:
        return plan
    sharded = StepModel(recipe, launch, rows, batch, "sharded").plan()
    reason = f"centres: sharded over {launch.ranks} devices (centres.placement=sharded), since {size} do not fit"
    return replace(sharded, reasons=[reason])


def _refusal(recipe: Recipe, launch: Launch, rows: MeasuredRows, plan: Plan) -> str:
    """Why this does not fit, and what would."""
    largest = sorted(plan.memory_gb.items(), key=lambda part: -part[1])[:3]
    listed = ", ".join(f"{name} {size:.1f}" for name, size in largest)
    fitting = _fastest(recipe, launch, rows)
    ways = []
    if fitting is not None:
        ways.append(
            f"{fitting.batch_per_device} images a device (data.global_batch_size="
            f"{fitting.batch_per_device * launch.ranks})"
        )
    micro = _largest_micro_batch(recipe, launch, rows, plan.batch_per_device)
    if micro is not None:
        ways.append(f"data.micro_batch_size={micro}, the same batch in parts, for a third more of the student's time")
    if recipe.centres.kind == "adaptive" and recipe.centres.half is None:
        ways.append("centres.half=bfloat16, which takes two thirds off the centres")
    if fitting is not None:
        ways.append("more devices")
    elif recipe.centres.kind == "trainable":
        ways.append("more devices, over which centres are spread")
    else:
        ways.append("devices with more memory, as no batch fits")
    return (
        f"{plan.batch_per_device} images a device need {plan.needed_memory_gb:.1f} GB, {launch.device.name} has "
        f"{plan.usable_memory_gb:.1f} of {launch.memory_gb:.0f} GB to use. Largest parts, in GB: {listed}. "
        f"What may help: {'; '.join(ways)}"
    )


def _largest_micro_batch(recipe: Recipe, launch: Launch, rows: MeasuredRows, batch: int) -> int | None:
    """The largest equal part of a device's batch with which it fits; None where none does."""
    for size in range(batch // 2, 1, -1):
        if batch % size == 0:
            data = replace(recipe.data, micro_batch_size=size)
            if _placed(replace(recipe, data=data), launch, rows, batch).fits:
                return size
    return None
