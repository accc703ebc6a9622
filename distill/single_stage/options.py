"""The options of `prune` and `quantize`, written once: for the command line and for Python.

On the command line a model is a reference, rows are an `.npz`, and a metric is `file.py:function`; in Python each may
also be the object itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from typer.models import ParameterInfo

from distill.bounds import MOST_COUNT, MOST_ROWS, MOST_SECONDS, MOST_SEED, MOST_THREADS
from distill.documents import Json, parse_json
from distill.errors import UserError
from distill.prune.scores.importance import DEFAULT, IMPORTANCES, WITHOUT_BATCHES
from distill.wording import shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import ModelProto
    from torch import nn

    from distill import outputs
    from distill.tasks.rows import Source

    ModuleLike = str | nn.Module | Callable[..., nn.Module]
    GraphLike = ModuleLike | ModelProto | Path
    Rows = Source
    MetricLike = str | outputs.Metric
else:
    ModuleLike, GraphLike, Rows, MetricLike = str, str, Path, str

_PATHS = ("out", "weights", "data", "record", "plot")
_Weights = Annotated[
    Path | None, typer.Option(help="checkpoint (.safetensors, or .pt of plain tensors), whatever wraps its names")
]
_Arguments = Annotated[tuple[str, ...], typer.Option(help="argument of the model, as num_classes=10; repeatable")]
_Labels = Annotated[str | None, typer.Option(help="name of the labels in the rows; found by itself if usual")]
_Output = Annotated[
    str | None,
    typer.Option(help="what the output holds: classes, binary, labels, numbers; told if it can be"),
]
_Axis = Annotated[int | None, typer.Option(help="axis of its classes, where that is not told")]
_Metric = Annotated[
    MetricLike | None,
    typer.Option(help="file.py:function, called with outputs and labels; more is better, a drop is its difference"),
]
_Target = Annotated[str | None, typer.Option(help="x86, arm, cuda or tensorrt; this machine when left out")]
_Threads = Annotated[int, typer.Option(help="threads to time with", min=1, max=MOST_THREADS)]
_Measure = Annotated[str | None, typer.Option(help="command that has it timed elsewhere, as of `bench`")]
_Seconds = Annotated[float, typer.Option(help="that a session pair is timed for", min=0.01, max=60)]


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What both have in common: a text stands for a path, and for one of several, as on the command line."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and field.name in _PATHS:
                object.__setattr__(self, field.name, Path(value))
            elif isinstance(value, str) and isinstance(field.default, tuple):
                object.__setattr__(self, field.name, (value,))


@dataclass(frozen=True, kw_only=True)
class PruneOptions(_Options):
    """How a model is pruned; what is None was left out."""

    model: Annotated[
        ModuleLike,
        typer.Option(help="timm:NAME, torchvision:NAME, transformers:NAME, package.module:function, file.py:function"),
    ]
    out: Annotated[Path | None, typer.Option(help="a new folder for the pruned model and its report")] = None
    weights: _Weights = None
    arg: _Arguments = ()
    macs: Annotated[float | None, typer.Option(help="share of the multiply-accumulates to leave")] = None
    parameters: Annotated[float | None, typer.Option(help="share of the parameters to leave")] = None
    ratio: Annotated[float | None, typer.Option(help="share of the channels to remove")] = None
    speedup: Annotated[float | None, typer.Option(help="times as fast, measured in the form that ships")] = None
    input: Annotated[
        tuple[str, ...], typer.Option(help="shape of one sample, as 3,224,224; NAME=SHAPE of several inputs")
    ] = ()
    logits: Annotated[
        str | None, typer.Option(help="where forward's output has them: a key, an attribute, a place in a tuple")
    ] = None
    importance: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(IMPORTANCES)}; {DEFAULT} with --data, else {WITHOUT_BATCHES}"),
    ] = None
    round_to: Annotated[int, typer.Option(help="widths end on multiples of this", min=1, max=MOST_COUNT)] = 8
    max_ratio: Annotated[float, typer.Option(help="most that a layer may lose")] = 0.7
    steps: Annotated[int, typer.Option(help="equal steps, each with importance anew")] = 1
    uniform: Annotated[bool, typer.Option("--uniform", help="every layer loses the same share")] = False
    ignore: Annotated[tuple[str, ...], typer.Option(help="name of a module that keeps its width; repeatable")] = ()
    depth: Annotated[str, typer.Option(help="auto or off: whole blocks may go for --speedup")] = "auto"
    heads: Annotated[bool, typer.Option("--heads/--no-heads", help="remove heads of attention too")] = True
    sparsity: Annotated[str | None, typer.Option(help="zeros afterwards: 2:4, or a share as 0.5")] = None
    data: Annotated[Rows | None, typer.Option(help=".npz with rows by the names of forward's parameters")] = None
    labels: _Labels = None
    output: _Output = None
    axis: _Axis = None
    metric: _Metric = None
    epochs: Annotated[int, typer.Option(help="of distillation from the unpruned model", min=0, max=MOST_COUNT)] = 0
    learning_rate: Annotated[float, typer.Option(help="of that distillation")] = 1e-3
    loss: Annotated[str, typer.Option(help="of that distillation, as `distill.loss` of a run")] = "kd"
    temperature: Annotated[float, typer.Option(help="that softens both models' answers in it", min=0.1, max=100)] = 2.0
    weight: Annotated[float, typer.Option(help="of the unpruned model's answers beside labels", min=0, max=1)] = 0.9
    batch_size: Annotated[int, typer.Option(help="rows in a batch", min=2, max=MOST_COUNT)] = 32
    device: Annotated[str, typer.Option(help="what learns: auto, cpu or cuda")] = "auto"
    target: _Target = None
    format: Annotated[str, typer.Option(help="what is timed: float32, or int8 (fp16 on cuda)")] = "float32"
    batch: Annotated[int, typer.Option(help="rows in a call that is timed", min=1, max=MOST_ROWS)] = 1
    threads: _Threads = 1
    measure: _Measure = None
    pairs: Annotated[int, typer.Option(help="fresh session pairs of the comparison", min=2, max=64)] = 6
    seconds: _Seconds = 1.0
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="time it")] = True
    seed: Annotated[int, typer.Option(help="of weights, made-up rows and their order", min=0, max=MOST_SEED)] = 0


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(_Options):
    """How a model is quantised; what is None was left out."""

    model: Annotated[
        GraphLike,
        typer.Argument(help="a float32 .onnx file; package.module:function or file.py:function for an nn.Module"),
    ]
    data: Annotated[Rows, typer.Option(help=".npz with rows by input name, and labels, if there are any")]
    out: Annotated[Path | None, typer.Option(help="where the chosen file goes (.onnx)")] = None
    weights: _Weights = None
    arg: _Arguments = ()
    max_drop: Annotated[
        float, typer.Option(help="most that may be lost: accuracy with labels, changed answers without", min=0, max=1)
    ] = 0.01
    labels: _Labels = None
    output: _Output = None
    axis: _Axis = None
    metric: _Metric = None
    target: _Target = None
    precision: Annotated[str, typer.Option(help="auto, or only one of int8, dynamic, int4, fp16, bf16")] = "auto"
    objective: Annotated[
        str, typer.Option(help="latency: the fastest that keeps the budget; size: the smallest, whatever its speed")
    ] = "latency"
    calibration: Annotated[str, typer.Option(help="where to begin: minmax, average, percentile, entropy, mse")] = (
        "minmax"
    )
    reduce_range: Annotated[
        bool | None,
        typer.Option(
            "--reduce-range/--full-range",
            help="int8 weights of 7 bits, safe on x86 without VNNI, or of 8; as the target says when left out",
            show_default=False,
        ),
    ] = None
    samples: Annotated[int, typer.Option(help="rows to find ranges on, at most", min=1, max=MOST_COUNT)] = 512
    epochs: Annotated[
        int,
        typer.Option(help="of training while rounding, where no other repair keeps the budget", min=0, max=MOST_COUNT),
    ] = 0
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="measure every layer alone in int8, also where the budget holds")
    ] = False
    batch: Annotated[
        str | None,
        typer.Option(help="batch sizes to time; the first decides; 1, or the one that the model is fixed at"),
    ] = None
    threads: _Threads = 1
    measure: _Measure = None
    pairs: Annotated[int, typer.Option(help="fresh session pairs of the timing", min=2, max=64)] = 6
    seconds: _Seconds = 1.0
    timeout: Annotated[
        float, typer.Option(help="seconds until a batch that does not end is stopped", min=0.01, max=MOST_SECONDS)
    ] = 600
    seed: Annotated[int, typer.Option(help="of which rows find ranges and which judge", min=0, max=MOST_SEED)] = 0
    record: Annotated[Path | None, typer.Option(help="write what was tried as JSON")] = None
    plot: Annotated[
        Path | None, typer.Option(help="write the sensitivity of layers, where it was measured, as a chart (.svg)")
    ] = None

    @property
    def outputs(self) -> dict[str, Path]:
        """Option -> path of what is written."""
        paths = {"--out": self.out, "--record": self.record, "--plot": self.plot}
        return {option: path for option, path in paths.items() if path is not None}


def require_bounds(options: PruneOptions | QuantizeOptions) -> None:
    """Check the bounds of numbers, as the command line does, for whoever calls from Python.

    Raises:
        UserError: a number is none, is below its least or above its most.
    """
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value, note = getattr(options, name), next(iter(get_args(hint)[1:]), None)
        if (
            isinstance(note, ParameterInfo)
            and (note.min is not None and note.max is not None)
            and not (isinstance(value, int | float) and note.min <= value <= note.max)
        ):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be from {note.min} to {note.max}")


def read_arguments(entries: tuple[str, ...]) -> dict[str, Json]:
    """Read num_classes=10, widths=[8,16], pretrained=true, act=relu: JSON where it is some, else text."""
    from distill.benchmarks.parse import named_values  # brings numpy, which a command's help needs not

    arguments: dict[str, Json] = {}
    for name, text in named_values("--arg", entries).items():
        try:
            arguments[name] = parse_json(text, finite=True)
        except ValueError as error:
            if text[:1] in ("[", "{", "-") or text in ("NaN", "Infinity") or text[:1].isdigit():
                raise UserError(
                    f"--arg {name}={shortened(text)}: {error}; a text of that form goes in quotes"
                ) from error
            arguments[name] = text
    return arguments


def typed(options: PruneOptions) -> list[str]:
    """Write options down again as they can be typed; an object of Python by its name, or its type's."""
    command: list[str] = []
    for field in fields(PruneOptions):
        value = getattr(options, field.name)
        repeated = value if isinstance(field.default, tuple) else (value,)
        option = "--" + field.name.replace("_", "-")
        if isinstance(value, bool) and value != field.default:
            command.append(option if value else option.replace("--", "--no-", 1))
        elif value is not None and not (isinstance(value, str | int | float) and value == field.default):
            command += [part for entry in repeated for part in (option, shown(entry))]
    return command


def shown(value: Any) -> str:
    """Return a value as messages show it: an object of Python by its name, or its type's."""
    plain = isinstance(value, str | Path | int | float)
    return str(value) if plain else str(getattr(value, "__name__", type(value).__name__))
