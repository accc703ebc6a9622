"""Which kernels really ran, read from a profile: the graph alone does not tell a fused operator from an unfused one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.benchmarks.onnx_file.signature import load_proto
from distill.benchmarks.target import Target
from distill.benchmarks.timing.jobs import inspect_file
from distill.errors import NotMeasuredError
from distill.types import Feed

INTEGER = frozenset(
    (
        *("QLinearConv", "ConvInteger", "QLinearConvTranspose", "NhwcQLinearConv"),
        *("QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
        *("QLinearAdd", "QLinearMul", "QAttention", "DynamicQuantizeLSTM"),
    )
)
FLOAT = frozenset(
    (
        *("Conv", "FusedConv", "NhwcFusedConv", "NhwcConv", "ConvTranspose"),
        *("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits", "Einsum"),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "LSTM", "GRU", "RNN", "Sum"),
    )
)
_NAMED = 5  # nodes that a warning names; the count says how many there are
Node = Sequence[Any]
"""[name, operator, provider, shapes of its inputs] of one executed node, as `runner.py` reports it."""


@dataclass(frozen=True)
class Profile:
    """The operators that one call executed.

    `nodes` counts them by `Provider/Operator`. `integer` and `float_` count the compute nodes (products, convolutions,
    additions of two activations) by the kind of their kernel; `integer_share` is integer over both, 0 to 1, and 0
    where there is none. `provider` is the one that ran most compute nodes. `unfused` names the compute nodes of a
    quantized file that ran in float all the same.
    """

    nodes: dict[str, int]
    integer_share: float
    integer: int
    float_: int
    provider: str
    warnings: tuple[str, ...] = ()
    unfused: tuple[str, ...] = ()


def profile(path: str | Path, target: Target, inputs: Feed) -> Profile:
    """Run the file once with `inputs` in a separate, untimed session and count what was executed.

    Raises UserError for a broken file, and NotMeasuredError where the provider did not load, the call failed, the
    target is not this machine, or not one compute node ran on the target's provider.
    """
    load_proto(path)
    return summarize(inspect_file(path, target, inputs)["nodes"], target.provider, str(path))


def summarize(executed: Iterable[Node], wanted: str, subject: str) -> Profile:
    """Count executed nodes; `wanted` is the provider that was asked for, `subject` is named in messages."""
    nodes: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    floats, dequantized = [], False
    for name, kind_of, provider, shapes in executed:
        dequantized |= kind_of == "DequantizeLinear"
        operator = "TRTKernel" if kind_of.startswith("TRTKernel") else kind_of
        nodes[f"{provider}/{operator}"] += 1
        kind = _kind(operator, shapes)
        if kind:
            compute[provider] += 1
            kinds[kind] += 1
        if kind == "float" and dequantized:  # layers in front of the first pair are float on purpose
            floats.append(name or operator)
    counted = kinds["integer"] + kinds["float"]
    ran = (compute or Counter({key.partition("/")[0]: count for key, count in nodes.items()})).most_common(1)
    # A DequantizeLinear alone is how an image's bytes become numbers in a float file, and products give floats without.
    quantized = any(key.endswith("/QuantizeLinear") for key in nodes)
    return Profile(
        nodes=dict(sorted(nodes.items())),
        integer_share=kinds["integer"] / counted if counted else 0.0,
        integer=kinds["integer"],
        float_=kinds["float"],
        provider=ran[0][0] if ran else wanted,
        warnings=_warnings(compute, nodes, counted, wanted, subject),
        unfused=tuple(floats) if quantized else (),
    )


def unfused_warning(counts: Profile, subject: str) -> str | None:
    """Say which compute nodes of a quantized file ran in float, or None where all were integer kernels."""
    if not counts.unfused:
        return None
    named = ", ".join(counts.unfused[:_NAMED]) + (", …" if len(counts.unfused) > _NAMED else "")
    return (
        f"{subject}: quantized, but {len(counts.unfused)} of {counts.integer + counts.float_} compute nodes ran in "
        f"float between QuantizeLinear and DequantizeLinear, which were not fused: {named}; quantize their inputs and "
        "outputs with the types that the provider's integer kernels take"
    )


def _kind(operator: str, shapes: Sequence[Sequence[int]]) -> str | None:
    """`integer`, `float`, `opaque` (a whole subgraph in one kernel), or None for a node that computes little."""
    if operator == "TRTKernel":
        return "opaque"
    if operator in INTEGER:
        return "integer"
    # An Add joins two activations; a bias has another shape than what it is added to.
    residual = operator == "Add" and len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) > 1
    return "float" if operator in FLOAT or residual else None


def _warnings(compute: Counter[str], nodes: Counter[str], counted: int, wanted: str, subject: str) -> tuple[str, ...]:
    """Say what a reader has to know; raises NotMeasuredError where the provider ran none of the compute nodes."""
    warnings = []
    total, elsewhere = compute.total(), compute.total() - compute[wanted]
    if total and elsewhere == total:
        ran = ", ".join(sorted(compute))
        raise NotMeasuredError(f"{subject}: {wanted} was asked for, but all {total} compute nodes ran on {ran}")
    if elsewhere:
        warnings.append(f"{subject}: {elsewhere} of {total} compute nodes did not run on {wanted}")
    if not counted:
        opaque = any(key.endswith("/TRTKernel") for key in nodes)
        why = "they are compiled into one kernel" if opaque else "there are none"
        warnings.append(f"{subject}: no integer share, compute nodes cannot be counted: {why}")
    return tuple(warnings)
