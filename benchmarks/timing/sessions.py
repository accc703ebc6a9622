"""Sessions that run where they were asked to run, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from distill import scratch
from distill.benchmarks import runner
from distill.benchmarks.onnx_file.external_data import external_files
from distill.benchmarks.onnx_file.signature import load_proto
from distill.benchmarks.target import TARGETS, Target, target_of_provider
from distill.benchmarks.timing.process import run_job
from distill.errors import NotMeasuredError, UserError

# One Relu of four numbers, readable by any onnxruntime in use.
_TINY = '<ir_version: 7, opset_import: ["": 13]> tiny (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }'


def open_session(
    path: str | Path,
    target: Target,
    *,
    profile_to: str | Path | None = None,
    optimized_to: str | Path | None = None,
) -> Any:
    """Open the file at `path` on the target's provider, with its threads and without spinning.

    `profile_to` is the prefix of a profile that the session writes, `optimized_to` the path of the optimised graph.
    Raises UserError for a missing or broken file, NotMeasuredError where the provider did not load.
    """
    external_files(Path(path), load_proto(path))
    options = runner.session_options(target.threads)
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to)
    if optimized_to is not None:
        options.optimized_model_filepath = str(optimized_to)
    try:
        return runner.open_session({"model": str(path), **target.for_runner()}, options)
    except runner.RunnerError as error:
        if error.kind == "file":
            raise UserError(f"{path}: onnxruntime cannot load it: {error}") from error
        raise NotMeasuredError(f"{path}: {error}; `python -m distill doctor` says which providers load") from error


def providers_that_load(*, timeout_s: float = 60) -> dict[str, str]:
    """Tell of every provider that it `loads`, or why not; each opens a tiny model in a process of its own.

    Tried are the providers of all targets and those of this build of onnxruntime.
    """
    import onnxruntime

    built = list(onnxruntime.get_available_providers())
    wanted = [target.provider for target in TARGETS.values()]
    answers = {}
    with scratch.folder("providers") as folder:
        path = folder / "tiny.onnx"
        onnx.save(onnx.parser.parse_model(_TINY), path)
        for provider in dict.fromkeys([*wanted, *built]):
            answers[provider] = (
                _try_provider(provider, path, timeout_s) if provider in built else "not in this build of onnxruntime"
            )
    return answers


def _try_provider(provider: str, path: Path, timeout_s: float) -> str:
    arm = {**target_of_provider(provider).for_runner(), "model": str(path), "provider_options": {}}
    try:
        run_job({"task": "open", "arms": [arm]}, timeout_s=timeout_s, subject=provider)
    except (NotMeasuredError, UserError) as error:
        return str(error).removeprefix(f"{provider}: not measured, ")
    return "loads"
