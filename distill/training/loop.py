"""The only training loop: teachers, controls, distillation and recovery after pruning all go through ``fit``."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings_dataclass
from torch import Tensor, nn

from distill import files
from distill.errors import DistillError, UserError
from distill.references.loading import call_user, cause
from distill.state import hash_tensors, load_state
from distill.tasks.base import Batch, Data, Task
from distill.training.views import batches, shuffled
from distill.types import Progress

Teach = Callable[[Tensor, Batch, int], Tensor]
"""(sample numbers [B], batch, view) -> the teacher's logits [B, C]."""
StepLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student's logits, teacher's logits, hard loss) -> loss."""


@settings_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainSettings:
    """How a model is trained."""

    epochs: Annotated[int, Ge(1)] = Field(default=20, description="passes over the training split")
    batch_size: Annotated[int, Ge(1)] = Field(default=128, description="samples a step")
    learning_rate: Annotated[float, Gt(0), Le(100)] = Field(
        default=0.1, description="peak of the schedule: linear warm-up, then half a cosine to zero"
    )
    weight_decay: Annotated[float, Ge(0), Lt(1)] = Field(
        default=5e-4, description="on weights of two and more dimensions; biases and norms have none"
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd has Nesterov momentum 0.9")
    warmup: Annotated[float, Ge(0), Lt(1)] = Field(default=0.1, description="share of the steps that warms up")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto is bf16 autocast on a GPU that has it, else fp32"
    )
    select: Literal["last", "best"] = Field(
        default="last", description="which epoch's weights are kept; best is by the validation metric"
    )


SAVE_EVERY_S = 20.0
"""Seconds between two checkpoints, at least: what a kill can cost."""


@dataclass(frozen=True)
class TrainRecord:
    """What training did: the loss and the deciding validation metric of each epoch, and the epoch that was kept."""

    epochs: int
    steps: int
    kept_epoch: int
    precision: str
    device: str
    curves: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class _State:
    """What an interrupted training goes on from."""

    epoch: int = 0
    curves: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "validation": []})
    best: dict[str, Tensor] | None = None
    best_epoch: int = -1


def fit(
    model: nn.Module,
    task: Task,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device,
    teach: Teach | None = None,
    loss: StepLoss | None = None,
    views: int = 0,
    what: str = "training",
    field_name: str = "train",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, TrainRecord]:
    """Train a copy of ``model``.

    Equal arguments give equal weights on the CPU, also when the training was killed and goes on from ``checkpoint``:
    order, augmentation and dropout are drawn anew for each epoch from ``seed`` and its number.

    Args:
        model: what to start from; not changed.
        task: data, loss and the way through the model.
        settings: epochs, rates, precision.
        seed: of order, augmentation and dropout.
        device: where to train.
        teach: gives a teacher's logits; with ``loss``, or neither.
        loss: combines student, teacher and hard loss.
        views: number of augmented views that are repeated in turn; 0 is a new view every epoch.
        what: the name on the progress bar.
        field_name: the configuration's section, for messages.
        checkpoint: file that the state is saved to between epochs; removed by whoever commits the result.
        progress: called as (what, steps done, steps in all).

    Raises:
        DivergedError: the loss or the validation logits are not finite.
        UserError: the model does not fit the task.
    """
    model = _copied(model).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = task.data["train"]
    steps = _steps(len(data), settings.batch_size)
    optimizer = _optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(steps * settings.epochs, settings.warmup))
    state = _resume(checkpoint, model, optimizer, schedule, steps)
    amp, precision = autocast(settings.precision, device)
    saved = time.monotonic()
    for epoch in range(state.epoch, settings.epochs):
        view = epoch % views if views else epoch
        torch.manual_seed(_mix(seed, epoch))
        model.train()
        total = 0.0
        for step, (index, batch) in enumerate(shuffled(data, settings.batch_size, seed=seed, epoch=epoch, view=view)):
            if step == steps:
                break
            with amp():
                logits = forward(model, task, batch, device, what=what)
            value = task.loss(logits.float(), task.target(batch).to(device))
            if teach is not None and loss is not None:
                value = loss(logits.float(), teach(index, batch, view).to(device), value)
            if not torch.isfinite(value):
                raise _diverged(f"the loss became {value.item()}", epoch, settings, field_name, what)
            if not value.requires_grad:
                raise UserError("loss: carries no gradient; compute it from the logits that it is given, with torch")
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += value.item()
            if progress:
                progress(what, epoch * steps + step + 1, steps * settings.epochs)
        if not _close_epoch(state, epoch, total / steps, model, task, settings, device):
            raise _diverged("the logits for the validation data are not finite", epoch, settings, field_name, what)
        if checkpoint and epoch + 1 < settings.epochs and time.monotonic() - saved >= SAVE_EVERY_S:
            _save(checkpoint, model, optimizer, state)
            saved = time.monotonic()
    if settings.select == "best" and state.best is not None:
        load_state(model, state.best)
    kept = state.best_epoch if settings.select == "best" else settings.epochs - 1
    record = TrainRecord(settings.epochs, steps * settings.epochs, kept + 1, precision, str(device), state.curves)
    return model.to(device="cpu", memory_format=torch.contiguous_format).eval(), record  # type: ignore[call-overload]


def forward(model: nn.Module, task: Task, batch: Batch, device: torch.device, *, what: str = "model") -> Tensor:
    """Return the logits [B, C] of a batch, through the task's own preprocessing and output adapter.

    ``what`` opens the message of an error.

    Raises:
        UserError: the model raised, or the logits have another shape than [B, classes].
    """
    args, kwargs = task.inputs(batch)
    if task.module_preprocess is not None:
        args, kwargs = as_inputs(call_user(task.module_preprocess, "preprocess", *args, **kwargs))
    args = tuple(_to(value, device) for value in args)
    kwargs = {name: _to(value, device) for name, value in kwargs.items()}
    output = _call(model, args, kwargs, what)
    try:
        logits = task.logits(output)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    rows = next((v.shape[0] for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), None)
    expected = (rows if rows is not None else logits.shape[0], len(task.labels))
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{what}: {type(model).__name__} returned logits {shape}, must be {expected} "
            f"(a batch of {expected[0]} with {expected[1]} classes); a task's `logits(output)` can pick them"
        )
    return logits


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> Any:
    """Call the model; what it raises becomes one line that says where in the user's code."""
    try:
        return model(*args, **kwargs)
    except (DistillError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise
        shapes = [str(list(value.shape)) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        raise UserError(
            f"{what}: {type(model).__name__} was called with {', '.join(shapes)} and raised {cause(error)}; it has to "
            "take what the data give"
        ) from error


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever the model holds decides
        raise UserError(
            f"model: {type(model).__name__} cannot be copied ({cause(error)}); keep what is no tensor, number or text "
            "out of its attributes"
        ) from error


class DivergedError(UserError):
    """Training left the finite numbers."""


def _diverged(problem: str, epoch: int, settings: TrainSettings, field_name: str, what: str) -> DivergedError:
    return DivergedError(
        f"{field_name}.learning_rate={settings.learning_rate}: {problem} in epoch {epoch + 1} of {what}; lower it, or "
        "look at the data"
    )


def as_inputs(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read what a preprocessing module returned as the arguments of the model: a tensor, a tuple or a dict."""
    if isinstance(value, dict):
        return (), value
    return (tuple(value), {}) if isinstance(value, tuple | list) else ((value,), {})


def predict(
    model: nn.Module, task: Task, data: Data, device: torch.device, *, view: int | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return float32 logits [N, C] and int64 targets [N] of a split, in its own order, in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    where = next((p.device for p in model.parameters()), device)
    model.eval().to(device)
    logits, targets = [], []
    with torch.no_grad():
        for _, batch in batches(data, 512, view=view):
            logits.append(forward(model, task, batch, device).float().cpu().numpy())
            targets.append(task.target(batch).cpu().numpy())
    model.to(where)
    for module, mode in modes:  # one by one: a part may have been frozen on its own
        module.training = mode
    return np.concatenate(logits), np.concatenate(targets)


def autocast(precision: str, device: torch.device) -> tuple[Callable[[], AbstractContextManager[Any]], str]:
    """Return a context maker for mixed precision, and the name of the precision that it computes in."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16), "bf16"
    return nullcontext, "fp32"


def _steps(samples: int, batch_size: int) -> int:
    # A last, short batch is left out: batch norm cannot train on one sample.
    return max(1, samples // batch_size)


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UserError(
            f"model: {type(model).__name__} has no parameter that can be trained; unfreeze some, or set "
            "teacher.pretrained if it needs no training"
        )
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)


def _rate(total: int, warmup: float) -> Callable[[int], float]:
    rising = int(total * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    return factor


def _close_epoch(
    state: _State,
    epoch: int,
    loss: float,
    model: nn.Module,
    task: Task,
    settings: TrainSettings,
    device: torch.device,
) -> bool:
    """Judge the epoch on validation data and note it; return whether its logits are finite."""
    logits, targets = predict(model, task, task.data["validation"], device)
    score = float(task.metrics(logits, targets)[task.metric])
    state.curves["loss"].append(loss)
    state.curves["validation"].append(score)
    state.epoch = epoch + 1
    if settings.select == "best" and (state.best is None or score >= max(state.curves["validation"][:-1], default=-1)):
        state.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        state.best_epoch = epoch
    return bool(np.isfinite(logits).all())


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: _State) -> None:
    from safetensors.torch import save_file

    tensors = {f"model/{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value.contiguous() for name, value in (state.best or {}).items()}
    for number, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            tensors[f"optimizer/{number}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    about = json.dumps({"epoch": state.epoch, "curves": state.curves, "best_epoch": state.best_epoch})
    notes = {"state": about, "seal": _seal(about, tensors)}
    with files.replacing(path) as partial:
        save_file({name: value.clone() for name, value in tensors.items()}, partial, metadata=notes)


def _seal(about: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{about}{hash_tensors(tensors)}".encode()).hexdigest()


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Read what ``_save`` wrote; None where it is something else, and training begins anew."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    about = notes.get("state", "")
    return (json.loads(about), tensors) if notes.get("seal") == _seal(about, tensors) else None


def _resume(
    path: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    steps: int,
) -> _State:
    saved = _read_checkpoint(path) if path is not None and path.is_file() else None
    if saved is None:
        return _State()
    about, tensors = saved
    load_state(model, dict(_under(tensors, "model/")))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer/"):
        number, slot = name.split("/")
        slots.setdefault(int(number), {})[slot] = value
    now = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": now["param_groups"]})
    _skip(schedule, about["epoch"] * steps)
    best = dict(_under(tensors, "best/")) or None
    return _State(about["epoch"], about["curves"], best, about["best_epoch"])


def _skip(schedule: torch.optim.lr_scheduler.LambdaLR, steps: int) -> None:
    """Set a schedule to where it was after so many steps; stepping it there would warn of an idle optimizer."""
    schedule.last_epoch = steps
    groups = schedule.optimizer.param_groups
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(steps)


def _under(tensors: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), value) for name, value in tensors.items() if name.startswith(prefix))


def _to(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if device.type == "cuda" and value.dim() == 4:
        return value.to(device, non_blocking=True, memory_format=torch.channels_last)
    return value.to(device, non_blocking=True)


def _mix(seed: int, number: int) -> int:
    """Make one seed of two numbers, such that neighbours have nothing in common."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
