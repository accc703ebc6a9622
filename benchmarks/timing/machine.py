"""What this machine is, as far as it changes a latency."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.versions import version_of

Machine = dict[str, Any]
"""What a machine, or a GPU of it, is: JSON, as reports hold it."""
# The flags that decide which kernels onnxruntime takes, as /proc/cpuinfo spells them.
FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
# The same flags as macOS spells them in `sysctl`.
_MACOS = {
    "avx1.0": "avx",
    "avx512vnni": "avx512_vnni",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
}
_X86, _ARM = ("x86_64", "amd64", "i386", "i686"), ("aarch64", "arm64", "armv7l", "armv8l")


def family(name: str | None = None) -> str:
    """Name the family of a processor, this machine's by default: `x86`, `arm`, or what the system calls it."""
    name = (platform.machine() if name is None else name).lower()
    return "x86" if name in _X86 else "arm" if name in _ARM else name


def _sysctl(*names: str) -> str:
    """Ask macOS's `sysctl`; empty where there is none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["sysctl", *names], capture_output=True, text=True, timeout=5, check=False).stdout
    return ""


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """Read the first processor of /proc/cpuinfo; empty where there is no such file."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    return fields


@functools.cache
def cpu_flags() -> frozenset[str] | None:
    """List the flags of `FLAGS` that this processor has; None where the system does not show them (Windows)."""
    listed = _cpuinfo().get("flags", _cpuinfo().get("Features"))
    if listed is not None:
        return frozenset(listed.split()) & frozenset(FLAGS)
    if platform.system() != "Darwin":
        return None
    if family() == "arm":
        on = [line.partition(":")[0] for line in _sysctl("hw.optional.arm").splitlines() if line.endswith(": 1")]
        return frozenset({"asimd", *(_MACOS[name] for name in on if name in _MACOS)})
    names = _sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features").lower().split()
    return frozenset(_MACOS.get(word, word) for word in names) & frozenset(FLAGS)


def cpu_model() -> str:
    """Read the processor's own name, as the system gives it."""
    info = _cpuinfo()
    if "model name" in info:
        return info["model name"]
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string").partition(":")[2].strip()
    with contextlib.suppress(OSError):  # ARM boards name the board here and the core only by number
        return Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    part = " ".join(info[key] for key in ("CPU implementer", "CPU part") if key in info)
    return part or platform.processor() or "unknown"


def _cgroup_folders() -> Iterator[tuple[str, Path]]:
    """(`2` or `1`, folder) for every control group that may limit this process, innermost first."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = Path("/sys/fs/cgroup/cpu" if controllers else "/sys/fs/cgroup")
            inner = root / name.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder == root or root in folder.parents:
                    yield ("1" if controllers else "2"), folder


def cgroup_cores() -> float | None:
    """Read how many cores' worth of time the control groups allow this process; None where nothing limits it."""
    limits = []
    for version, folder in _cgroup_folders():
        with contextlib.suppress(OSError, ValueError):
            if version == "2":
                quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
                period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
            if float(quota) > 0:  # "max" is no number and -1 means no limit
                limits.append(float(quota) / float(period))
    return min(limits, default=None)


def affinity_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_threads() -> int:
    """Count the threads that can run at once: the smaller of affinity mask and cgroup quota, at least 1."""
    quota = cgroup_cores()
    return max(1, affinity_cores() if quota is None else min(affinity_cores(), int(quota)))


def gpus() -> list[Machine]:
    """List the NVIDIA GPUs that this process can see: `name`, `driver`, `memory_bytes`; empty without a driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return []
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        cards = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            cards.append(
                {
                    "name": _text(pynvml.nvmlDeviceGetName(handle)),
                    "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
                    "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                }
            )
    except pynvml.NVMLError:
        return []
    else:
        return cards
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    """Old versions of nvidia-ml-py answer in bytes."""
    return value.decode() if isinstance(value, bytes) else value


def machine() -> Machine:
    """Describe everything about this machine that a latency depends on, as JSON: processor, threads, GPUs, versions."""
    flags = cpu_flags()
    return {
        "family": family(),
        "cpu": cpu_model(),
        "flags": None if flags is None else sorted(flags),
        "threads": {"usable": usable_threads(), "affinity": affinity_cores(), "cgroup": cgroup_cores()},
        "system": platform.system(),
        "kernel": platform.release(),
        "gpus": gpus(),
        "versions": {
            "python": platform.python_version(),
            "numpy": version_of("numpy"),
            "onnx": version_of("onnx"),
            "onnxruntime": version_of("onnxruntime-gpu", "onnxruntime", "onnxruntime-directml", "onnxruntime-openvino"),
        },
    }


def of_board(about: Mapping[str, Any]) -> Machine:
    """Describe another machine in the words of `machine()`, from what its `runner.py` said of it."""
    return {
        "family": family(str(about["machine"])),
        "cpu": about["cpu"] or "unknown",
        "flags": sorted(set(about["flags"]) & set(FLAGS)),
        "threads": {"usable": about["cores"], "affinity": about["cores"], "cgroup": None},
        "system": about["system"],
        "kernel": about["kernel"],
        "gpus": [],
        "versions": {key: about[key] for key in ("python", "numpy", "onnxruntime")},
    }


def board_of(answer: Mapping[str, Any], command: str | None) -> Machine | None:
    """Describe the machine that a job's answer came from, where a command had it run on another one."""
    return None if command is None else of_board(answer["board"])


def fingerprint(now: Mapping[str, Any] | None = None) -> str:
    """Hash (sha256) what stays the same on a machine: processor, flags, usable threads, system, GPUs with driver.

    Versions of Python, its packages and the kernel are left out: an update of one is often the very thing that two
    measurements are to be compared across. They are in `machine()` beside it, which is what is taken by default.
    """
    now = machine() if now is None else now
    stable = {key: now[key] for key in ("family", "cpu", "flags", "system", "gpus")}
    stable["threads"] = now["threads"]["usable"]
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()
