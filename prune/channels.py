"""Structured pruning of channels: the stage itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from distill.errors import UserError
from distill.prune.depth.shallow import narrow_or_shallow
from distill.prune.goals import Bounds
from distill.prune.graph.groups import prepare
from distill.prune.graph.verify import Checks, output_shapes
from distill.prune.modules import Example, Loss, at_batch, batch_of, copied, inside, never_recomputed, seeded
from distill.prune.record import Decision, PruneRecord, by_reason
from distill.prune.scores.evidence import Evidence
from distill.prune.scores.importance import IMPORTANCES, WITHOUT_BATCHES
from distill.prune.settings import PruneSettings
from distill.prune.sparse.zeros import keeps_zeros
from distill.prune.steps.step import Job, Narrowed
from distill.prune.widths.latency import Device, seconds_of_layers
from distill.prune.widths.sizes import Counts, count, layer_macs, widths_of_layers
from distill.types import Progress

_NAMED = 3  # of the layers that stay for a reason, and of the reasons

Recover = Callable[[nn.Module, int], nn.Module]


def prune_channels(
    model: nn.Module,
    settings: PruneSettings,
    *,
    example: Example,
    batches: Iterable[Any] | None,
    loss: Loss | None,
    logits: Callable[[Any], Tensor],
    ignore: Sequence[str] = (),
    device: Device | None = None,
    recover: Recover | None = None,
    decided: Sequence[Decision] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[nn.Module, PruneRecord]:
    """Return a narrower copy of a model, and a record of what went.

    Channels that make up an output are never cut, nor is the model's input. Every cut is verified: the copy runs at
    batch 1 and 2, keeps the outputs' shapes, and computes what the model does when nothing reads the removed channels;
    groups of layers that fail this stay as they are, with a warning. With ``gauss_newton``, biases then make up for the
    means of what went, those of ignored or frozen layers too, where the loss is lower for it. Same arguments and seed,
    same result, but for what a device measures.

    Where the goal cannot be reached, the nearest to it comes back; the record's ``shortfall`` says what can be.

    Args:
        model: any module that autograd can trace; it is not changed.
        settings: how much goes and how it is chosen.
        example: (args, kwargs) of one forward call; tensors hold the batch in their first axis.
        batches: data for an importance that needs them; up to ``settings.batches`` are read for each step.
        loss: (model, batch) -> scalar, with the model in eval mode; ``gauss_newton`` reads what the model says in it.
        logits: takes the logits from the model's output.
        ignore: names of modules whose layers keep their output width.
        device: measures; needed for ``speedup``, and for other goals it moves widths to the ends of its stairs.
        recover: (narrower model, number of the step) -> the same, trained a little; called between steps.
        decided: the ``decisions`` of an earlier record with equal arguments, which are done again; no device is asked.
        seed: decides ``importance="random"``, the signs of ``gauss_newton``, and seeds torch while ``loss`` runs.
        progress: called with (activity, completed, total).

    Raises:
        UserError: the model cannot be copied, run or traced; a name in ``ignore`` is unknown; data or a device are
            missing.
    """
    _require_prunable(model, settings, example, timed=device is not None or decided is not None)
    original = _marks(model)
    importance, warnings = _resolve_importance(settings, batches, loss)
    device = None if decided is not None else device
    with torch.inference_mode(False), torch.enable_grad(), never_recomputed(), seeded(seed):
        plain = copied(model, to_be="pruned")
        modes, work = _modes(plain), prepare(plain)
        checks = Checks(at_batch(example, 2), logits, output_shapes(work, example, logits))
        sizes, macs = (widths_of_layers(work), count(work, *example)), layer_macs(work, *example)[1]
        job = Job(settings, importance, checks, inside(work, ignore), *sizes, device, seed, progress, decided)
        before_s = seconds_of_layers(work, checks.example, device)
        state = _narrowed(work, job, Evidence(batches, loss, logits, settings, progress, seed), recover)
        after, after_s = count(state.model, *example), seconds_of_layers(state.model, checks.example, device)
        _restore(state.model, *modes)
    _require_unchanged(model, original)
    record = _recorded(state, job, after, {name: (before_s[name], after_s.get(name, 0.0)) for name in before_s})
    return state.model, _judged(replace(record, left=_left(state, macs)), state, settings, warnings)


def _require_unchanged(model: nn.Module, marks: Sequence[object]) -> None:
    if _marks(model) != marks:
        raise RuntimeError("the model that came in was changed by its pruning")


def _require_prunable(model: nn.Module, settings: PruneSettings, example: Example, *, timed: bool) -> None:
    if keeps_zeros(model):
        raise UserError("a model that keeps its zeros cannot lose channels; prune first, then make it sparse")
    if settings.goal.needs_timing and not settings.is_idle and not timed:
        raise UserError("prune.speedup needs a device that measures; give one, or ask for macs, parameters or ratio")
    if not batch_of(example):
        raise UserError("example: no tensor with a batch axis among the model's inputs")


def _narrowed(model: nn.Module, job: Job, data: Evidence, recover: Recover | None) -> Narrowed:
    """Go all steps."""
    state, steps = Narrowed(model), 0 if job.settings.is_idle else job.settings.steps
    for step in range(steps):
        state = narrow_or_shallow(state, job, data, share=(step + 1) / steps)
        if recover is not None and step + 1 < steps:
            state = replace(state, model=prepare(recover(state.model, step)))
    return state


def _recorded(state: Narrowed, job: Job, after: Counts, layer_seconds: dict[str, tuple[float, float]]) -> PruneRecord:
    now = widths_of_layers(state.model)
    return PruneRecord(
        macs_before=job.before.macs,
        macs_after=after.macs,
        parameters_before=job.before.parameters,
        parameters_after=after.parameters,
        widths={name: (width, now.get(name, 0)) for name, width in job.initial.items()},
        importance=job.importance,
        asked=(job.settings.goal.name, job.settings.amount),
        ratio_achieved=state.ratio,
        latency_before_s=state.before_s,
        latency_after_s=state.after_s,
        layer_seconds=layer_seconds,
        groups=tuple(state.groups.values()),
        blocks=tuple(block.name for block in state.blocks),
        decisions=state.decisions,
    )


def _resolve_importance(settings: PruneSettings, batches: object, loss: object) -> tuple[str, tuple[str, ...]]:
    """Return the importance to use, and a warning where it is not the one that was named."""
    name, without = settings.importance, settings.without_batches
    if not IMPORTANCES[name].needs_batches or (batches is not None and loss is not None) or settings.is_idle:
        return name, ()
    missing = "batches" if batches is None else "a loss"
    if without == "refuse":
        raise UserError(
            f"prune.importance={name!r} needs {missing}: give it, choose prune.importance={WITHOUT_BATCHES!r}, "
            f"or allow that with prune.without_batches={WITHOUT_BATCHES!r}"
        )
    return without, (f"importance {name!r} needs {missing}; {without!r} was used, as prune.without_batches says",)


def _left(state: Narrowed, macs: Mapping[str, int]) -> dict[str, str]:
    """Say of layers why they had to stay as they are, the most costly first."""
    reasons = {
        layer or "the model's own attention": why
        for name, why in state.unprunable.items()
        for layer in state.makers.get(name, (name,))
    }

    def cost(layer: str) -> int:
        return macs.get(layer, macs.get(layer.rpartition(".")[0], 0))  # or of the module that holds a parameter

    return {layer: reasons[layer] for layer in sorted(reasons, key=cost, reverse=True)}


def _judged(record: PruneRecord, state: Narrowed, settings: PruneSettings, warnings: tuple[str, ...]) -> PruneRecord:
    """Add the warnings, and what was missed of the goal: as a shortfall where no more can go."""
    warnings = (*warnings, *(f"not pruned: {layers}" for layers in by_reason(record.left)))
    (name, amount), achieved, shortfall = record.asked, record.achieved, None
    bounds = Bounds(settings.round_to, settings.max_ratio, state.exhausted)
    if settings.is_idle or achieved is None:
        return replace(record, warnings=warnings)
    reasons = by_reason(record.left, most=_NAMED)[:_NAMED]
    if record.parameters_after == record.parameters_before:
        narrow = [group for group in state.widths if group not in state.unprunable]
        too_narrow = (
            f"no block of round_to={settings.round_to} channels may go at {name}={amount:g} and "
            f"max_ratio={settings.max_ratio:g}; lower round_to or ask for more"
        )
        reasons += by_reason(dict.fromkeys(narrow, too_narrow), most=_NAMED)
        why = "; ".join(reasons) or "the model has no channels that could go"
        shortfall = f"{name}={amount:g}: nothing was removed: {why}"
        warnings = (
            *warnings,
            "nothing was removed" + (f": {reasons[-1]}" if narrow else f": {why}" if not reasons else ""),
        )
    elif miss := record.goal.miss(amount, achieved, bounds):
        if miss.is_final:
            shortfall = "; left whole: ".join([miss.text, *(["; ".join(reasons)] if reasons else [])])
        warnings = (*warnings, miss.text)
    return replace(record, shortfall=shortfall, warnings=warnings)


def _marks(model: nn.Module) -> list[tuple[str, tuple[int, ...], int, int]]:
    """Return what changes when a parameter is written, moved or replaced.

    Raises:
        UserError: a parameter has no values yet, or no version.
    """
    for name, p in model.named_parameters():
        if isinstance(p, UninitializedParameter):
            raise UserError(f"{name} is uninitialized: give lazy layers their sizes, or call the model once")
        if p.is_inference():
            raise UserError(
                f"{name} was made under torch.inference_mode, so it cannot be pruned; build the model outside"
            )
    return [(name, tuple(p.shape), p.data_ptr(), p._version) for name, p in model.named_parameters()]


def _modes(model: nn.Module) -> tuple[dict[str, bool], set[str]]:
    """Return which modules of a model are in training mode, and the names of its frozen parameters."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: module.training for name, module in model.named_modules()}, frozen


def _restore(pruned: nn.Module, modes: Mapping[str, bool], frozen: Collection[str]) -> None:
    """Give a working copy the modes and the frozen parameters of the model that it was made from."""
    for name, module in pruned.named_modules():
        module.training = modes[name]
    for name, parameter in pruned.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point() and name not in frozen)
