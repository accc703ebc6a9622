"""A stage's product on disk: weights as safetensors, the architecture as JSON, the ONNX files; never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.benchmarks.onnx_file.external_data import external_tensors
from distill.benchmarks.onnx_file.signature import signature
from distill.config.loading import RunConfig
from distill.documents import read_json
from distill.errors import UserError
from distill.export import strip, to_bytes
from distill.export.front_graph import Halves, boundary_place
from distill.export.onnx_export import export_halves
from distill.export.preprocessed import as_inputs
from distill.export.settings import ExportSettings
from distill.models import build
from distill.prune import apply_structure, structure_of
from distill.runtime.folder import damaged, file_sha256
from distill.state_dicts import load_state
from distill.tasks.base import Batch, Data, Inputs, Task
from distill.training.batches import batches
from distill.types import Array, Feed


@dataclass(frozen=True)
class Recipe:
    """How a model was built, so that a fresh process can build it again."""

    model: str
    args: dict[str, Any]
    field: str
    seed: int

    @classmethod
    def of(cls, config: RunConfig, field: str) -> Recipe:
        """Return how a configuration has its teacher or its student built."""
        settings = config.models[field]
        return cls(settings.model, dict(settings.args), field, config.seed)

    def build(self, task: Task) -> nn.Module:
        """Build the model with the weights that the seed gives."""
        return build(self.model, self.args, task.facts, field=self.field, seed=self.seed)


@dataclass(frozen=True)
class Artifact:
    """What a stage hands to the next one.

    ``onnx`` is the shipped form, preprocessing included; beside it lies ``core.onnx``, the float graph behind the
    preprocessing, which int8 is made from, and ``preprocess.onnx`` where that is a module of the user's. ``model`` is
    None once the artifact is no module any more.
    """

    stage: str
    folder: Path
    recipe: Recipe
    model: nn.Module | None

    @property
    def onnx(self) -> Path:
        """Return the file that is timed and judged."""
        return self.folder / "model.onnx"


def read_graph(path: Path) -> ModelProto:
    """Read a stage's ONNX file; it is whole, so data that lie outside of it are none of a run's.

    Raises:
        UserError: it is damaged, or reads another file.
    """
    if not path.is_file():
        raise damaged(path, "there is no such file", remove=path.parent)
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise damaged(path, error, remove=path.parent) from error
    if any(external_tensors(proto)):
        raise damaged(path, "it keeps its data in another file", remove=path.parent)
    return proto


def graph_hash(path: Path) -> str:
    """Return sixteen hexadecimal digits that stand for a file's graph, blind to the metadata that packing adds."""
    proto = read_graph(path)
    del proto.metadata_props[:]
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()[:16]


def save_model(folder: Path, model: nn.Module, recipe: Recipe) -> None:
    """Write ``model.safetensors`` and ``model.json`` (reference, arguments, widths)."""
    # A tensor that two modules share is stored under both names, each a copy: safetensors refuses aliases.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    about = dataclasses.asdict(recipe) | {"structure": structure_of(model)}
    (folder / "model.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_model(folder: Path, task: Task, recipe: Recipe) -> nn.Module:
    """Build the model that ``save_model`` wrote, widths and weights, by the recipe that the caller knows.

    A run folder may come from a stranger, and a file never chooses code: the recipe in it only has to agree.

    Raises:
        UserError: a file is damaged, or tells of another recipe.
    """
    model, path = recipe.build(task), folder / "model.json"
    expected = json.loads(json.dumps(dataclasses.asdict(recipe)))
    try:
        about = read_json(path, finite=True)
        agrees = {**about, "structure": None} == {**expected, "structure": None}
        if agrees:
            model = apply_structure(model, about["structure"])
            path = folder / "model.safetensors"
            load_state(model, load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, UserError) as error:
        raise damaged(path, error, remove=folder) from error
    if not agrees:
        raise damaged(
            path, f"names another model than {recipe.field}.model={recipe.model!r} with its args", remove=folder
        )
    return model.eval()


def example(task: Task) -> Inputs:
    """Return the inputs of two samples, as the model's own arguments."""
    return model_inputs(task, _few(task))


def model_inputs(task: Task, batch: Batch) -> Inputs:
    """Return a batch as the model's own arguments, behind the task's preprocessing."""
    args, kwargs = task.inputs(batch)
    if task.module_preprocess is not None:
        with torch.no_grad():
            args, kwargs = as_inputs(task.module_preprocess(*args, **kwargs))
    return args, kwargs


def write_onnx(folder: Path, model: nn.Module, task: Task, settings: ExportSettings) -> None:
    """Write ``core.onnx``, and ``model.onnx`` with the task's preprocessing in front."""
    args, kwargs = task.inputs(_few(task))
    names = input_names(task.module_preprocess or model, args, kwargs)
    halves = export_halves(
        model,
        preprocess=task.module_preprocess,
        args=args,
        kwargs=kwargs,
        logits=task.logits,
        input_names=names,
        open_axes=dict(zip(names, task.open_axes, strict=False)),
        settings=settings,
    )
    write_graphs(folder, halves, task)


def write_graphs(folder: Path, halves: Halves, task: Task) -> None:
    """Write ``core.onnx``, and ``model.onnx`` with the task's preprocessing in front, and a user's own by itself."""
    whole = halves.whole
    if task.graph_preprocess is not None:
        whole = strip(task.graph_preprocess.prepend(whole, input_name=whole.graph.input[0].name))
    for name, proto in (("core", halves.core), ("preprocess", halves.front), ("model", whole)):
        if proto is not None:
            write_proto(folder / f"{name}.onnx", proto)


def read_halves(folder: Path) -> Halves:
    """Read ``core.onnx``, and the user's own preprocessing where there is some."""
    front = folder / "preprocess.onnx"
    return Halves(read_graph(folder / "core.onnx"), read_graph(front) if front.is_file() else None)


def write_proto(path: Path, proto: ModelProto) -> None:
    """Write a model, equal models as equal bytes."""
    path.write_bytes(to_bytes(proto))


def input_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Name the graph's inputs after the parameters of the model's forward."""
    try:
        parameters = [
            p.name
            for p in inspect.signature(model.forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        parameters = []
    names = []
    for position, value in enumerate(args):
        if isinstance(value, Tensor):
            names.append(parameters[position] if position < len(parameters) else f"input{position}")
    return [*names, *(name for name, value in kwargs.items() if isinstance(value, Tensor))]


def core_feed(task: Task, batch: Batch, names: list[str]) -> Feed:
    """Return what the float graph is fed with for a batch; behind preprocessing it may read a part of that."""
    if task.module_preprocess is None:
        return _by_name(task.inputs(batch), names)
    arrays = _arrays(model_inputs(task, batch))
    return {name: arrays[boundary_place(name)] for name in names}


def shipped_feed(task: Task, batch: Batch, names: list[str]) -> Feed:
    """Return what the shipped file is fed with for a batch."""
    raw = task.raw(batch)
    return _by_name(task.inputs(batch), names) if raw is None else raw


def _by_name(inputs: Inputs, names: list[str]) -> Feed:
    return dict(zip(names, _arrays(inputs), strict=True))


def _arrays(inputs: Inputs) -> list[Array]:
    args, kwargs = inputs
    return [value.detach().cpu().numpy() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def feeds(task: Task, data: Data, path: Path, *, size: int = 256) -> Iterator[Feed]:
    """Yield the shipped file's inputs for a split, in its own order."""
    names = graph_inputs(path)
    for _, batch in batches(data, size):
        yield shipped_feed(task, batch, names)


@dataclass(frozen=True)
class Calibration:
    """Unaugmented training samples, drawn by seed, as a float graph's inputs; each reading fetches them anew."""

    task: Task
    inputs: tuple[str, ...]
    samples: int
    seed: int

    def __iter__(self) -> Iterator[Feed]:
        """Yield the samples in batches."""
        data = self.task.data["train"]
        order = torch.from_numpy(np.random.default_rng([self.seed, 1]).permutation(len(data))[: self.samples])
        for start in range(0, len(order), 64):
            yield core_feed(self.task, data.fetch(order[start : start + 64], None), list(self.inputs))


def graph_inputs(path: Path) -> list[str]:
    """Return the names of a file's inputs, in order."""
    return [value.name for value in signature(read_graph(path))]


def weights_hash(folder: Path) -> str:
    """Return a hash of a stage's weights and architecture, or of its graph where it has no module."""
    weights, about = folder / "model.safetensors", folder / "model.json"
    if not weights.is_file():
        return graph_hash(folder / "model.onnx")
    return file_sha256(weights)[:16] + file_sha256(about)[:16]


def _few(task: Task) -> Batch:
    """Return two samples; where their length differs a few more, so that one is longer than one step."""
    data = task.data["train"]
    if len(data) < 2:
        raise UserError("data: the training split must hold at least two samples")
    return data.fetch(torch.arange(min(len(data), 8) if task.open_axes else 2), None)
