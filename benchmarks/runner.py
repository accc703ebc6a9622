"""The process that times ONNX files: `python runner.py JOB.json OUT.json`, on this machine or on a board.

It needs Python 3.8, numpy and onnxruntime and nothing else, so that this one file can be copied to a board; nothing
else runs in its process (torch's threads would be timed too), and a model that crashes takes only this process along.

The job is JSON. `task` is `time`, `inspect` (what a file is, untimed: nodes that ran, memory) or `open` (does it load).
`arms` holds for each file `model`, `inputs` (.npz, its arrays in the order of `names`), `names`, `provider`,
`provider_options`, `device` (where inputs lie: `cpu` or `cuda`) and `fallbacks` (providers for nodes that the first
cannot run, before the CPU); with a `command` the arm lives in a process of its own that is started by it and answers
to `serve` (another Python, another onnxruntime, torch). Paths are relative to the job's folder. `threads`, `pairs`,
`seconds_per_pair` and `seed` say how to time; `gate` when to stop early. The answer holds, for every session pair in
order, its turns as [arm, median seconds of a call, calls, calls that kept their core, seconds of the fastest call]:
every figure and every verdict can be computed again from it.

Protocol: turns of max(3 ms, 2 calls), of equally many calls where files are about as fast; a round is all arms in
random order, then the same in reverse; every session pair is made afresh, the arm that is created first alternates;
spinning off. What else runs on a machine only ever adds time, so adjacent turns are compared by their fastest calls,
which differ half as much as their medians do. The medians are what a user meets, so they are kept as well, without the
first fifth of each turn (another arm left its data in the cache).
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import resource
except ImportError:  # Windows does not tell when a process was interrupted
    resource = None  # type: ignore[assignment]
if TYPE_CHECKING:  # Python 3.8 could not run these
    Job = dict[str, Any]
    """What is asked for, and what is answered, are JSON: see above."""
    Answer = dict[str, Any]
    Spec = dict[str, Any]
    """An arm of a job."""
    Pair = dict[str, Any]
    """A session pair of an answer."""
    Feed = dict[str, Any]
    """The arrays of one call, by the names of a graph's inputs."""

TURN_S, TURN_CALLS = 0.003, 2
SLOW_TURN_S = 0.12  # from here on fewer calls make a turn: a cache that was lost is nothing beside such a call
WARM_AGREEMENT, WARM_MAX_S = 0.03, 3.0
TOTAL_MAX_S = 55.0
ROUNDS, PATIENCE = 20, 3.0  # rounds that a session pair should hold, for which it may take so many times its seconds
LEAST_ROUNDS = 2
MEDIAN, FASTEST = 1, 4  # places in a turn
LEAST_PAIRED = 4  # undisturbed paired turns that make a session pair's median, before spoilt ones have to help out
BIN = math.log(1.005)  # width of the bins that single calls are counted in: quantiles to half a per cent
CPU = "CPUExecutionProvider"
GUARDED = "--guarded"  # a process that ends with the one that started it
REQUESTS = ("open", "first", "hold", "turn", "end")  # that an arm answers to
# Of nvidia-ml-py: software power cap, hardware slowdown, software and hardware thermal, hardware power brake.
CLOCK_SM = 1  # NVML_CLOCK_SM
THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class RunnerError(Exception):
    """What went wrong.

    `kind` is `file` or `callable` (the user's own is at fault), `provider` (did not load) or `run` (a call failed).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


# Statistics that decide when to stop ----------------------------------------------------------------------------------


def paired_log_ratios(turns: list[tuple[int, float]], arms: int = 2, arm: int = 1) -> list[float]:
    """ln(seconds of `arm` / seconds of arm 0) of every half round, in order; above 0 where `arm` is slower.

    A half round is `arms` adjacent turns, one of each arm; a last one that is not whole is left out. Raises ValueError
    where turns that belong together are not one of each.
    """
    ratios = []
    for begin in range(0, len(turns) - arms + 1, arms):
        half = dict(turns[begin : begin + arms])
        if set(half) != set(range(arms)):
            raise ValueError(f"adjacent turns are of the arms {sorted(half)}, not one of each of {arms}")
        ratios.append(math.log(half[arm] / half[0]))
    return ratios


def sound_turns(pair: Pair, arms: int, value: int = MEDIAN) -> list[tuple[int, float]]:
    """List (arm, value) of the half rounds of a session pair that nothing spoilt, or of all where fewer than four are.

    A half round is spoilt by a GPU that was throttled, and by another process that took the core in every call of a
    turn: its slice of 3-4 ms would be added to the longer model and spare the shorter one.
    """
    size = max(arms, 2)
    whole = pair["turns"][: size * len(pair["throttled"])]
    turns = [(int(turn[0]), float(turn[value])) for turn in whole]
    clean = [not throttled for throttled in pair["throttled"]]
    for i, turn in enumerate(whole):
        clean[i // size] &= turn[3] > 0
    if sum(clean) < min(LEAST_PAIRED, len(clean)):
        return turns
    return [turn for i, turn in enumerate(turns) if clean[i // size]]


def effect(pair: Pair, arms: int = 2, arm: int = 1, value: int = FASTEST) -> float:
    """D: the median paired log ratio of `arm` to arm 0 in one session pair. Raises ValueError without a half round."""
    ratios = paired_log_ratios(sound_turns(pair, arms, value), arms, arm)
    if not ratios:
        raise ValueError("a session pair without a round")
    return median(ratios)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error, from two values or more."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def verdict(fastest: list[float], medians: list[float], tolerance: float, critical: float) -> str:
    """Judge the session pairs' D with the critical value of t; see `verdict_of`.

    The fastest calls decide; the medians can only fail, where some calls are slower and the fastest are not.
    """
    mean, error = mean_and_error(fastest)
    by_fastest = verdict_of(mean, critical * error, tolerance)
    mean, error = mean_and_error(medians)
    return "fail" if verdict_of(mean, critical * error, tolerance) == "fail" else by_fastest


def verdict_of(mean: float, half: float, tolerance: float) -> str:
    """`fail`, `improved`, `pass` or `inconclusive`, from a mean log ratio and half the width of its interval.

    Fail: surely slower than half the tolerance, and slower than the tolerance as far as one can tell. Improved is its
    mirror image. Pass: surely not slower than the tolerance.
    """
    limit = math.log1p(tolerance)
    if mean - half > limit / 2 and mean > limit:
        return "fail"
    if mean + half < -limit / 2 and mean < -limit:
        return "improved"
    return "pass" if mean + half < limit else "inconclusive"


def stands(pairs: list[Pair], arms: int, gate: Job) -> bool:
    """Whether the gate's verdict on every arm is reached; `looks` is pairs -> critical t, looked at nowhere else."""
    critical = gate["looks"].get(str(len(pairs)))
    if critical is None:
        return False
    for arm in range(1, arms):
        fastest, medians = ([effect(pair, arms, arm, value) for pair in pairs] for value in (FASTEST, MEDIAN))
        if verdict(fastest, medians, gate["tolerance"], critical) == "inconclusive":
            return False
    return True


# Sessions -------------------------------------------------------------------------------------------------------------


def preload(spec: Spec) -> str:
    """Load the CUDA libraries of pip's nvidia-* wheels, where a GPU needs them; returns what onnxruntime printed."""
    import onnxruntime

    printed = io.StringIO()
    if on_gpu(spec) and hasattr(onnxruntime, "preload_dlls"):
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


def with_fallbacks(spec: Spec) -> list[tuple[str, dict[str, str]]]:
    """List an arm's providers as onnxruntime takes them: what cannot run on one may run on the next."""
    device = {key: value for key, value in spec["provider_options"].items() if key == "device_id"}
    providers = [(spec["provider"], dict(spec["provider_options"]))]
    providers += [(name, device) for name in spec.get("fallbacks", ())]
    return providers if spec["provider"] == CPU else [*providers, (CPU, {})]


def on_gpu(spec: Spec) -> bool:
    """Whether an arm's inputs and outputs stay on a GPU."""
    return bool(spec.get("device", "cpu") != "cpu")


def clean(error: Exception) -> str:
    """Keep the part of an onnxruntime message that says something, on one line."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text


def told(error: Exception) -> dict[str, str]:
    """Tell what went wrong as a part of an answer: its `kind`, and a `message`."""
    if isinstance(error, RunnerError):
        return {"kind": error.kind, "message": str(error)}
    return {"kind": "run", "message": clean(error)}


def open_session(spec: Spec, options: Any) -> Any:
    """Open an arm's file on the arm's provider and no other, or raise RunnerError saying whose fault it is."""
    import onnxruntime

    path, provider = str(spec["model"]), spec["provider"]
    if provider not in onnxruntime.get_available_providers():
        has = ", ".join(onnxruntime.get_available_providers())
        raise RunnerError("provider", "this build of onnxruntime has no " + provider + ", only " + has)
    hint = preload(spec)
    try:
        # Without fallback: by default a failing provider is replaced by the CPU, at creation and in any later run().
        session = onnxruntime.InferenceSession(path, options, providers=with_fallbacks(spec), enable_fallback=0)
    except Exception as error:
        if provider == CPU or not opens_on_cpu(path):
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
        onnxruntime.InferenceSession(path, session_options(1), providers=[CPU])
    except Exception:
        return False
    return True


def load_feeds(path: str, names: list[str]) -> Feed:
    """Read an arm's inputs; strings travel as fixed-width text, since an .npz of objects would be a pickle."""
    feeds: Feed = {}
    with np.load(path, allow_pickle=False) as stored:
        for index, name in enumerate(names):
            value = stored[f"arr_{index}"]
            feeds[name] = value.astype(object) if value.dtype.kind == "U" else value
    return feeds


# Arms -----------------------------------------------------------------------------------------------------------------


class Arm:
    """One file, its session and its inputs in this process.

    `call` is what is timed: on a device inputs and outputs stay there, and `whole` is with the copies.
    """

    def __init__(self, spec: Spec, threads: int) -> None:
        self.spec, self.threads = spec, threads
        self.calls = TURN_CALLS
        self.seen: Counter[int] = Counter()
        self.call: Callable[[], object]
        self.whole: Callable[[], Any]

    def open(self) -> float:
        """Open a fresh session; returns the seconds that it took."""
        feeds = load_feeds(self.spec["inputs"], self.spec["names"])
        begin = time.perf_counter()
        session = open_session(self.spec, session_options(self.threads))
        seconds = time.perf_counter() - begin
        self.bind(session, feeds)
        self.seen.clear()
        return seconds

    def bind(self, session: Any, feeds: Feed) -> None:
        """Make the calls that are timed."""
        self.whole = self.call = lambda: session.run(None, feeds)
        if on_gpu(self.spec):
            self.call = bound_call(session, feeds, self.spec["device"])

    def first(self) -> float:
        """Call once, which allocates, searches algorithms, builds engines; returns the seconds that it took."""
        return timed_calls(self.call, 1)[0][0]

    def hold(self, calls: int) -> None:
        """Let a turn hold so many calls, and forget those that were only to find out."""
        self.seen.clear()
        self.calls = calls

    def turn(self) -> list[float]:
        """Take one turn: [median seconds of a call, calls that counted, how many ran undisturbed, the fastest call].

        Where some calls ran undisturbed the median is theirs: a call that lost its core to another process says more
        about the scheduler's slice than about the model.
        """
        times, alone = timed_calls(self.call, self.calls)
        return summed_up(times, alone, self.seen)

    def end(self) -> Answer:
        """Close the session; say whether all outputs were finite, what calls with copies took, and count the calls."""
        arrays = [value for value in self.whole() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
        finite = bool(all(np.isfinite(value).all() for value in arrays))
        whole = None
        if on_gpu(self.spec):
            whole = median(timed_calls(self.whole, self.calls)[0])
        del self.call, self.whole
        gc.collect()
        return {"finite": finite, "end_to_end_s": whole, "calls": dict(self.seen)}


class RemoteArm:
    """The same in a process of its own, which waits on a pipe while it is not its turn."""

    def __init__(self, spec: Spec, threads: int) -> None:
        self.process = subprocess.Popen(spec["command"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.model = spec["model"]
        self.ask("make", {**spec, "command": None}, threads)

    def ask(self, request: str, *values: Any) -> Any:
        """Send one request and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([request, *values]).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RunnerError("run", f"{self.model}: its process died ({code})")
        answer = json.loads(line.decode())
        if "kind" in answer:
            raise RunnerError(answer["kind"], answer["message"])
        return answer["value"]

    # See Arm; after `end` the process stays, and makes a fresh session next time.
    open = partialmethod(ask, "open")
    first = partialmethod(ask, "first")
    hold = partialmethod(ask, "hold")
    turn = partialmethod(ask, "turn")
    end = partialmethod(ask, "end")


def serve(kind: Any = Arm) -> None:
    """Answer a RemoteArm's requests on standard input until it is closed."""
    arm: Any = None
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    for line in sys.stdin:
        request, *values = json.loads(line)
        try:
            if request == "make":
                arm, value = kind(*values), None
            else:
                value = {name: getattr(arm, name) for name in REQUESTS}[request](*values)
            answer: Answer = {"value": value}
        except Exception as error:
            answer = told(error)
        out.write(json.dumps(answer) + "\n")
        out.flush()


def bound_call(session: Any, feeds: Feed, device: str) -> Callable[[], Any]:
    """Make a call whose inputs and outputs stay on the device, timed without copies; it returns the binding."""
    import onnxruntime

    binding = session.io_binding()
    for name, value in feeds.items():
        if value.dtype == object:
            binding.bind_cpu_input(name, value)
        else:
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0))
    outputs = [output.name for output in session.get_outputs()]
    captured = any(chosen.get("enable_cuda_graph") == "1" for chosen in session.get_provider_options().values())
    if captured and all(value.dtype != object for value in feeds.values()):
        # A captured graph writes to the same addresses in every call, so the outputs need buffers of their own.
        for name, value in zip(outputs, session.run(None, feeds)):  # noqa: B905
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0))
    else:
        for name in outputs:
            binding.bind_output(name, device, 0)

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
    alone: list[bool] = []
    for _ in range(count):
        before = interruptions()
        begin = clock()
        call()
        times.append(clock() - begin)
        alone.append(interruptions() == before)
    return times, alone


def summed_up(times: list[float], alone: list[bool], seen: Counter[int]) -> list[float]:
    """Sum up the calls of a turn, as `Arm.turn` returns them, and count them in `seen` by their length."""
    fastest = min(times)
    dropped = -(-len(times) // 5) if len(times) > 1 else 0
    times, alone = times[dropped:], alone[dropped:]
    for seconds in times:
        seen[round(math.log(max(seconds, 1e-9)) / BIN)] += 1
    calm = [seconds for seconds, undisturbed in zip(times, alone) if undisturbed]  # noqa: B905 - strict came with Python 3.10
    return [median(calm or times), len(times), len(calm), fastest]


class Gpu:
    """Clock, throttle reasons and energy of the GPU; silent where nvidia-ml-py is not installed."""

    def __init__(self, device: str) -> None:
        self.nvml: Any = None
        if device == "cuda":
            with contextlib.suppress(Exception):  # informational: a board without NVML is timed all the same
                import pynvml as nvml

                nvml.nvmlInit()
                # The device that CUDA calls 0.
                chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
                by_index = chosen.isdigit()
                find = nvml.nvmlDeviceGetHandleByIndex if by_index else nvml.nvmlDeviceGetHandleByUUID
                self.handle, self.nvml = find(int(chosen) if by_index else chosen), nvml

    def read(self, name: str, *values: int) -> Any:
        """Read what NVML says of the device, or None."""
        with contextlib.suppress(Exception):
            return getattr(self.nvml, "nvmlDeviceGet" + name)(self.handle, *values)
        return None

    def clock_mhz(self) -> Any:
        """Read the clock of the multiprocessors, or None."""
        return self.read("ClockInfo", CLOCK_SM)

    def energy_j(self) -> Any:
        """Read the energy that the GPU has used since its driver was loaded, or None."""
        millijoules = self.read("TotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def throttled(self) -> bool:
        """Whether the GPU is held back by heat or power right now."""
        return bool((self.read("CurrentClocksThrottleReasons") or 0) & THROTTLED)


# Timing ---------------------------------------------------------------------------------------------------------------


def settled(turns: list[float]) -> bool:
    """Whether a warm-up is over: the last three turns agree within 3 %, or they are no faster than those before.

    On a busy machine turns never agree, but one that is warm does not get faster either.
    """
    last, before = turns[-3:], turns[:-3]
    if len(last) < 3:
        return False
    agree = max(last) <= (1 + WARM_AGREEMENT) * min(last)
    return agree or (len(before) >= 3 and min(last) >= (1 - WARM_AGREEMENT) * min(before))


def calls_for(seconds: list[float]) -> list[int]:
    """Choose the calls of a turn for arms whose calls take so long: as many as fill it.

    Arms that are about as fast take equally many, since the fastest of more calls is a little faster.
    """
    wanted = []
    for call_s in seconds:
        calls = max(TURN_CALLS, int(TURN_S / max(call_s, 1e-9)) + 1)
        if calls * call_s > SLOW_TURN_S:
            calls = max(1, min(calls, int(SLOW_TURN_S / call_s)))
        wanted.append(calls)
    most = max(wanted)
    return [most if 2 * calls >= most else calls for calls in wanted]


def warm_up(arms: list[Any], order: list[int], limit_s: float) -> Answer:
    """Take turns until every arm has settled, at most `limit_s`; say how long that took and whether it came to pass."""
    first_s = sum(arms[arm].first() for arm in order)
    begin = time.perf_counter()
    seconds = [arm.first() for arm in arms]
    medians: list[list[float]] = [[] for _ in arms]
    while True:
        for arm, calls in zip(arms, calls_for(seconds)):  # noqa: B905
            arm.hold(calls)
        spent = time.perf_counter() - begin
        is_settled = all(settled(turns) for turns in medians)
        if is_settled or spent >= limit_s:
            return {"first_s": first_s, "warm_s": spent, "settled": is_settled}
        for arm in order:
            medians[arm].append(arms[arm].turn()[0])
            seconds[arm] = median(medians[arm][-3:])


def take_turns(arms: list[Any], seconds: float, patience: float, gpu: Gpu, rng: random.Random) -> Answer:
    """Whole rounds for `seconds`, and on up to `patience` while they are few; a single arm is paired with itself."""
    order = list(range(len(arms)))
    half = max(len(arms), 2)
    turns: list[list[float]] = []
    throttled: list[bool] = []
    gc.collect()
    gc.disable()
    begin, energy = time.perf_counter(), gpu.energy_j()
    while True:
        rounds, spent = len(turns) / (2 * half), time.perf_counter() - begin
        enough = spent >= seconds and rounds >= ROUNDS
        if rounds >= LEAST_ROUNDS and (enough or spent >= patience):
            break
        rng.shuffle(order)
        for arm in [*order, *reversed(order)] if len(order) > 1 else [0, 0]:
            turns.append([arm, *arms[arm].turn()])
            if len(turns) % half == 0:
                throttled.append(gpu.throttled())
    gc.enable()
    used = gpu.energy_j()
    joules = None if energy is None or used is None else used - energy
    return {"turns": turns, "throttled": throttled, "clock_mhz": gpu.clock_mhz(), "energy_j": joules}


def time_pair(job: Job, arms: list[Any], index: int, gpu: Gpu) -> Answer:
    """Open every arm afresh, another one first than before, warm up, and let them take turns for what is left."""
    seconds = job["seconds_per_pair"]
    order = [(index + step) % len(arms) for step in range(len(arms))]
    load_s = {arm: arms[arm].open() for arm in order}
    # What a process pays once is paid in the first pair; later ones settle fast or not at all.
    warm = warm_up(arms, order, min(WARM_MAX_S, seconds / 2) if index else WARM_MAX_S)
    left = max(seconds - warm["warm_s"], seconds / 2)
    timed = take_turns(arms, left, PATIENCE * seconds, gpu, random.Random(job["seed"] * 1000 + index))
    ends = [arm.end() for arm in arms]
    whole = [end["end_to_end_s"] for end in ends]
    return {
        "first": order[0],
        "load_s": [load_s[arm] for arm in sorted(load_s)],
        "finite": [end["finite"] for end in ends],
        "end_to_end_s": [] if None in whole else whole,
        "calls": [end["calls"] for end in ends],
        **warm,
        **timed,
    }


def make_arms(job: Job) -> list[Any]:
    """Make the arms, all in this process or, as soon as one needs a process of its own, each in its own."""
    remote = any(spec.get("command") for spec in job["arms"])
    own = [sys.executable, str(Path(__file__).resolve()), "--serve"]
    specs = [{**spec, "command": spec.get("command") or own} if remote else spec for spec in job["arms"]]
    return [(RemoteArm if remote else Arm)(spec, job["threads"]) for spec in specs]


def time_arms(job: Job) -> Answer:
    """Session pairs until the gate's verdict stands; at least two, and no more once the next would take too long."""
    gpu, begin, loading = Gpu(job["arms"][0].get("device", "cpu")), time.perf_counter(), 0.0
    arms, pairs = make_arms(job), []  # type: list[Any], list[dict[str, Any]]
    limit = job.get("total_s") or TOTAL_MAX_S
    for index in range(job["pairs"]):
        spent = time.perf_counter() - begin - loading
        if index >= 2 and spent * (index + 1) / index > limit:
            break
        pairs.append(time_pair(job, arms, index, gpu))
        loading += sum(pairs[-1]["load_s"]) + pairs[-1]["first_s"]
        if job.get("gate") and stands(pairs, len(arms), job["gate"]):
            break
    return {"pairs": pairs, "provider": job["arms"][0]["provider"], "seconds": time.perf_counter() - begin}


# Untimed --------------------------------------------------------------------------------------------------------------


def memory_bytes() -> int | None:
    """Read the most memory that this process has held since `forget_peak`; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let the most memory held be what is held now, so that importing is not taken for the model's; Linux only."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def inspect(job: Job) -> Answer:
    """Open the first arm's file in a session that is never timed: memory, load time, outputs, and the nodes that ran.

    `peak_bytes` is what opening and one call added to the most that this process held before.
    """
    spec = job["arms"][0]
    feeds = load_feeds(spec["inputs"], spec["names"])
    import onnxruntime  # noqa: F401 - its own memory is not the model's

    forget_peak()
    before, begin = memory_bytes(), time.perf_counter()
    session = open_session(spec, session_options(job["threads"]))
    load_s = time.perf_counter() - begin
    outputs = session.run(None, feeds)
    peak, after = memory_bytes(), {}
    for info, value in zip(session.get_outputs(), outputs):  # noqa: B905
        array = np.asarray(value)
        finite = bool(np.isfinite(array).all()) if array.dtype.kind == "f" else True
        after[info.name] = {"shape": list(array.shape), "dtype": str(array.dtype), "finite": finite}
    del session
    return {
        "load_s": load_s,
        "peak_bytes": None if before is None or peak is None else peak - before,
        "outputs": after,
        "nodes": profiled(job, spec, feeds),
    }


def profiled(job: Job, spec: Spec, feeds: Feed) -> list[Any]:
    """List the nodes that one call executed: [name, operator, provider, shapes of its inputs]."""
    options = session_options(job["threads"])
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(job["folder"], "profile"))
    session = open_session(spec, options)
    try:
        session.run(None, feeds)
    finally:
        # The profile is a file of the session: closed in every case, or its folder could not be removed.
        written = session.end_profiling()
    nodes = []
    for event in json.loads(Path(written).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            details = event.get("args", {})
            shapes = [shape for typed in details.get("input_type_shape", ()) for shape in typed.values()]
            name = event["name"][: -len("_kernel_time")]
            nodes.append([name, str(details.get("op_name", "?")), str(details.get("provider", "?")), shapes])
    Path(written).unlink()
    return nodes


def try_open(job: Job) -> Answer:
    """Only open the file, to see whether the provider loads."""
    spec = job["arms"][0]
    open_session(spec, session_options(1))
    return {"provider": spec["provider"]}


def whole_bundle(job: Job) -> Answer:
    """Everything that a board is asked for at once, job by job, each in a process of its own.

    So memory is one file's, and a file that kills its process leaves the others' answers. Where this process is ended,
    the process that it waits for ends too; what a kill leaves in the folder `.work` is removed next time.
    """
    work = Path(job["folder"], ".work")
    shutil.rmtree(str(work), ignore_errors=True)
    work.mkdir()
    end_by_exception()
    try:
        return {"answers": [answer_of(inner, number, job, work) for number, inner in enumerate(job["jobs"], start=1)]}
    finally:
        shutil.rmtree(str(work), ignore_errors=True)


def answer_of(inner: Job, number: int, job: Job, work: Path) -> Answer:
    """Have a process of its own do one job of a bundle."""
    with contextlib.suppress(OSError):  # nobody may be listening any more
        print(f"{number} of {len(job['jobs'])}: {inner['task']}", flush=True)
    task, out = work / "job.json", work / "result.json"
    task.write_text(json.dumps(inner), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).resolve()), str(task), str(out), GUARDED]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if not out.exists():
        return {"status": "error", "kind": "run", "message": f"its process ended with exit code {code}"}
    answer: Answer = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    return answer


def end_by_exception() -> None:
    """Let the signals that end this process do so by an exception, so that what it made is removed."""

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would cut that short
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # under nohup it stays ignored
            signal.signal(number, end)


def end_with_parent() -> None:
    """End this process when standard input ends, which the process that started it holds open while it lives."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def about() -> Answer:
    """Say what this machine is, as far as the standard library knows; the sender has no other way to see."""
    import platform

    import onnxruntime

    flags, model = "", platform.processor()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features") and not flags:
                flags = value.strip()
            if key.strip() in ("model name", "Hardware", "Model"):
                model = value.strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": platform.machine(),
        "cpu": model,
        "flags": sorted(flags.split()),
        "cores": cores,
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "providers": list(onnxruntime.get_available_providers()),
    }


TASKS = {"time": time_arms, "inspect": inspect, "open": try_open, "bundle": whole_bundle}


def answer_to(job: Job) -> Answer:
    """Do one job; what went wrong is an answer too."""
    try:
        return {"status": "ok", **TASKS[job["task"]](job)}
    except Exception as error:
        return {"status": "error", **told(error)}


def main(job_path: str, out_path: str) -> None:
    """Do the job and write the answer, which is either whole or not there."""
    folder = Path(job_path).resolve().parent
    out = Path(out_path).resolve()
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    for inner in [job, *job.get("jobs", [])]:
        for arm in inner.get("arms", []):
            for key in ("model", "inputs"):
                if key in arm:
                    arm[key] = str(folder / arm[key])
    answer = answer_to({**job, "folder": str(folder)})
    answer["board"], answer["sent"] = about(), job.get("sent")
    partial = Path(str(out) + ".partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    with partial.open("x", encoding="utf-8") as file:  # a link of that name is not followed
        file.write(json.dumps(answer))
    os.replace(str(partial), str(out))


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        if GUARDED in sys.argv:
            sys.argv.remove(GUARDED)
            end_with_parent()
        main(*(sys.argv[1:] or ["job.json", "result.json"]))
