"""What this machine has for a run, and what is wrong with it."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from distill.benchmarks import TARGETS, conflicting_wheels, providers_that_load, usable_threads
from distill.benchmarks.target import CPU, CUDA
from distill.benchmarks.timing.machine import affinity_cores, cgroup_cores, cpu_flags, cpu_model, family, gpus
from distill.references.functions import cause
from distill.versions import version_of

_PACKAGES = (
    *("distill", "torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "torch-pruning", "optuna"),
    *("numpy", "scikit-learn", "safetensors", "torchvision", "timm", "transformers"),
)
EXTRAS = {
    "vision": ("torchvision", "timm"),
    "text": ("transformers",),
    "test": (
        *("pytest", "pytest-xdist", "hypothesis", "jaxtyping", "beartype", "jsonschema", "mpmath"),
        *("torchvision", "timm", "transformers"),
    ),
    "dev": ("ruff", "mypy", "pre-commit", "types-PyYAML", "build"),
}
"""The packages of each extra of pyproject.toml."""
_FREE_BYTES = 2 * 2**30


class Cpu(TypedDict):
    """The processor, what it can do for int8 and training, and what that means."""

    family: str
    model: str
    flags: list[str] | None
    abilities: dict[str, bool] | None
    int8: str
    training: str


class Threads(TypedDict):
    """How many threads a run uses, and what limits them."""

    usable: int
    cores: int | None
    affinity: int | None
    cgroup: float | None


class Gpu(TypedDict):
    """The NVIDIA cards here, and whether torch sees them."""

    cards: list[dict[str, Any]]
    torch_cuda: str | None
    torch_sees: bool
    torch: str


class Vision(TypedDict):
    """Whether torchvision loads, and the command that mends it."""

    version: str | None
    loads: bool
    why: str | None
    mend: str | None


class Extra(TypedDict):
    """The packages of an extra by version, None where one is not installed, and the command that brings those."""

    packages: dict[str, str | None]
    mend: str | None


class DataSet(TypedDict):
    """Where a built-in data set was ``found``, and the ways to get it where it was not."""

    found: str | None
    ways: list[str]


class Disk(TypedDict):
    """The room where a run would write."""

    folder: str
    free_bytes: int


class Installation(TypedDict):
    """What this machine has: ``problems`` stop every run, ``notes`` some, each with its mend. Sizes are bytes."""

    python: str
    system: str
    versions: dict[str, str | None]
    providers: dict[str, str]
    conflicting_wheels: str | None
    cpu: Cpu
    threads: Threads
    gpu: Gpu
    torchvision: Vision
    extras: dict[str, Extra]
    data: dict[str, DataSet]
    disk: Disk
    problems: list[str]
    notes: list[str]


def examine() -> Installation:
    """Look at versions, providers, processor, threads, GPU, data sets and disk."""
    problems: list[str] = []
    notes: list[str] = []
    wheels = conflicting_wheels()
    if wheels:
        problems.append(f"several wheels of onnxruntime are installed and overwrite each other's files; run: {wheels}")
    versions = {name: version_of(name) for name in _PACKAGES}
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
        notes.append(f"{here} has {free / 2**30:.1f} GiB free; a run may need more")
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
        "extras": {name: _extra(packages) for name, packages in EXTRAS.items()},
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
    release = re.match(r"2\.(\d+)", torch_version)
    wanted = f"'torchvision==0.{int(release[1]) + 15}.*'" if release else "torchvision"
    build = f"cu{cuda.replace('.', '')}" if cuda else "cpu"
    index = f"--index-url https://download.pytorch.org/whl/{build}"
    return f"python -m pip install --force-reinstall --no-deps {wanted} {index}"


def _providers(problems: list[str], gpu: Gpu) -> dict[str, str]:
    try:
        providers = providers_that_load()
    except Exception as error:  # a half-removed wheel fails to import in many ways
        problems.append(
            f"onnxruntime does not import ({cause(error)}); run: "
            "python -m pip install --force-reinstall --no-deps onnxruntime-gpu (onnxruntime where it has no wheel)"
        )
        return {}
    cpu = providers.get(CPU, "not in this build of onnxruntime")
    if cpu != "loads":
        problems.append(f"{CPU} does not load: {cpu}; install onnxruntime again")
    cuda = providers.get(CUDA)
    if gpu["torch_sees"] and cuda != "loads":
        problems.append(
            f"torch trains on the GPU, but {CUDA} does not load: {cuda}; "
            "mend it, or ship to another target (--target x86)"
        )
    return providers


def _cpu() -> Cpu:
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


def _gpu(notes: list[str], problems: list[str]) -> Gpu:
    cards = gpus()
    try:
        import torch

        built, sees = torch.version.cuda, torch.cuda.is_available()
    except Exception as error:  # a broken installation fails in many ways
        problems.append(f"torch does not import ({cause(error)}); install it again: python -m pip install torch")
        return {"cards": cards, "torch_cuda": None, "torch_sees": False, "torch": "does not import"}
    build = f"a CUDA {built} build" if built else "a CPU build"
    described = f"{build}, sees {torch.cuda.device_count()} GPU(s)" if sees else f"{build}, sees no GPU"
    if cards and not sees:
        notes.append(
            f"there is a GPU ({cards[0]['name']}), but torch is {build} and does not see it; training runs on the CPU. "
            "A CUDA build: https://pytorch.org/get-started/locally"
        )
    return {"cards": cards, "torch_cuda": built, "torch_sees": sees, "torch": described}


def _torchvision() -> Vision:
    version, why, mend = version_of("torchvision"), None, None
    if version is None:
        return {"version": None, "loads": False, "why": "not installed", "mend": None}
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # operators that are missing raise RuntimeError, libraries OSError
        import torch

        why, mend = cause(error), torchvision_mend(torch.__version__, torch.version.cuda)
    return {"version": version, "loads": why is None, "why": why, "mend": mend}


def _extra(names: Sequence[str]) -> Extra:
    packages = {name: version_of(name) for name in names}
    absent = [name for name, version in packages.items() if version is None]
    return {"packages": packages, "mend": f"python -m pip install {' '.join(absent)}" if absent else None}


def _data() -> dict[str, DataSet]:
    """Look where a run would look, without downloading anything."""
    from distill.tasks.image_sets import CIFAR, FASHION
    from distill.tasks.sources import cache_folder

    embedded: DataSet = {"found": "scikit-learn, embedded", "ways": []}
    sets = {"digits": embedded, "breast-cancer": embedded}
    for source in (FASHION, CIFAR):
        cache = cache_folder() / source.name
        place = next((folder for folder in (*source.system, cache) if source.find(folder) is not None), None)
        system = f" (Debian and Ubuntu: apt install {source.package})" if source.package else ""
        ways = [
            f"set data.path to a folder that holds {source.holds}",
            f"put them into {' or '.join(map(str, source.system))}{system}",
            f"let the run download them from {source.urls[0]} into {cache}",
        ]
        sets[source.name] = {"found": None if place is None else str(place), "ways": ways}
    return sets
