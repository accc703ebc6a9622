"""The verb `prune`: its options, as words; what they do is in `distill.single_stage.pruning.command`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.prune.scores.importance import DEFAULT, IMPORTANCES, WITHOUT_BATCHES

_GOAL, _CHOICE, _LEARN, _TIME = "How much goes: one of these", "What goes", "Rows and training", "What it ships to"


def prune(
    model: Annotated[
        str,
        typer.Option(help="timm:NAME, torchvision:NAME, transformers:NAME, package.module:function, file.py:function"),
    ],
    out: Annotated[Path, typer.Option(help="a new folder for the pruned model and its report")],
    weights: Annotated[Path | None, typer.Option(help="state dict (.safetensors, or .pt of plain tensors)")] = None,
    arg: Annotated[list[str] | None, typer.Option(help="argument of the model, as num_classes=10; repeatable")] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="shape of one sample, as 3,224,224; NAME=SHAPE of several inputs"),
    ] = None,
    logits: Annotated[
        str | None, typer.Option(help="where forward's output has them: a key, an attribute, a place in a tuple")
    ] = None,
    macs: Annotated[
        float | None, typer.Option(help="share of the multiply-accumulates to leave", rich_help_panel=_GOAL)
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="share of the parameters to leave", rich_help_panel=_GOAL)
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="share of the channels to remove", rich_help_panel=_GOAL)] = None,
    speedup: Annotated[
        float | None, typer.Option(help="times as fast, measured in the form that ships", rich_help_panel=_GOAL)
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(IMPORTANCES)}; {DEFAULT} with --data, else {WITHOUT_BATCHES}",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    round_to: Annotated[int, typer.Option(help="widths end on multiples of this", rich_help_panel=_CHOICE)] = 8,
    max_ratio: Annotated[float, typer.Option(help="most that a layer may lose", rich_help_panel=_CHOICE)] = 0.7,
    steps: Annotated[int, typer.Option(help="equal steps, each with importance anew", rich_help_panel=_CHOICE)] = 1,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="every layer loses the same share", rich_help_panel=_CHOICE)
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="name of a module that keeps its width; repeatable", rich_help_panel=_CHOICE),
    ] = None,
    depth: Annotated[
        str, typer.Option(help="auto or off: whole blocks may go for --speedup", rich_help_panel=_CHOICE)
    ] = "auto",
    heads: Annotated[
        bool, typer.Option("--heads/--no-heads", help="remove heads of attention too", rich_help_panel=_CHOICE)
    ] = True,
    sparsity: Annotated[
        str | None, typer.Option(help="zeros afterwards: 2:4, or a share as 0.5", rich_help_panel=_CHOICE)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help=".npz with rows by the names of forward's parameters", rich_help_panel=_LEARN)
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="name of the labels in it; found by itself if usual", rich_help_panel=_LEARN)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="what the logits hold: classes, binary, labels, numbers; told if it can be", rich_help_panel=_LEARN
        ),
    ] = None,
    axis: Annotated[
        int | None, typer.Option(help="axis of its classes, where that is not told", rich_help_panel=_LEARN)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="file.py:function, called with outputs and labels; more is better, a drop is its difference",
            rich_help_panel=_LEARN,
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="of distillation from the unpruned model", min=0, rich_help_panel=_LEARN)
    ] = 0,
    learning_rate: Annotated[float, typer.Option(help="of that distillation", rich_help_panel=_LEARN)] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="rows in a batch", min=2, rich_help_panel=_LEARN)] = 32,
    device: Annotated[str, typer.Option(help="what learns: auto, cpu or cuda", rich_help_panel=_LEARN)] = "auto",
    target: Annotated[
        str | None,
        typer.Option(help="x86, arm, cuda or tensorrt; this machine when left out", rich_help_panel=_TIME),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="what is timed: float32, or int8 (fp16 on cuda)", rich_help_panel=_TIME)
    ] = "float32",
    batch: Annotated[int, typer.Option(help="rows in a call that is timed", min=1, rich_help_panel=_TIME)] = 1,
    threads: Annotated[int, typer.Option(help="threads to time with", min=1, rich_help_panel=_TIME)] = 1,
    measure: Annotated[
        str | None, typer.Option(help="command that has it timed elsewhere, as of `bench`", rich_help_panel=_TIME)
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="fresh session pairs of the comparison", min=2, max=64, rich_help_panel=_TIME)
    ] = 6,
    seconds: Annotated[
        float, typer.Option(help="that a session pair is timed for", min=0.01, max=60, rich_help_panel=_TIME)
    ] = 1.0,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="time it", rich_help_panel=_TIME)] = True,
    seed: Annotated[int, typer.Option(help="of weights, made-up rows and their order", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on standard output, for machines")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Remove channels, heads and blocks of any model, and prove what that bought."""
    given = {name.rstrip("_"): value for name, value in locals().items()}
    from distill.single_stage.pruning.words import Words

    said: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in Words.__dataclass_fields__ and value is not None
    }
    from distill import clean
    from distill.console import Console
    from distill.rendering.terminal import render
    from distill.single_stage.pruning.command import run
    from distill.single_stage.pruning.report import document

    with Console("quiet" if quiet else "auto") as console:
        outcome = run(Words(**said), console.progress)
    written = f"wrote {out}" if outcome.exit_code == 0 else f"{out} was not written"
    if as_json:
        sys.stdout.write(clean.json_text(outcome.to_json()))
    else:
        shown = clean.console()
        shown.print(render(document(outcome, str(out))))
        shown.print(f"{written}: {outcome.why}", soft_wrap=True)
    raise typer.Exit(int(outcome.exit_code))
