"""The verb `validate`; what it estimates is in `distill.estimate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill import clean
from distill.verbs.run import Config, Set
from distill.verbs.signature import AsJson, Debug, echo_json

if TYPE_CHECKING:
    from distill.estimate.forecast import Forecast


@dataclass(frozen=True)
class ValidateOptions:
    """Options of the verb `validate`."""

    config: Config = None
    set_: Set = ()
    as_json: AsJson = False
    debug: Debug = False


def validate(options: ValidateOptions) -> None:
    """Check a configuration and its data, and estimate what it takes. Time, memory and disk, stage by stage."""
    from distill.config.loading import load_config
    from distill.estimate.forecast import estimate

    with redirect_stdout(sys.stderr):  # what the user's own code prints is no result
        forecast = estimate(load_config(options.config, options.set_, find=True))
    if options.as_json:
        echo_json(forecast)
    else:
        show(forecast)


def show(forecast: Forecast) -> None:
    """Print what a run will take."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = clean.console()
    data = ", ".join(f"{count:,} {name}" for name, count in forecast["data"].items())
    console.print(
        Text.assemble(
            (f"{forecast['task']}: ", "bold"),
            f"the configuration is valid; {data} samples, {forecast['classes']} classes, "
            f"judged by {forecast['metric']}; trains on {forecast['device']}, ships to {forecast['target']}",
        )
    )
    for name, model in forecast["models"].items():
        step = f", {_time(model['step_s'])} a step of {model['batch_size']}" if model["step_s"] else ", not trained"
        console.print(
            f"  {name}: {model['model']}, {model['parameters']:,} parameters, {model['macs']:,} MACs{step}",
        )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("estimate")
    for title in ("time", "peak memory", "disk"):
        table.add_column(title, justify="right")
    for row in forecast["stages"]:
        table.add_row(Text(row["what"]), *_cells(row))
    table.add_section()
    table.add_row(Text("in all", "bold"), *_cells(forecast["total"]))
    console.print()
    console.print(table)
    console.print()
    for warning in forecast["warnings"]:
        console.print(Text.assemble(("warning ", "bold yellow"), warning))
    console.print(Text(forecast["note"], "dim"))


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    memory, disk = row["memory_bytes"], row["disk_bytes"]
    seconds = _time(row["seconds"]) if row["seconds"] >= 1 else "< 1 s"
    return seconds, "" if memory is None else _size(memory), _size(disk) if disk else ""


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    if count < 2**20:
        return "< 1 MiB"
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
