"""Have `runner.py` do a job, here or on a board, and turn every way in which that fails into an error with a name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.benchmarks.timing.answers import sound_answer
from distill.benchmarks.timing.bundle import RESULT, RUNNER, write_bundle
from distill.documents import parse_json
from distill.errors import NotMeasuredError, UserError

if TYPE_CHECKING:
    from distill.benchmarks.runner import Answer


def run_job(
    job: Mapping[str, Any],
    *,
    timeout_s: float,
    subject: str,
    measure: str | None = None,
    runner: Path | None = None,
    python: str | None = None,
) -> Answer:
    """Do `job` in a fresh process and return its answer; `subject` names the thing measured in messages.

    With `measure`, a command that gets a bundle and brings back its result, the job is done wherever that command
    takes it. `runner` is another file in the place of `runner.py`, one that takes and gives the same; `python` another
    interpreter to run it with.

    Raises UserError where the file is at fault, NotMeasuredError where the provider did not load, a call failed, the
    process died, the command brought nothing back, or it did not end within `timeout_s` (it is killed then).
    """
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
        if measure is not None:
            return checked(_on_board(job, Path(folder), measure, timeout_s, subject), subject)
        job_path, out_path = Path(folder, "job.json"), Path(folder, "out.json")
        job_path.write_text(json.dumps(job), encoding="utf-8")
        # -P keeps this folder, whose `profile.py` is also the name of a standard module, off the path.
        interpreter = [sys.executable, "-P"] if python is None else [python]
        command = [*interpreter, str(runner or RUNNER), str(job_path), str(out_path)]
        # NVML counts GPUs in PCI order; CUDA is told to do the same, so that both mean one device.
        environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTHONFAULTHANDLER": "1"}
        mend = "raise benchmark.timeout_s (--timeout) if the model is that slow"
        code, _, noise = _run(command, timeout_s, f"{subject}: not measured, the timing process", mend, environment)
        # The answer is renamed into place, so what is there is whole: a GPU driver that dies at exit spoils nothing.
        if not out_path.exists():
            raise NotMeasuredError(f"{subject}: not measured, the timing process {_end(code)}{_last(noise)}")
        return checked(json.loads(out_path.read_text(encoding="utf-8")), subject, noise)


def checked(answer: Mapping[str, Any], subject: str, noise: str = "") -> Answer:
    """Return an answer that is one, or raise what it says went wrong."""
    if answer["status"] == "ok":
        return dict(answer)
    if not {"kind", "message"} <= answer.keys():
        raise NotMeasuredError(f"{subject}: not measured, the answer is an error that does not say which")
    if answer["kind"] == "file":
        raise UserError(f"{subject}: onnxruntime cannot load it: {answer['message']}")
    if answer["kind"] == "callable":
        raise UserError(answer["message"])
    if answer["kind"] == "provider":
        raise NotMeasuredError(f"{subject}: not measured, {answer['message']}{_library(noise)}")
    raise NotMeasuredError(f"{subject}: not measured, a call failed: {answer['message']}")


def _on_board(job: Mapping[str, Any], folder: Path, measure: str, timeout_s: float, subject: str) -> Answer:
    """Write a bundle, hand it to the user's command, and read the result that it leaves or prints."""
    bundle = folder / "bundle"
    write_bundle(bundle, job)
    try:
        command = [*shlex.split(measure), str(bundle)]
    except ValueError as error:
        raise UserError(f"--measure {measure}: cannot be read as a command ({error})") from error
    mend = "look at that command, or raise benchmark.timeout_s (--timeout)"
    try:
        code, printed, noise = _run(command, timeout_s, f"{subject}: not measured, `{measure}`", mend, dict(os.environ))
    except OSError as error:
        raise NotMeasuredError(f"{subject}: not measured, `{measure}` cannot be run ({error.strerror})") from error
    if code:
        raise NotMeasuredError(f"{subject}: not measured, `{measure}` {_end(code)}{_last(noise)}")
    left = bundle / RESULT
    text = left.read_text(encoding="utf-8", errors="replace") if left.is_file() else printed
    origin = f"{subject}: not measured, what `{measure}` brought back"
    answer = read_result(text, origin)
    try:
        return sound_answer(job, answer) if answer["status"] == "ok" else answer
    except (ValueError, KeyError) as error:
        raise NotMeasuredError(f"{origin} is no answer to what was asked ({error})") from error


def read_result(text: str, subject: str) -> Answer:
    """Read the JSON of a runner. Raises NotMeasuredError for half a file, or for something else."""
    try:
        answer = parse_json(text)
    except ValueError as error:
        raise NotMeasuredError(
            f"{subject} is not a whole result of runner.py ({error}, {len(text)} characters); it has to be the file "
            f"{RESULT} in the bundle, or standard output"
        ) from error
    if not isinstance(answer, dict) or "status" not in answer:
        raise NotMeasuredError(f"{subject} is JSON, but not a result of runner.py")
    return answer


def _run(
    command: Sequence[str], timeout_s: float, subject: str, mend: str, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """Run a command in a group of its own, so that whatever it started ends with it; (exit code, output, errors)."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=os.name == "posix",
    )
    try:
        printed, noise = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        _kill(process)
        raise NotMeasuredError(f"{subject} did not end within {timeout_s:g} s and was stopped; {mend}") from error
    except BaseException:
        _kill(process)
        raise
    return process.returncode, printed.decode("utf-8", "replace"), noise.decode("utf-8", "replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    process.communicate()


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
    match = re.search(r"with error: (.+)", noise)
    if not match:
        return ""
    missing = match.group(1).strip()
    mend = "; `pip install 'onnxruntime-gpu[cuda,cudnn]'` brings CUDA's libraries"
    return f"; {missing}{mend if missing.startswith('libcu') else ''}"
