"""Run `runner.py` in a process of its own, and turn every way in which that can fail into an error with a name."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from distill.errors import NotMeasuredError, UserError

RUNNER = Path(__file__).with_name("runner.py")


def run_job(job: dict[str, Any], *, timeout_s: float, what: str) -> dict[str, Any]:
    """Do `job` in a fresh process and return its answer; `what` names the thing measured in messages.

    Raises UserError where the file is at fault, NotMeasuredError where the provider did not load, a call failed, the
    process died, or it did not end within `timeout_s` (it is killed then).
    """
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
        job_path, out_path = Path(folder, "job.json"), Path(folder, "out.json")
        job_path.write_text(json.dumps(job), encoding="utf-8")
        # -P keeps this folder, whose `profile.py` is also the name of a standard module, off the path.
        command = [sys.executable, "-P", str(RUNNER), str(job_path), str(out_path)]
        # NVML counts GPUs in PCI order; CUDA is told to do the same, so that both mean one device.
        environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTHONFAULTHANDLER": "1"}
        try:
            done = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False, env=environment
            )
        except subprocess.TimeoutExpired as error:
            raise NotMeasuredError(
                f"{what}: not measured, the timing process did not end within {timeout_s:g} s and was stopped; "
                "raise benchmark.timeout_s if the model is that slow"
            ) from error
        noise = done.stderr.decode("utf-8", "replace")
        # The answer is renamed into place, so what is there is whole: a GPU driver that dies at exit spoils nothing.
        if not out_path.exists():
            raise NotMeasuredError(f"{what}: not measured, the timing process {_end(done.returncode)}{_last(noise)}")
        answer: dict[str, Any] = json.loads(out_path.read_text(encoding="utf-8"))
    if answer["status"] == "ok":
        return answer
    if answer["kind"] == "file":
        raise UserError(f"{what}: onnxruntime cannot load it: {answer['message']}")
    if answer["kind"] == "provider":
        raise NotMeasuredError(f"{what}: not measured, {answer['message']}{_library(noise)}")
    raise NotMeasuredError(f"{what}: not measured, a call failed: {answer['message']}")


def _end(code: int) -> str:
    """Say how a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"died of {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _last(noise: str) -> str:
    """Quote the last line that a dying process wrote, which in a Python traceback is the error itself."""
    lines = [line.strip() for line in noise.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return f": {(fatal or lines)[-1]}" if lines else ""


def _library(noise: str) -> str:
    """Name the library that a provider could not find: onnxruntime writes it to stderr and nowhere else."""
    found = re.search(r"with error: (.+)", noise)
    if not found:
        return ""
    missing = found.group(1).strip()
    mend = (
        "; `pip install 'onnxruntime-gpu[cuda,cudnn]'` brings CUDA's libraries" if missing.startswith("libcu") else ""
    )
    return f"; {missing}{mend}"
