"""The verb `quantize`: its options, as words; what they do is in `distill.single_stage.quantizing.command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def quantize(
    model: Annotated[
        str, typer.Argument(help="a float32 .onnx file; package.module:function or file.py:function for an nn.Module")
    ],
    data: Annotated[Path, typer.Option(help=".npz with rows by input name, and labels, if there are any")],
    out: Annotated[Path, typer.Option(help="where the chosen file goes (.onnx)")],
    max_drop: Annotated[
        float, typer.Option(help="most that may be lost: accuracy with labels, changed answers without", min=0, max=1)
    ] = 0.01,
    labels: Annotated[str | None, typer.Option(help="name of the labels in the .npz; found by itself if usual")] = None,
    output: Annotated[
        str | None,
        typer.Option(help="what the output holds: classes, binary, labels, numbers; told if it can be"),
    ] = None,
    axis: Annotated[int | None, typer.Option(help="axis of its classes, where that is not told")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="file.py:function, called with outputs and labels; more is better, a drop is its difference"),
    ] = None,
    target: Annotated[str | None, typer.Option(help="x86, arm, cuda or tensorrt; this machine when left out")] = None,
    precision: Annotated[str, typer.Option(help="auto, or only one of int8, dynamic, int4, fp16, bf16")] = "auto",
    calibration: Annotated[
        str, typer.Option(help="where to begin: minmax, average, percentile, entropy, mse")
    ] = "minmax",
    reduce_range: Annotated[
        bool | None,
        typer.Option(
            "--reduce-range/--full-range",
            help="int8 weights of 7 bits, safe on x86 without VNNI, or of 8; as the target says when left out",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="rows to find ranges on, at most", min=1)] = 512,
    epochs: Annotated[
        int, typer.Option(help="of training while rounding, where no other repair keeps the budget", min=0)
    ] = 0,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="measure every layer alone in int8, also where the budget holds")
    ] = False,
    batch: Annotated[
        str | None,
        typer.Option(help="batch sizes to time; the first decides; 1, or the one that the model is fixed at"),
    ] = None,
    threads: Annotated[int, typer.Option(help="threads to time with", min=1)] = 1,
    measure: Annotated[str | None, typer.Option(help="command that has it timed elsewhere, as of `bench`")] = None,
    pairs: Annotated[int, typer.Option(help="fresh session pairs of the timing", min=2)] = 6,
    seconds: Annotated[float, typer.Option(help="that a session pair is timed for", min=0.01, max=60)] = 1.0,
    seed: Annotated[int, typer.Option(help="of which rows find ranges and which judge", min=0)] = 0,
    record: Annotated[Path | None, typer.Option(help="write what was tried as JSON")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="write the sensitivity of layers, where it was measured, as a chart (.svg)")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Find the fastest precision of a model that keeps a budget, and prove it."""
    from typing import get_args

    from distill.errors import UserError
    from distill.outputs import KINDS
    from distill.quantize.choose import Precision
    from distill.quantize.settings import CALIBRATIONS
    from distill.single_stage.quantizing.command import Words, run

    for option, value, known in (
        ("--precision", precision, get_args(Precision)),
        ("--calibration", calibration, CALIBRATIONS),
        ("--output", output, (None, *KINDS)),
    ):
        if value not in known:
            raise UserError(f"{option} {value}: must be one of {', '.join(filter(None, known))}")
    said: dict[str, Any] = {
        name: value for name, value in locals().items() if name in Words.__dataclass_fields__ and value is not None
    }
    if metric is not None:
        from distill.references.loading import load_reference

        said["metric"] = load_reference(metric, field="--metric")
    words = Words(**said)
    from rich.text import Text

    from distill import clean
    from distill.rendering.terminal import render
    from distill.single_stage.quantizing.report import document

    # Of what takes minutes a person wants to see the hand move; a file or a pipe gets the result alone.
    with clean.console(stderr=True).status("reading") as status:

        def say(what: str, done: int, total: int) -> None:
            status.update(Text(clean.log_line(f"{what}: {done} of {total}")))

        choice, report, code = run(words, say)
    console = clean.console()
    console.print(render(document(choice, report)))
    written = f"wrote {out}" if code == 0 else f"{out} was not written"
    console.print(f"{written}: {choice.why}", soft_wrap=True)
    if plot is not None:
        unmeasured = f"{plot} was not written: nothing called for measuring layers one by one; --sensitivity does"
        console.print(f"wrote {plot}" if choice.sensitivity else unmeasured, soft_wrap=True)
    raise typer.Exit(int(code))
