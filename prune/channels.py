"""Structured pruning of channels: the stage itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from distill.errors import UserError
from distill.prune.counts import count
from distill.prune.examples import Example, at_batch, batch_of, reason
from distill.prune.graph import ChannelGroup, Graph, prepare
from distill.prune.importance import first_order, unit_scores
from distill.prune.selection import Candidate, choose
from distill.prune.settings import PruneSettings
from distill.prune.verify import Shapes, masked_copy, output_shapes, problem_with

Progress = Callable[[str, int, int], None]
Loss = Callable[[nn.Module, Any], Tensor]

# Farther than this from the ratio that was asked for, the user is told.
_NOTABLE = 0.05


@dataclass(frozen=True)
class PruneRecord:
    """What pruning did. ``widths`` maps every Conv and Linear layer to its output channels before and after.

    ``ratio_achieved`` is the share of prunable channels that went; ``importance`` the kind that was used.
    """

    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    widths: dict[str, tuple[int, int]]
    importance: str
    ratio_asked: float = 0.0
    ratio_achieved: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    """What stays the same over all steps."""

    settings: PruneSettings
    kind: str
    example: Example
    logits: Callable[[Any], Tensor]
    shapes: Shapes
    ignore: tuple[str, ...]
    initial: dict[str, int]
    seed: int
    progress: Progress | None


def prune_channels(
    model: nn.Module,
    settings: PruneSettings,
    *,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    batches: Iterable[Any] | None,
    loss: Loss | None,
    logits: Callable[[Any], Tensor],
    ignore: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[nn.Module, PruneRecord]:
    """Return a narrower copy of a model, and a record of what went.

    Channels that make up an output are never cut, nor is the model's input. Every cut is verified: the copy runs at
    batch 1 and 2, keeps the outputs' shapes, and computes what the model does when nothing reads the removed channels;
    groups of layers that fail this stay as they are, with a warning. Same arguments and seed, same result.

    Args:
        model: any module that autograd can trace; it is not changed.
        settings: how much goes and how it is chosen.
        example: (args, kwargs) of one forward call; tensors hold the batch in their first axis.
        batches: data for ``importance="taylor"``; up to ``settings.batches`` are read for each step.
        loss: (model, batch) -> scalar, with the model in eval mode.
        logits: takes the logits from the model's output.
        ignore: names of modules whose layers keep their output width.
        seed: decides ``importance="random"``, and seeds torch while ``loss`` runs.
        progress: called with (what, done, total).

    Raises:
        UserError: the model cannot be copied, run or traced; a name in ``ignore`` is unknown; data are missing.
    """
    _check_kind(model)
    modes = {name: module.training for name, module in model.named_modules()}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    kind, warnings = _resolve_kind(settings, batches, loss)
    with torch.inference_mode(False), torch.enable_grad(), _seeded(seed):
        work = prepare(_copied(model))
        ignored = _ignored_layers(work, ignore)
        if not batch_of(example):
            raise UserError("example: no tensor with a batch axis among the model's inputs")
        shapes = output_shapes(work, example, logits)
        job = _Job(settings, kind, at_batch(example, 2), logits, shapes, ignored, _widths(work), seed, progress)
        before = count(work, *example)
        data = _Data(batches, loss, settings, progress)
        channels = (0, 0)
        kept: dict[str, str] = {}
        for step in range(settings.steps if settings.ratio else 0):
            work, channels = _step(work, job, data, settings.ratio * (step + 1) / settings.steps, kept)
        warnings += _warn_kept(kept)
        after = count(work, *example)
        _restore(work, modes, frozen)
    achieved = 1 - channels[1] / channels[0] if channels[0] else 0.0
    now = _widths(work)
    record = PruneRecord(
        macs_before=before.macs,
        macs_after=after.macs,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        widths={name: (width, now[name]) for name, width in job.initial.items()},
        importance=kind,
        ratio_asked=settings.ratio,
        ratio_achieved=achieved,
        warnings=(*warnings, *_shortfall(settings, achieved)),
    )
    return work, record


def _step(
    model: nn.Module, job: _Job, data: _Data, ratio: float, kept: dict[str, str]
) -> tuple[nn.Module, tuple[int, int]]:
    """Cut a model to ``ratio`` of its initial widths; return it and its prunable channels, initially and now.

    ``kept`` gains the groups that must stay as they are, and why.
    """
    graph = Graph(model, job.example, job.logits)
    groups = [group for group in graph.groups if not group.is_output and not _is_ignored(group, job.ignore)]
    kept |= {group.name: group.kept for group in groups if group.kept}
    evidence = data.first_order(model, groups) if job.kind == "taylor" else {}
    scores: dict[str, list[float]] = {}
    for group in groups:
        found = unit_scores(group, job.kind, job.seed, evidence)
        if found is None:
            kept.setdefault(group.name, f"importance {job.kind!r} says nothing about it")
        else:
            scores[group.name] = found
    while True:
        candidates = [_candidate(g, scores[g.name], job) for g in groups if g.name not in kept]
        units = choose(candidates, ratio=ratio, round_to=job.settings.round_to, max_ratio=job.settings.max_ratio)
        chosen = {g.name: [i for unit in units[g.name] for i in g.units[unit]] for g in groups if g.name in units}
        pruned, problem = _attempt(model, chosen, job)
        if problem is None:
            break
        culprits = _culprits(model, chosen, job)
        if not culprits:
            raise UserError(f"the pruned model is broken: {problem}; name layers to leave alone in ignore")
        kept |= culprits
    widths = _widths(pruned)
    initial = sum(job.initial[group.name] for group in groups)
    return pruned, (initial, sum(widths[group.name] for group in groups))


def _culprits(model: nn.Module, chosen: Mapping[str, Sequence[int]], job: _Job) -> dict[str, str]:
    """Cut each group alone; return those that break the model, and how."""
    found = {}
    for done, (name, indices) in enumerate(chosen.items(), start=1):
        problem = _attempt(model, {name: indices}, job)[1]
        if problem:
            found[name] = problem
        if job.progress is not None:
            job.progress("checking layers one by one", done, len(chosen))
    return found


def _attempt(model: nn.Module, chosen: Mapping[str, Sequence[int]], job: _Job) -> tuple[nn.Module, str | None]:
    """Cut a copy; return it and what is wrong with it."""
    pruned = copy.deepcopy(model)
    if not chosen:
        return pruned, None
    try:
        consumers = Graph(pruned, job.example, job.logits).cut(chosen)
    except Exception as error:  # torch-pruning asserts, indexes and multiplies its way out
        return pruned, f"{error}" if isinstance(error, UserError) else reason(error)
    prepare(pruned)
    return pruned, problem_with(pruned, masked_copy(model, consumers), job.example, job.logits, job.shapes)


def _candidate(group: ChannelGroup, scores: Sequence[float], job: _Job) -> Candidate:
    unit = len(group.units[0])
    return Candidate(
        name=group.name,
        scope=group.pattern if job.settings.global_ else group.name,
        scores=tuple(scores),
        unit=unit,
        initial=job.initial[group.name] // unit,
    )


class _Data:
    """The batches, read anew for every step, and the loss over them."""

    def __init__(
        self, batches: Iterable[Any] | None, loss: Loss | None, settings: PruneSettings, progress: Progress | None
    ) -> None:
        self._limit, self._loss, self._progress = settings.batches, loss, progress
        # An iterator gives its batches once; keep them if they are needed again.
        again = isinstance(batches, Iterator) and settings.steps > 1
        self._batches = list(islice(batches, settings.batches)) if batches is not None and again else batches

    def first_order(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        """Return each group's squared first-order changes, added up over the batches; batch norms stay in eval mode."""
        if self._loss is None or self._batches is None:
            raise UserError("importance 'taylor' needs batches and a loss")
        found: dict[str, Tensor] = {}
        done = 0
        for batch in islice(self._batches, self._limit):
            model.zero_grad(set_to_none=True)
            value = self._loss(model, batch)
            if not isinstance(value, Tensor) or value.numel() != 1 or value.grad_fn is None:
                raise UserError("loss(model, batch) must return a scalar tensor that depends on the model's parameters")
            if not torch.isfinite(value).all():
                raise UserError(f"the loss of batch {done} is {value.item()}; the model or the batch is broken")
            value.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for group in groups:
                    change = first_order(group)
                    if change is not None:
                        found[group.name] = found.get(group.name, torch.zeros_like(change)) + change.square()
            done += 1
            if self._progress is not None:
                self._progress("channel importance", done, self._limit)
        if not done:
            raise UserError("importance 'taylor' got no batch; give it at least one, or choose prune.importance")
        model.zero_grad(set_to_none=True)
        return found


def _resolve_kind(settings: PruneSettings, batches: object, loss: object) -> tuple[str, list[str]]:
    """Return the importance to use, and a warning where it is not the one that was named."""
    if settings.importance != "taylor" or (batches is not None and loss is not None) or settings.ratio == 0:
        return settings.importance, []
    missing = "batches" if batches is None else "a loss"
    if settings.without_batches == "refuse":
        raise UserError(
            f"prune.importance='taylor' needs {missing}: give it, choose prune.importance='group_norm', "
            "or allow that with prune.without_batches='group_norm'"
        )
    return "group_norm", [f"importance 'taylor' needs {missing}; 'group_norm' was used, as prune.without_batches says"]


def _shortfall(settings: PruneSettings, achieved: float) -> list[str]:
    if settings.ratio and not achieved:
        return [
            "nothing was removed: no layer that can be cut is wide enough to lose a block of "
            f"round_to={settings.round_to} channels at ratio={settings.ratio:g} and "
            f"max_ratio={settings.max_ratio:g}; lower round_to or raise ratio"
        ]
    if abs(achieved - settings.ratio) > _NOTABLE:
        return [
            f"{achieved:.0%} of the prunable channels went, {settings.ratio:.0%} were asked for: widths end on "
            f"multiples of round_to={settings.round_to}, and some layers were not cut; a lower round_to comes closer"
        ]
    return []


def _warn_kept(kept: Mapping[str, str]) -> list[str]:
    """One warning a reason, with the layers that it concerns."""
    reasons: dict[str, list[str]] = {}
    for name, why in kept.items():
        reasons.setdefault(why, []).append(name)
    return [f"not pruned: {', '.join(names)}: {why}" for why, names in reasons.items()]


def _check_kind(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("a TorchScript module cannot be pruned; give the nn.Module that it was made from")
    if hasattr(model, "_orig_mod"):
        raise UserError("a compiled module cannot be pruned; give the module that was passed to torch.compile")


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UserError(f"the model cannot be copied, so not pruned: {reason(error)}") from error


def _ignored_layers(model: nn.Module, ignore: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all modules in the ignored ones."""
    names = [name for name, _ in model.named_modules()]
    for name in ignore:
        if name not in names or not name:
            raise UserError(f"ignore: the model has no module {name!r}; its modules are {', '.join(names[1:9])}, …")
    return tuple(n for n in names if any(n == name or n.startswith(name + ".") for name in ignore))


def _is_ignored(group: ChannelGroup, ignore: Sequence[str]) -> bool:
    return any(member.side == "out" and member.name in ignore for member in group.members)


def _widths(model: nn.Module) -> dict[str, int]:
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            widths[name] = module.out_channels
        elif isinstance(module, nn.Linear):
            widths[name] = module.out_features
    return widths


def _restore(model: nn.Module, modes: Mapping[str, bool], frozen: Iterable[str]) -> None:
    """Give a working copy the modes and the frozen parameters of the model that it was made from."""
    for name, module in model.named_modules():
        module.training = modes[name]
    still = set(frozen)
    for name, parameter in model.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point() and name not in still)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch inside, and leave its generators outside as they were."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(gpus)):
        torch.manual_seed(seed)
        yield
