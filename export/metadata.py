"""What a model file says about itself, and which runtimes have opened it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import ModelProto, helper

from distill.errors import NotMeasuredError, UserError
from distill.export.parity_check import first_line, session_of

from .graph import copy_of

LABELS = "labels"
_LOAD = (
    "import sys, onnxruntime as o\n"
    "s = o.SessionOptions(); s.log_severity_level = 4\n"
    "o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider'])\n"
    "print('loaded with ' + o.__version__)\n"
)


def write_metadata(proto: ModelProto, entries: Mapping[str, str], *, labels: Sequence[str] | None = None) -> ModelProto:
    """Return the model with these metadata entries added; an entry of the same key is replaced.

    ``labels``, the names of the classes in order, go under the key "labels" as JSON. Keys are written sorted, so that
    equal entries give equal bytes.

    Raises:
        UserError: a key or a value is not text.
    """
    for key, value in entries.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UserError(f"metadata {key!r}={value!r}: keys and values of model metadata are text")
    copy = copy_of(proto)
    merged = {entry.key: entry.value for entry in copy.metadata_props} | dict(entries)
    if labels is not None:
        merged[LABELS] = json.dumps([str(label) for label in labels], ensure_ascii=False)
    del copy.metadata_props[:]
    helper.set_model_props(copy, dict(sorted(merged.items())))
    return copy


def read_metadata(model: str | Path | ModelProto) -> dict[str, str]:
    """Return a model's metadata entries.

    Raises:
        UserError: the file is missing or is not an ONNX model.
    """
    if not isinstance(model, ModelProto):
        try:
            model = onnx.load(os.fspath(model), load_external_data=False)
        except Exception as error:  # the parser's error class depends on the protobuf backend
            raise UserError(f"{model}: not an ONNX model: {first_line(error)}") from error
    return {entry.key: entry.value for entry in model.metadata_props}


def read_labels(model: str | Path | ModelProto) -> list[str] | None:
    """Return the class names that a model carries, or None."""
    written = read_metadata(model).get(LABELS)
    return None if written is None else [str(label) for label in json.loads(written)]


def loaded_with(model: str | Path | ModelProto | None = None) -> str:
    """Return the onnxruntime version of this process, after it has opened the model, where one is given.

    Raises:
        UserError: this onnxruntime cannot load the model.
    """
    if model is not None:
        session_of(model, threads=1)
    return str(ort.__version__)


def loads_in(python: str | Path, model: str | Path, *, timeout_s: float = 120.0) -> str:
    """Open the model file with another interpreter's onnxruntime, and return that onnxruntime's version.

    Raises:
        NotMeasuredError: the interpreter is missing, has no onnxruntime, crashed or took too long.
        UserError: that onnxruntime does not accept the file.
    """
    command = [os.fspath(python), "-c", _LOAD, os.fspath(model)]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasuredError(f"python={python}: could not open {model} there: {error}") from error
    answers = [line for line in process.stdout.splitlines() if line.startswith("loaded with ")]
    if process.returncode == 0 and answers:
        return answers[-1].removeprefix("loaded with ")
    reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    if process.returncode < 0 or "ModuleNotFoundError" in reason or "ImportError" in reason:
        raise NotMeasuredError(f"python={python}: could not open {model} there: {reason}")
    raise UserError(f"{model}: the onnxruntime of {python} does not load it: {reason}")
