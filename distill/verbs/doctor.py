"""The verb `doctor`; what it looks at is in `distill.runtime.installation`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from distill import clean
from distill.errors import Exit
from distill.verbs.signature import AsJson, Debug, echo_json

if TYPE_CHECKING:
    from distill.runtime.installation import DataSet, Extra, Gpu, Installation

Rows = list[tuple[str, str]]
"""Names and what is said of them."""


def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Tell what this machine has, and what stands in the way.

    Versions, providers that really load, CPU flags, threads, data sets found.
    """
    from distill.runtime.installation import examine

    installation = examine()
    if as_json:
        echo_json(installation)
    else:
        show(installation)
    if installation["problems"]:
        raise typer.Exit(int(Exit.NOT_MEASURED))


def show(installation: Installation) -> None:
    """Print what this machine has."""
    from rich.table import Table
    from rich.text import Text

    console = clean.console()
    for title, rows in _sections(installation):
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=16, style="dim")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        console.print(Text(title, "bold"))
        console.print(table)
        console.print()
    for note in installation["notes"]:
        console.print(Text.assemble(("note ", "bold yellow"), note), soft_wrap=True)
    for problem in installation["problems"]:
        console.print(Text.assemble(("problem ", "bold red"), problem), soft_wrap=True)
    if not installation["problems"]:
        console.print(Text("nothing stands in the way of a run", "green"))


def _sections(installation: Installation) -> list[tuple[str, Rows]]:
    cpu, threads, gpu = installation["cpu"], installation["threads"], installation["gpu"]
    versions = [("python", installation["python"]), ("system", installation["system"])]
    versions += [(name, version) for name, version in installation["versions"].items() if version]
    abilities = [f"{name} {'yes' if has else 'no'}" for name, has in (cpu["abilities"] or {}).items()]
    limit = f", limited to {threads['cgroup']:g} by the control group" if threads["cgroup"] else ""
    processor = [
        ("model", cpu["model"]),
        ("has", ", ".join(abilities) or "cannot be seen"),
        ("int8", cpu["int8"]),
        ("training", cpu["training"]),
        ("threads", f"{threads['usable']} usable of {threads['cores']} cores{limit}"),
    ]
    cards = [(card["name"], f"driver {card['driver']}, {_size(card['memory_bytes'])}") for card in gpu["cards"]]
    disk = installation["disk"]
    return [
        ("Versions", versions),
        ("Extras", [(name, _packages(extra)) for name, extra in installation["extras"].items()]),
        ("Processor", processor),
        ("GPU", [*cards, ("torch", gpu["torch"])]),
        ("onnxruntime providers", [(name, _usable(name, why, gpu)) for name, why in installation["providers"].items()]),
        ("Data sets", [(name, _place(data)) for name, data in installation["data"].items()]),
        ("Disk", [("here", f"{_size(disk['free_bytes'])} free in {disk['folder']}")]),
    ]


def _packages(extra: Extra) -> str:
    present = ", ".join(f"{name} {version}" for name, version in extra["packages"].items() if version)
    absent = ", ".join(name for name, version in extra["packages"].items() if not version)
    if not absent:
        return present
    return f"{present or 'nothing'}; not here: {absent}; {extra['mend']}"


def _usable(provider: str, why: str, gpu: Gpu) -> str:
    """Shorten what nobody without a GPU needs to read; the JSON form has it all."""
    from distill.benchmarks import TARGETS

    on_gpu = {target.provider for target in TARGETS.values() if target.device == "cuda"}
    needs_gpu = provider in {*on_gpu, "NvTensorRTRTXExecutionProvider"}
    return "not usable: there is no NVIDIA GPU here" if needs_gpu and why != "loads" and not gpu["cards"] else why


def _place(data: DataSet) -> str:
    return f"in {data['found']}" if data["found"] else "not here; " + "; or ".join(data["ways"])


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
