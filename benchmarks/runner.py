"""The process that times ONNX files: `python runner.py JOB.json OUT.json`.

It needs Python 3.8, numpy and onnxruntime and nothing else, so that this one file can be copied to a board; nothing
else runs in its process (torch's threads would be timed too), and a model that crashes takes only this process along.

The job is JSON: `task` (`time`, or `open` to see whether a provider loads), `models` (one path an arm, one or two),
`inputs` (one .npz an arm, its arrays in the order of the arm's `names`), `names`, `provider`, `provider_options`,
`threads`, `session_pairs`, `seconds_per_pair`. The answer holds, for every session pair in order, its turns as [arm,
median seconds of a call, calls, calls that kept their core]: all figures can be computed again from it.

Protocol: turns of max(3 ms, 4 calls) in ABBA order, the first fifth of each turn dropped (the other arm left its data
in the cache); every session pair is made afresh, the arm that is created first alternates; spinning off.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows does not tell when a process was interrupted
    resource = None  # type: ignore[assignment]

TURN_S, TURN_CALLS = 0.003, 4
SLOW_TURN_S = 0.25  # from here on fewer calls make a turn: a cache that was lost is nothing beside such a call
WARM_AGREEMENT, WARM_MAX_S = 0.03, 3.0
TOTAL_MAX_S = 60.0
DEVICE_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
# Of nvidia-ml-py: software power cap, hardware slowdown, software and hardware thermal, hardware power brake.
THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class RunnerError(Exception):
    """What went wrong; `kind` is `file` (the user's file), `provider` (did not load) or `run` (a call failed)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def preload(provider: str) -> str:
    """Load the CUDA libraries of pip's nvidia-* wheels, where this onnxruntime knows how; returns what it printed."""
    import onnxruntime

    printed = io.StringIO()
    if provider in DEVICE_PROVIDERS and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(printed), contextlib.suppress(Exception):
            onnxruntime.preload_dlls()
    return printed.getvalue().strip()


def session_options(threads: int) -> Any:
    """Options that leave nothing to the machine's defaults: threads given, spinning off, all optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # A thread that spins after run() returned would burn the core under the other arm.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised; logged as well it would be said twice
    return options


def with_fallbacks(provider: str, provider_options: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """List providers as onnxruntime takes them: what cannot run on the device may run on the next one down."""
    chosen = [(provider, dict(provider_options))]
    if provider == "TensorrtExecutionProvider":
        kept = {key: value for key, value in provider_options.items() if key == "device_id"}
        chosen.append(("CUDAExecutionProvider", kept))
    if provider != "CPUExecutionProvider":
        chosen.append(("CPUExecutionProvider", {}))
    return chosen


def clean(error: Exception) -> str:
    """Keep the part of an onnxruntime message that says something, on one line."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text


def open_session(path: str, provider: str, provider_options: dict[str, str], options: Any) -> Any:
    """Open a session whose first provider is `provider`, or raise RunnerError saying whose fault it is."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        has = ", ".join(onnxruntime.get_available_providers())
        raise RunnerError("provider", "this build of onnxruntime has no " + provider + ", only " + has)
    hint = preload(provider)
    try:
        # Without fallback: by default a failing provider is replaced by the CPU, at creation and in any later run().
        session = onnxruntime.InferenceSession(
            str(path), options, providers=with_fallbacks(provider, provider_options), enable_fallback=0
        )
    except Exception as error:
        if provider == "CPUExecutionProvider" or not opens_on_cpu(path):
            raise RunnerError("file", clean(error)) from error
        raise RunnerError("provider", provider + " did not load: " + clean(error)) from error
    got = session.get_providers()[0]
    if got != provider:
        why = " (" + hint.splitlines()[0] + ")" if hint else ""
        raise RunnerError("provider", provider + " was asked for, " + got + " runs instead" + why)
    return session


def opens_on_cpu(path: str) -> bool:
    """Whether the file is sound, which the CPU tells apart from a provider that is not."""
    import onnxruntime

    try:
        onnxruntime.InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def load_feeds(path: str, names: list[str]) -> dict[str, Any]:
    """Read an arm's inputs; strings travel as fixed-width text, since an .npz of objects would be a pickle."""
    feeds: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as stored:
        for index, name in enumerate(names):
            value = stored[f"arr_{index}"]
            feeds[name] = value.astype(object) if value.dtype.kind == "U" else value
    return feeds


class Arm:
    """One open session and its inputs: `call` is what is timed, `whole` is with copies to and from the device."""

    def __init__(self, session: Any, feeds: dict[str, Any], provider: str) -> None:
        self.calls = TURN_CALLS
        self.whole: Callable[[], Any] = lambda: session.run(None, feeds)
        self.call: Callable[[], object] = self.whole
        if provider in DEVICE_PROVIDERS:
            self.call = bound_call(session, feeds)

    def turn(self) -> tuple[float, int, int]:
        """Take one turn: (median seconds of a call, calls that counted, how many of them ran undisturbed).

        Where some calls ran undisturbed the median is theirs: a call that lost its core to another process says more
        about the scheduler's slice than about the model.
        """
        times, clean = timed_calls(self.call, self.calls)
        dropped = -(-self.calls // 5) if self.calls > 1 else 0
        times, clean = times[dropped:], clean[dropped:]
        calm = [seconds for seconds, alone in zip(times, clean) if alone]  # noqa: B905 - strict came with Python 3.10
        return middle(calm or times), len(times), len(calm)

    def size_turn(self, seconds: float) -> None:
        """Choose the calls that fill a turn when one takes `seconds`."""
        self.calls = max(TURN_CALLS, int(TURN_S / max(seconds, 1e-9)) + 1)
        if self.calls * seconds > SLOW_TURN_S:
            self.calls = max(1, min(self.calls, int(SLOW_TURN_S / seconds)))

    def finite(self) -> bool:
        """Whether all floating-point outputs are finite."""
        arrays = [value for value in self.whole() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
        return bool(all(np.isfinite(value).all() for value in arrays))


def bound_call(session: Any, feeds: dict[str, Any], device: str = "cuda") -> Callable[[], Any]:
    """Make a call whose inputs and outputs stay on the device, timed without copies; it returns the binding."""
    import onnxruntime

    binding = session.io_binding()
    for name, value in feeds.items():
        if value.dtype == object:
            binding.bind_cpu_input(name, value)
        else:
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device, 0)

    def call() -> Any:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return call


def interruptions() -> int:
    """Count how often the system took the core away from this process so far; 0 where it does not tell."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def timed_calls(call: Callable[[], object], count: int) -> tuple[list[float], list[bool]]:
    """Time `count` calls: the seconds of each, and whether it kept its core throughout."""
    clock = time.perf_counter
    times: list[float] = []
    clean: list[bool] = []
    for _ in range(count):
        before = interruptions()
        begin = clock()
        call()
        times.append(clock() - begin)
        clean.append(interruptions() == before)
    return times, clean


def middle(values: list[float]) -> float:
    """Return the median."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


class Gpu:
    """Clock and throttle reasons of the GPU; silent where nvidia-ml-py is not installed."""

    def __init__(self, provider: str) -> None:
        self.nvml: Any = None
        self.handle: Any = None
        if provider in DEVICE_PROVIDERS:
            try:
                import pynvml

                pynvml.nvmlInit()
                self.handle, self.nvml = self.first(pynvml), pynvml
            except Exception:  # informational: a board without NVML is timed all the same
                self.handle = None

    @staticmethod
    def first(nvml: Any) -> Any:
        """Find the device that CUDA calls 0."""
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
        if chosen.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(chosen))
        return nvml.nvmlDeviceGetHandleByUUID(chosen)

    def clock_mhz(self) -> int | None:
        """Read the clock of the multiprocessors, or None."""
        with contextlib.suppress(Exception):
            return self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM) if self.nvml else None
        return None

    def throttled(self) -> bool:
        """Whether the GPU is held back by heat or power right now."""
        with contextlib.suppress(Exception):
            if self.nvml:
                return bool(self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle) & THROTTLED)
        return False


def warm_up(arms: dict[int, Arm], order: list[int], limit_s: float) -> dict[str, Any]:
    """Take turns until the last three of every arm agree within 3 %, at most `limit_s`; say how long and whether."""
    begin = time.perf_counter()
    for arm in order:
        arms[arm].call()  # the first call allocates, searches algorithms, builds engines: it may take minutes
    first_s, begin = time.perf_counter() - begin, time.perf_counter()
    recent: dict[int, list[float]] = {}
    for arm in order:
        arms[arm].size_turn(timed_calls(arms[arm].call, 1)[0][0])
        recent[arm] = []
    while True:
        for arm in order:
            recent[arm] = [*recent[arm][-2:], arms[arm].turn()[0]]
            arms[arm].size_turn(middle(recent[arm]))
        spent = time.perf_counter() - begin
        settled = all(len(t) == 3 and max(t) <= (1 + WARM_AGREEMENT) * min(t) for t in recent.values())
        if settled or spent >= limit_s:
            return {"first_s": first_s, "warm_s": spent, "settled": settled}


def take_turns(arms: dict[int, Arm], order: list[int], seconds: float, gpu: Gpu) -> dict[str, Any]:
    """Whole rounds of ABBA for `seconds`, at least one; a single arm is paired with itself."""
    round_ = [*order, *reversed(order)] if len(order) > 1 else [order[0]] * 2
    turns: list[list[float]] = []
    throttled: list[bool] = []
    gc.collect()
    gc.disable()
    end = time.perf_counter() + seconds
    while not turns or time.perf_counter() < end:
        for arm in round_:
            turns.append([arm, *arms[arm].turn()])
            if len(turns) % 2 == 0:
                throttled.append(gpu.throttled())
    gc.enable()
    return {"turns": turns, "throttled": throttled, "clock_mhz": gpu.clock_mhz()}


def time_pair(job: dict[str, Any], first: int, limit_s: float, left_s: float, gpu: Gpu) -> dict[str, Any]:
    """Open every arm afresh, arm `first` before the other, warm up, and let them take turns for what is left."""
    order = [first, 1 - first] if len(job["models"]) > 1 else [0]
    arms, load_s = {}, {}
    for arm in order:
        begin = time.perf_counter()
        options = session_options(job["threads"])
        session = open_session(job["models"][arm], job["provider"], job["provider_options"], options)
        load_s[arm] = time.perf_counter() - begin
        arms[arm] = Arm(session, load_feeds(job["inputs"][arm], job["names"][arm]), job["provider"])
    warm = warm_up(arms, order, limit_s)
    finite = [arms[arm].finite() for arm in sorted(arms)]
    timed = take_turns(arms, order, max(left_s - warm["warm_s"], job["seconds_per_pair"] / 3), gpu)
    whole = []
    if job["provider"] in DEVICE_PROVIDERS:
        whole = [middle(timed_calls(arms[arm].whole, arms[arm].calls)[0]) for arm in sorted(arms)]
    loads = [load_s[arm] for arm in sorted(arms)]
    return {"first": first, "load_s": loads, "finite": finite, "end_to_end_s": whole, **warm, **timed}


def time_arms(job: dict[str, Any]) -> dict[str, Any]:
    """All session pairs of a job; at least two, and no more once the next would take the whole over a minute."""
    gpu, begin, loading = Gpu(job["provider"]), time.perf_counter(), 0.0
    pairs: list[dict[str, Any]] = []
    for index in range(job["session_pairs"]):
        spent = time.perf_counter() - begin - loading
        if index >= 2 and spent * (index + 1) / index > TOTAL_MAX_S:
            break
        # What a process pays once is paid in the first pair; later ones settle fast or not at all.
        limit_s = WARM_MAX_S if not index else min(WARM_MAX_S, job["seconds_per_pair"] / 2)
        # A long warm-up is made good by the pairs that follow, which keep a third of their time in any case.
        left_s = (index + 1) * job["seconds_per_pair"] - spent
        try:
            pairs.append(time_pair(job, index % 2 if len(job["models"]) > 1 else 0, limit_s, left_s, gpu))
        except (RunnerError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise RunnerError("run", clean(error)) from error
        loading += sum(pairs[-1]["load_s"]) + pairs[-1]["first_s"]
    return {"pairs": pairs, "provider": job["provider"]}


def try_open(job: dict[str, Any]) -> dict[str, Any]:
    """Only open the file, to see whether the provider loads."""
    open_session(job["models"][0], job["provider"], job["provider_options"], session_options(1))
    return {"provider": job["provider"]}


TASKS = {"time": time_arms, "open": try_open}


def main(job_path: str, out_path: str) -> None:
    """Do the job and write the answer, which is either whole or not there."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    try:
        answer = {"status": "ok", **TASKS[job["task"]](job)}
    except RunnerError as error:
        answer = {"status": "error", "kind": error.kind, "message": str(error)}
    answer["python"] = sys.version.split()[0]
    partial = Path(str(out_path) + ".partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    os.replace(str(partial), str(out_path))


if __name__ == "__main__":
    main(*sys.argv[1:])
