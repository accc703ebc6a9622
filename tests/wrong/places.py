"""Wrong places and machines: folders, disks, memory, GPUs, wheels."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wrong.corpus import Prepare, Wrong


def _raising(where: str, error: Callable[[], BaseException], *, after: int = 0) -> Prepare:
    """Make the function ``module:name`` raise at its call number ``after``."""

    def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
        import importlib

        module_name, name = where.split(":")
        module = importlib.import_module(module_name)
        real, calls = getattr(module, name), []

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > after:
                raise error()
            return real(*args, **kwargs)

        patch.setattr(module, name, call)

    return prepare


def _full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")


def _full_safetensors() -> Exception:
    from safetensors import SafetensorError

    return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def _full_torch() -> Exception:
    return RuntimeError("PytorchStreamWriter failed writing file data/0: No space left on device")


def _denied() -> OSError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), "run/stages")


def _no_memory() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 9 bytes")


def _full_at(name: str, where: str, error: Callable[[], BaseException] = _full, **settings: object) -> Wrong:
    return Wrong(
        name=f"disk-full-{name}",
        settings=settings or {"seed": 5},
        prepare=_raising(where, error),
        says=("disk is full", "free some space", "goes on"),
    )


def _no_gpu(folder: Path, patch: pytest.MonkeyPatch) -> None:
    import torch

    patch.setattr(torch.cuda, "is_available", lambda: False)


def _gpu_without_provider(folder: Path, patch: pytest.MonkeyPatch) -> None:
    from distill.benchmarks import target

    patch.setattr(target, "gpus", lambda: [{"name": "a GPU", "driver": "1"}])


def _two_wheels(folder: Path, patch: pytest.MonkeyPatch) -> None:
    from distill.benchmarks import onnxruntime_wheels as wheels

    patch.setattr(wheels, "_wheels", lambda: {"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.22.0"})


def _below_a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("mine")


_MINE = ("run", "config.yaml", "--smoke", "--out")

CASES = [
    Wrong(name="cuda-without-gpu", more=("--device", "cuda"), prepare=_no_gpu, says=("device=cuda", "--device cpu")),
    Wrong(
        name="provider-does-not-load",
        settings={"benchmark": {"seconds_per_pair": 0.1}},
        more=("--target", "cuda"),
        prepare=_gpu_without_provider,
        says=("CUDAExecutionProvider",),
        code=5,
    ),
    Wrong(
        name="two-onnxruntime-wheels",
        prepare=_two_wheels,
        says=("onnxruntime", "uninstall -y onnxruntime onnxruntime-gpu"),
        code=5,
    ),
    Wrong(
        name="a-defect",
        prepare=_raising("distill.pipeline:_sequence", lambda: RuntimeError("assumed too much")),
        says=("defect", "RuntimeError", "assumed too much", "--debug"),
        code=70,
    ),
    Wrong(
        name="interrupted",
        prepare=_raising("distill.stages.common:fit", KeyboardInterrupt),
        settings={"seed": 5},
        says=("interrupted", "same command"),
        code=130,
    ),
    Wrong(name="run-folder-is-a-file", words=(*_MINE, "file"), prepare=_below_a_file, says=("file", "--out")),
    Wrong(
        name="run-folder-below-a-file", words=(*_MINE, "file/run"), prepare=_below_a_file, says=("file/run", "--out")
    ),
    Wrong(
        name="run-folder-denied",
        prepare=_raising("os:mkdir", _denied),
        words=(*_MINE, "other"),
        says=("run folder other", "Permission denied", "--out"),
    ),
    Wrong(
        name="file-denied",
        settings={"seed": 5},
        prepare=_raising("distill.sealed_files:write_text", _denied),
        says=("run/stages", "Permission denied", "--out"),
    ),
    Wrong(
        name="out-of-memory",
        settings={"seed": 5},
        prepare=_raising("distill.stages.common:fit", _no_memory),
        says=("out of memory", "batch_size"),
    ),
    _full_at("notes", "distill.sealed_files:write_text"),
    _full_at("weights", "distill.runtime.artifacts:save_file", _full_safetensors),
    _full_at("logits", "distill.sealed_files:save_file", _full_safetensors, quantize="on"),
    _full_at("checkpoint", "distill.stages.common:fit", _full_torch),
    _full_at("onnx", "distill.runtime.artifacts:write_proto"),
    _full_at("vectors", "numpy:savez", max_drop=0.5),
]
