"""The deploy folder: the final file with labels and provenance inside, vectors to check it by, and its card."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from distill.benchmarks.onnx_file.saturation import saturating_share
from distill.benchmarks.timing.jobs import without_objects
from distill.clean import code, markdown
from distill.config.loading import config_hash, settings_hash
from distill.export import loaded_with, loads_in, parity, run_onnx, write_metadata
from distill.runtime.artifacts import (
    Artifact,
    graph_hash,
    graph_inputs,
    read_graph,
    shipped_feed,
    weights_hash,
    write_proto,
)
from distill.runtime.context import Context
from distill.runtime.facts import FileParity
from distill.runtime.folder import digest, sources, versions
from distill.sealed_files import altered, file_sha256, hashes_of
from distill.training.forward import predict

VECTORS = 16
FILES = ("model.onnx", "labels.json", "vectors.npz", "README.md", "NOT_DEPLOYABLE")
"""What a deploy folder may hold of ours; anything else in it is the user's."""
CARD = """# {task}

{labels} classes, shipped as `model.onnx` for {target} ({precision}).

| | |
|---|---|
| input | {inputs} |
| output | `logits` float32 [N, {classes}], in the order of `labels.json` |
| made from | {stages} |
| checked by | `vectors.npz`: run it on these inputs, compare with `logits` within `atol` + `rtol`·max(abs(logits)) |

    import numpy as np, onnxruntime as ort
    v = np.load("vectors.npz")
    session = ort.InferenceSession("model.onnx")
    feed = {{i.name: v[i.name] for i in session.get_inputs()}}
    got = session.run(["logits"], feed)[0]
    assert np.abs(got - v["logits"]).max() <= v["atol"] + v["rtol"] * np.abs(v["logits"]).max()
"""


@dataclass(frozen=True)
class _Packing:
    """What ``deploy/`` was packed from, and the sha256 of each file that was written."""

    key: str
    files: dict[str, str]


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    onnx: Path
    files: dict[str, str]
    """sha256 by name."""
    parity: FileParity
    reused: bool
    seconds: float
    warnings: tuple[str, ...] = ()


def pack(ctx: Context, final: Artifact, teacher: Artifact, *, deployable: bool) -> Packed:
    """Pack the final artifact into ``deploy/``; one that must not be deployed is marked so, inside and out."""
    begun = time.monotonic()
    labels = ctx.task.labels
    hashes: dict[str, str] = {}

    def build(folder: Path) -> None:
        proto = write_metadata(read_graph(final.onnx), _provenance(ctx, final, teacher, deployable), labels=labels)
        write_proto(folder / "model.onnx", proto)
        (folder / "labels.json").write_text(json.dumps(list(labels), ensure_ascii=False) + "\n", encoding="utf-8")
        np.savez(folder / "vectors.npz", **_vectors(ctx, final.onnx))
        (folder / "README.md").write_text(_card(ctx, final), encoding="utf-8")
        if not deployable:
            (folder / "NOT_DEPLOYABLE").write_text("A smoke run: trained on two batches.\n", encoding="utf-8")
        hashes.update(hashes_of(folder))

    key = digest(
        graph_hash(final.onnx), weights_hash(teacher.folder), config_hash(ctx.config), deployable, ctx.data_key
    )
    key = digest(key, sources("distill.deploy.packing", "distill.export"), versions())
    place, noted = ctx.folder.path / "deploy", ctx.folder.noted("export.json", _Packing) or _Packing("", {})
    different = altered(place, noted.files)
    reused = noted.key == key and not different
    if not reused:
        for name, how in different if noted.key == key else ():
            ctx.folder.tell(f"{place / name} {how}: packed again")
        ctx.folder.publish("deploy", build, ours=FILES)
        noted = _Packing(key, hashes)
        ctx.folder.note("export.json", noted)
    distance = shipped_parity(ctx, final)
    warnings = () if distance.ok else (f"parity: {distance.why}",)
    return Packed(place / "model.onnx", noted.files, distance, reused, time.monotonic() - begun, warnings)


def torch_parity(ctx: Context, artifact: Artifact) -> FileParity | None:
    """Compare a module's logits on the whole test split with those of its ONNX file."""
    if artifact.model is None:
        return None
    ours, target = predict(artifact.model, ctx.task, ctx.task.data["test"], torch.device("cpu"))
    distance = parity(ours, ctx.logits(artifact.onnx, "test"), atol=ctx.export.atol, rtol=ctx.export.rtol)
    metrics = [ctx.task.metrics(logits, target) for logits in (ours, ctx.logits(artifact.onnx, "test"))]
    before, after = (float(figures[ctx.task.metric]) for figures in metrics)
    return FileParity(**vars(distance), reference="torch module", metric_reference=before, metric_file=after)


def shipped_parity(ctx: Context, final: Artifact) -> FileParity:
    """Compare the packed file with the artifact it was made from, on the whole test split: they must be equal."""
    packed = ctx.folder.path / "deploy" / "model.onnx"
    before, after = ctx.logits(final.onnx, "test"), ctx.logits(packed, "test")
    distance = parity(before, after, atol=ctx.export.atol, rtol=ctx.export.rtol)
    far = f"logits differ by {distance.max_abs:.2g}, more than {distance.tolerance:.2g}"
    why = None if distance.ok else "; ".join(distance.warnings) or far
    return FileParity(**vars(distance), reference=final.stage, why=why)


def _provenance(ctx: Context, final: Artifact, teacher: Artifact, deployable: bool) -> dict[str, str]:
    """Say how the file was made: hashes and names; no times, no paths, nothing that two runs differ in."""
    from importlib.metadata import version

    isa = ctx.target.relied_on(saturating_share(read_graph(final.onnx)))
    return {
        "task": ctx.config.task,
        "metric": ctx.task.metric,
        "stage": final.stage,
        "target": ctx.target.name,
        "teacher_sha256": file_sha256(teacher.folder / "model.safetensors"),
        "graph_sha256": graph_hash(final.onnx),
        "config_sha256": settings_hash(ctx.config),
        "producer": f"distill {version('distill')}",
        "onnxruntime": oldest_runtime(final.onnx, ctx.export.load_with),
        **({} if deployable else {"deployable": "no"}),
        **({"isa": isa} if isa else {}),
    }


def oldest_runtime(path: Path, interpreters: tuple[Path, ...]) -> str:
    """Return the oldest onnxruntime that loaded the file: the one here, or one of other interpreters'.

    Raises:
        NotMeasuredError: an interpreter has none, or its onnxruntime refuses the file.
    """
    loaded = [loaded_with(path), *(loads_in(python, path) for python in interpreters)]
    return min(loaded, key=lambda version: [int(part) for part in version.split("+")[0].split(".") if part.isdigit()])


def _vectors(ctx: Context, path: Path) -> Mapping[str, Any]:
    """Return raw inputs from the test split, the logits they give, and how far another machine's may be from them."""
    data = ctx.task.data["test"]
    batch = data.fetch(torch.arange(min(VECTORS, len(data))), None)
    feed = without_objects(shipped_feed(ctx.task, batch, graph_inputs(path)))
    raw = {name: value.astype(object) if value.dtype.kind == "U" else value for name, value in feed.items()}
    logits = run_onnx(path, [raw])
    # An integer kernel may round the other way on another processor; each step of the last scale is one such.
    relative = ctx.export.rtol if number_format(read_graph(path).graph) == "float32" else 0.05
    return {**feed, "logits": logits, "atol": np.float32(ctx.export.atol), "rtol": np.float32(relative)}


def number_format(graph: onnx.GraphProto) -> str:
    """Return what a graph computes in, by its operators and constants: float32, fp16, bf16, int8 or int4."""
    operators = {node.op_type for node in graph.node}
    types = {tensor.data_type for tensor in graph.initializer}
    kinds = onnx.TensorProto
    if "MatMulNBits" in operators or types & {kinds.INT4, kinds.UINT4}:
        return "int4"
    if any(name.startswith("QLinear") or name in _INTEGER for name in operators):
        return "int8"
    return "fp16" if kinds.FLOAT16 in types else "bf16" if kinds.BFLOAT16 in types else "float32"


_INTEGER = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


def _code_in_cell(name: str) -> str:
    return code(name).replace("|", r"\|")  # else it ends the table's cell, in code as well


def _type_name(element_type: int) -> str:
    """Return numpy's name of a tensor's type, as the graph's caller needs it: float32, and string for text."""
    is_text = element_type == onnx.TensorProto.STRING
    return "string" if is_text else str(onnx.helper.tensor_dtype_to_np_dtype(element_type))


def _card(ctx: Context, final: Artifact) -> str:
    graph = read_graph(final.onnx).graph
    inputs = ", ".join(
        f"{_code_in_cell(value.name)} {_type_name(value.type.tensor_type.elem_type)} "
        f"[{', '.join(d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim)}]"
        for value in graph.input
    )
    return CARD.format(
        task=markdown(ctx.config.task),
        labels=len(ctx.task.labels),
        classes=len(ctx.task.labels),
        target=ctx.target.name,
        precision=number_format(graph),
        inputs=inputs,
        stages=final.stage,
    )
