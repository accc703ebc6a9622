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
from distill.export import export_onnx, strip, to_bytes
from distill.export.settings import ExportSettings
from distill.models import build
from distill.prune import apply_structure, structure_of
from distill.runtime.folder import damaged, file_sha256
from distill.state_dicts import load_state
from distill.tasks.base import Batch, Data, Inputs, Task
from distill.training.batches import batches
from distill.training.forward import as_inputs
from distill.types import Feed


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

    ``onnx`` is the shipped form, preprocessing included; ``core`` the float graph behind it, which int8 is made from.
    ``model`` is None once the artifact is no module any more.
    """

    stage: str
    folder: Path
    recipe: Recipe
    model: nn.Module | None

    @property
    def onnx(self) -> Path:
        """Return the file that is timed and judged."""
        return self.folder / "model.onnx"

    @property
    def core(self) -> Path:
        """Return the float32 graph without the preprocessing that is attached to it."""
        return self.folder / "core.onnx"


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
    whole = model if task.module_preprocess is None else Preprocessed(task.module_preprocess, model)
    args, kwargs = task.inputs(_few(task))
    names = input_names(whole, args, kwargs)
    core = export_onnx(
        whole,
        args=args,
        kwargs=kwargs,
        logits=task.logits,
        input_names=names,
        open_axes=dict(zip(names, task.open_axes, strict=False)),
        settings=settings,
    )
    write_proto(folder / "core.onnx", core)
    write_proto(folder / "model.onnx", attach(core, task))


def attach(core: ModelProto, task: Task) -> ModelProto:
    """Return the graph with the task's preprocessing in front of its input."""
    if task.graph_preprocess is None:
        return core
    return strip(task.graph_preprocess.prepend(core, input_name=core.graph.input[0].name))


def write_proto(path: Path, proto: ModelProto) -> None:
    """Write a model, equal models as equal bytes."""
    path.write_bytes(to_bytes(proto))


class Preprocessed(nn.Module):
    """A user's preprocessing module and the model behind it, as one module for the exporter."""

    def __init__(self, preprocess: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.model = preprocess, model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model on what the preprocessing makes of the inputs."""
        inner, named = as_inputs(self.preprocess(*args, **kwargs))
        return self.model(*inner, **named)


def input_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Name the graph's inputs after the parameters of the model's forward."""
    inner = model.preprocess if isinstance(model, Preprocessed) else model
    try:
        parameters = [
            p.name
            for p in inspect.signature(inner.forward).parameters.values()
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
    """Return what the float graph is fed with for a batch."""
    args, kwargs = task.inputs(batch)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return {name: value.detach().cpu().numpy() for name, value in zip(names, tensors, strict=True)}


def shipped_feed(task: Task, batch: Batch, names: list[str]) -> Feed:
    """Return what the shipped file is fed with for a batch."""
    raw = task.raw(batch)
    return core_feed(task, batch, names) if raw is None else raw


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
