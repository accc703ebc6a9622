"""Have `runner.py` do a job, here or on a board, and turn every way in which that fails into an error with a name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from distill import scratch
from distill.benchmarks.timing.answers import sound_answer
from distill.benchmarks.timing.bundle import RESULT, RUNNER, write_bundle
from distill.documents import parse_json
from distill.errors import NotMeasuredError, UserError

if TYPE_CHECKING:
    from distill.benchmarks.runner import Answer

MOST_PRINTED = 64 << 20
"""Bytes that a process may print: far more than any result, and far less than memory."""
# A guard in the group of the command waits for the end of a pipe that only this process holds: so the command ends with
# this process, however that ends.
_GUARDED = (
    *("/bin/sh", "-c"),
    'exec 3<&0 </dev/null; ({ read -r _ <&3; kill -KILL 0; } >/dev/null 2>&1 &); exec 3<&-; exec "$@"',
    "sh",
)


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
    with scratch.folder("bench") as folder:
        if measure is not None:
            return checked(_on_board(job, folder, measure, timeout_s, subject), subject)
        job_path, out_path = folder / "job.json", folder / "out.json"
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
            if os.strerror(errno.ENOSPC) in noise:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
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
    if left.is_file() and left.stat().st_size > MOST_PRINTED:
        raise NotMeasuredError(f"{subject}: not measured, `{measure}` brought back more than {MOST_PRINTED >> 20} MiB")
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
    """Run a command in a group of its own, so that whatever it started ends with it; (exit code, output, errors).

    Raises NotMeasuredError where it does not end, or prints without end; OSError where there is no such command.
    """
    guarded = os.name == "posix" and os.access(_GUARDED[0], os.X_OK)
    if guarded and shutil.which(command[0]) is None:
        number = errno.EACCES if Path(command[0]).exists() else errno.ENOENT
        raise OSError(number, os.strerror(number), command[0])
    deadline = time.monotonic() + timeout_s
    process = subprocess.Popen(
        [*_GUARDED, *command] if guarded else command,
        stdin=subprocess.PIPE if guarded else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=os.name == "posix",
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        outputs = [_Output(process, pipe) for pipe in (process.stdout, process.stderr)]
        for output in outputs:
            output.join(min(deadline - time.monotonic(), threading.TIMEOUT_MAX))
        if not any(output.is_alive() or output.is_endless for output in outputs):
            process.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        pass
    finally:
        ended = process.poll() is not None
        _kill(process)
    for output in outputs:  # what left the group may hold a pipe open
        output.join(1)
    if any(output.is_endless for output in outputs):
        raise NotMeasuredError(f"{subject} printed more than {MOST_PRINTED >> 20} MiB and was stopped; {mend}")
    if not ended:
        raise NotMeasuredError(f"{subject} did not end within {timeout_s:g} s and was stopped; {mend}")
    printed, noise = (output.kept.decode("utf-8", "replace") for output in outputs)
    return process.returncode, printed, noise


class _Output(threading.Thread):
    """Reads what a process prints to a pipe, and stops the process where that has no end."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._process, self._pipe = process, pipe
        self.kept = bytearray()
        self.is_endless = False
        self.start()

    def run(self) -> None:
        """Read to the end of the pipe."""
        with self._pipe, contextlib.suppress(OSError):
            while chunk := os.read(self._pipe.fileno(), 1 << 16):
                self.kept += chunk
                if len(self.kept) > MOST_PRINTED:
                    self.is_endless = True
                    self.kept.clear()
                    _kill_group(self._process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started, at once."""
    _kill_group(process)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()


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
