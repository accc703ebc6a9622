"""Which kernels really ran, read from a profile: the graph alone does not tell a fused operator from an unfused one."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import NotMeasuredError

from .inputs import Feeds
from .runner import clean
from .sessions import open_session
from .target import Target, why_unmeasurable

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


@dataclass(frozen=True)
class Profile:
    """The operators that one call executed.

    `nodes` counts them by `Provider/Operator`. `integer` and `float_` count the compute nodes (products, convolutions,
    additions of two activations) by the kind of their kernel; `integer_share` is integer over both, 0 to 1, and 0
    where there is none. `provider` is the one that ran most compute nodes.
    """

    nodes: dict[str, int]
    integer_share: float
    integer: int
    float_: int
    provider: str
    warnings: tuple[str, ...] = ()


def profile(path: str | Path, target: Target, inputs: Feeds) -> Profile:
    """Run the file once with `inputs` in a separate, untimed session and count what was executed.

    Raises UserError for a broken file, and NotMeasuredError where the provider did not load, the call failed, the
    target is not this machine, or not one compute node ran on the target's provider.
    """
    why = why_unmeasurable(target)
    if why:
        raise NotMeasuredError(f"{path}: not profiled, {why}")
    with tempfile.TemporaryDirectory(prefix="distill-profile-") as folder:
        session = open_session(path, target, profile_to=Path(folder, "profile"))
        written = None
        try:
            session.run(None, inputs)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise NotMeasuredError(f"{path}: not profiled, a call failed: {clean(error)}") from error
        finally:
            # The profile is a file of the session: closed in every case, or the folder could not be removed.
            with contextlib.suppress(OSError):
                written = session.end_profiling()
        events = json.loads(Path(str(written)).read_text(encoding="utf-8"))
    return summarize(events, target.provider, str(path))


def summarize(events: Iterable[dict[str, Any]], wanted: str, what: str) -> Profile:
    """Count the node events of a profile; `wanted` is the provider that was asked for, `what` is named in messages."""
    nodes: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        details = event.get("args", {})
        operator, provider = str(details.get("op_name", "?")), str(details.get("provider", "?"))
        operator = "TRTKernel" if operator.startswith("TRTKernel") else operator
        nodes[f"{provider}/{operator}"] += 1
        kind = _kind(operator, details)
        if kind:
            compute[provider] += 1
            kinds[kind] += 1
    counted = kinds["integer"] + kinds["float"]
    ran = (compute or Counter({key.partition("/")[0]: count for key, count in nodes.items()})).most_common(1)
    return Profile(
        nodes=dict(sorted(nodes.items())),
        integer_share=kinds["integer"] / counted if counted else 0.0,
        integer=kinds["integer"],
        float_=kinds["float"],
        provider=ran[0][0] if ran else wanted,
        warnings=_warnings(compute, nodes, counted, wanted, what),
    )


def _kind(operator: str, details: dict[str, Any]) -> str | None:
    """`integer`, `float`, `opaque` (a whole subgraph in one kernel), or None for a node that computes little."""
    if operator == "TRTKernel":
        return "opaque"
    if operator in INTEGER:
        return "integer"
    if operator in FLOAT or (operator == "Add" and _is_residual(details)):
        return "float"
    return None


def _is_residual(details: dict[str, Any]) -> bool:
    """Whether an Add joins two activations; a bias has another shape than what it is added to."""
    shapes = [shape for typed in details.get("input_type_shape", ()) for shape in typed.values()]
    return len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) > 1


def _warnings(compute: Counter[str], nodes: Counter[str], counted: int, wanted: str, what: str) -> tuple[str, ...]:
    """Say what a reader has to know; raises NotMeasuredError where the provider ran none of the compute nodes."""
    warnings = []
    total, elsewhere = compute.total(), compute.total() - compute[wanted]
    if total and elsewhere == total:
        ran = ", ".join(sorted(compute))
        raise NotMeasuredError(f"{what}: {wanted} was asked for, but all {total} compute nodes ran on {ran}")
    if elsewhere:
        warnings.append(f"{what}: {elsewhere} of {total} compute nodes did not run on {wanted}")
    if not counted:
        opaque = any(key.endswith("/TRTKernel") for key in nodes)
        why = "they are compiled into one kernel" if opaque else "there are none"
        warnings.append(f"{what}: no integer share, compute nodes cannot be counted: {why}")
    return tuple(warnings)
