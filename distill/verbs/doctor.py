"""What this machine has for a run, and what is wrong with it: the verb ``doctor``."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from distill import clean
from distill.benchmarks import TARGETS, conflicting_wheels, providers_that_load, usable_threads
from distill.benchmarks.target import CPU, CUDA
from distill.benchmarks.timing.machine import affinity_cores, cgroup_cores, cpu_flags, cpu_model, family, gpus

_PACKAGES = (
    *("distill", "torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "torch-pruning", "optuna"),
    *("numpy", "scikit-learn", "safetensors", "torchvision", "timm"),
)
_FREE_BYTES = 2 * 2**30


def examine() -> dict[str, Any]:
    """Look at versions, providers, processor, threads, GPU, data sets and disk.

    Returns:
        JSON values by topic; ``problems`` lists what stops every run, ``notes`` what stops some, each with its mend.
        Sizes are bytes.
    """
    problems: list[str] = []
    notes: list[str] = []
    wheels = conflicting_wheels()
    if wheels:
        problems.append(f"several wheels of onnxruntime are installed and overwrite each other's files; run: {wheels}")
    versions = {name: _version(name) for name in _PACKAGES}
    gpu = _gpu(notes, problems)
    providers = _providers(problems, gpu)
    vision = _torchvision()
    if vision["mend"]:
        notes.append(
            f"torchvision does not load ({vision['why']}), and models of timm and torchvision need it; "
            f"run: {vision['mend']}"
        )
    here, free = Path.cwd(), shutil.disk_usage(Path.cwd()).free
    if free < _FREE_BYTES:
        notes.append(f"{here} has {_size(free)} free; a run may need more")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions,
        "providers": providers,
        "conflicting_wheels": wheels,
        "cpu": _cpu(),
        "threads": {
            "usable": usable_threads(),
            "cores": os.cpu_count(),
            "affinity": affinity_cores(),
            "cgroup": cgroup_cores(),
        },
        "gpu": gpu,
        "torchvision": vision,
        "data": _data(),
        "disk": {"folder": str(here), "free_bytes": free},
        "problems": problems,
        "notes": notes,
    }


def int8_sentence(kind: str, flags: frozenset[str] | None) -> str:
    """Say in one sentence what a processor's flags mean for int8; ``flags`` None is a processor that cannot be seen."""
    if flags is None:
        return "The flags cannot be seen on this system, so int8 weights keep to 7 bits, which is safe everywhere."
    if kind in TARGETS:
        return TARGETS[kind].int8_sentence(flags)
    return "This processor is neither x86 nor ARM: name a target, and its latency will be unmeasured here."


def torchvision_mend(torch_version: str, cuda: str | None) -> str:
    """Return the command that installs the torchvision that belongs to this torch: 2.N goes with 0.(N+15)."""
    found = re.match(r"2\.(\d+)", torch_version)
    wanted = f"'torchvision==0.{int(found[1]) + 15}.*'" if found else "torchvision"
    build = f"cu{cuda.replace('.', '')}" if cuda else "cpu"
    index = f"--index-url https://download.pytorch.org/whl/{build}"
    return f"python -m pip install --force-reinstall --no-deps {wanted} {index}"


def show(found: dict[str, Any]) -> None:
    """Print what ``examine`` found."""
    console = clean.console()
    for title, rows in _sections(found):
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=16, style="dim")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        console.print(Text(title, "bold"))
        console.print(table)
        console.print()
    for note in found["notes"]:
        console.print(Text.assemble(("note ", "bold yellow"), note), soft_wrap=True)
    for problem in found["problems"]:
        console.print(Text.assemble(("problem ", "bold red"), problem), soft_wrap=True)
    if not found["problems"]:
        console.print(Text("nothing stands in the way of a run", "green"))


def _sections(found: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    cpu, threads, gpu = found["cpu"], found["threads"], found["gpu"]
    versions = [("python", found["python"]), ("system", found["system"])]
    versions += [(name, version) for name, version in found["versions"].items() if version]
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
    disk = found["disk"]
    return [
        ("Versions", versions),
        ("Processor", processor),
        ("GPU", [*cards, ("torch", gpu["torch"])]),
        ("onnxruntime providers", [(name, _usable(name, why, gpu)) for name, why in found["providers"].items()]),
        ("Data sets", [(name, _where(one)) for name, one in found["data"].items()]),
        ("Disk", [("here", f"{_size(disk['free_bytes'])} free in {disk['folder']}")]),
    ]


def _usable(provider: str, why: str, gpu: dict[str, Any]) -> str:
    """Shorten what nobody without a GPU needs to read; the JSON form has it all."""
    on_gpu = {target.provider for target in TARGETS.values() if target.device == "cuda"}
    needs_gpu = provider in {*on_gpu, "NvTensorRTRTXExecutionProvider"}
    return "not usable: there is no NVIDIA GPU here" if needs_gpu and why != "loads" and not gpu["cards"] else why


def _where(one: dict[str, Any]) -> str:
    return f"in {one['found']}" if one["found"] else "not here; " + "; or ".join(one["ways"])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _providers(problems: list[str], gpu: dict[str, Any]) -> dict[str, str]:
    try:
        found = providers_that_load()
    except Exception as error:  # a half-removed wheel fails to import in many ways
        problems.append(
            f"onnxruntime does not import ({_first(error)}); run: "
            "python -m pip install --force-reinstall --no-deps onnxruntime-gpu (onnxruntime where it has no wheel)"
        )
        return {}
    cpu = found.get(CPU, "not in this build of onnxruntime")
    if cpu != "loads":
        problems.append(f"{CPU} does not load: {cpu}; install onnxruntime again")
    if gpu["torch_sees"] and found.get(CUDA) != "loads":
        problems.append(
            f"torch trains on the GPU, but {CUDA} does not load: {found.get(CUDA)}; "
            "mend it, or ship to another target (--target x86)"
        )
    return found


def _cpu() -> dict[str, Any]:
    kind, flags = family(), cpu_flags()
    abilities = None
    if flags is not None:
        listed = TARGETS[kind].abilities if kind in TARGETS else ()
        abilities = {name: bool(flags & set(any_of)) for name, any_of in listed}
    bf16 = bool(abilities and abilities.get("bf16"))
    return {
        "family": kind,
        "model": cpu_model(),
        "flags": None if flags is None else sorted(flags),
        "abilities": abilities,
        "int8": int8_sentence(kind, flags),
        "training": "bf16 instructions: precision: bf16 may train faster" if bf16 else "no bf16 instructions: float32",
    }


def _gpu(notes: list[str], problems: list[str]) -> dict[str, Any]:
    cards = gpus()
    try:
        import torch

        built, sees = torch.version.cuda, torch.cuda.is_available()
    except Exception as error:  # a broken installation fails in many ways
        problems.append(f"torch does not import ({_first(error)}); install it again: python -m pip install torch")
        return {"cards": cards, "torch_cuda": None, "torch_sees": False, "torch": "does not import"}
    build = f"a CUDA {built} build" if built else "a CPU build"
    words = f"{build}, sees {torch.cuda.device_count()} GPU(s)" if sees else f"{build}, sees no GPU"
    if cards and not sees:
        notes.append(
            f"there is a GPU ({cards[0]['name']}), but torch is {build} and does not see it; training runs on the CPU. "
            "A CUDA build: https://pytorch.org/get-started/locally"
        )
    return {"cards": cards, "torch_cuda": built, "torch_sees": sees, "torch": words}


def _torchvision() -> dict[str, Any]:
    version = _version("torchvision")
    if version is None:
        return {"version": None, "loads": False, "why": "not installed", "mend": None}
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # operators that are missing raise RuntimeError, libraries OSError
        import torch

        mend = torchvision_mend(torch.__version__, torch.version.cuda)
        return {"version": version, "loads": False, "why": _first(error), "mend": mend}
    return {"version": version, "loads": True, "why": None, "mend": None}


def _data() -> dict[str, Any]:
    """Look where a run would look, without downloading anything."""
    from distill.tasks.image_sets import CIFAR, FASHION
    from distill.tasks.sources import cache_folder

    found: dict[str, Any] = {}
    for name in ("digits", "breast-cancer"):
        found[name] = {"found": "scikit-learn, embedded", "ways": []}
    for source in (FASHION, CIFAR):
        cache = cache_folder() / source.name
        place = next((one for one in (*source.system, cache) if source.find(one) is not None), None)
        system = f" (Debian and Ubuntu: apt install {source.package})" if source.package else ""
        ways = [
            f"set data.path to a folder that holds {source.holds}",
            f"put them into {' or '.join(map(str, source.system))}{system}",
            f"let the run download them from {source.urls[0]} into {cache}",
        ]
        found[source.name] = {"found": None if place is None else str(place), "ways": ways}
    return found


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
