"""Why torch could not export a module, in a line or two that name the mend."""

from __future__ import annotations

import re

from distill.export.parity_check import first_line

FIXED_BATCH = (
    "forward fixes the batch size. Usual causes: a tensor made with a literal batch size, a Python loop over the rows, "
    "int(x.shape[0]) or x.view(2, …). Write x.new_zeros(x.shape[0], …), batched operators, -1 in view"
)
_FIXED_AXIS = (
    "forward fixes the length of axis {axis}, which the data leave open. Usual causes: a table of positions that is "
    "added whole, int(x.shape[{axis}]), a literal length in view. Write table[:, : x.shape[{axis}]], -1 in view"
)


def explain(error: BaseException) -> str:
    """Say in a line or two why an export failed: the reason, the line of the user's code, and a way out."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    reason = next((e for e in chain if type(e).__module__.split(".")[:2] != ["torch", "onnx"]), chain[-1])
    text = "\n".join(str(e) for e in chain)
    missing = re.search(r"No (?:ONNX function|decompositions registered)[^\n]*?(aten\.\w+|[\w.]+::\w+)", text)
    if missing:
        return f"operator {missing[1]} has no ONNX form; replace it in forward by operators that have one"
    place = re.findall(r'File "([^"]+)", line (\d+), in \w+|File "([^"]+)", line (\d+)', text)
    own = [(a or c, b or d) for a, b, c, d in place if "site-packages" not in (a or c)]
    line = f" ({own[-1][0]}:{own[-1][1]})" if own else ""
    if "data-dependent" in text or "GuardOnDataDependent" in text:
        return (
            f"forward branches on the values of a tensor{line}, which a graph cannot follow; "
            "use torch.where, or move the branch out of forward"
        )
    if any(
        part in text for part in ("specialized it to be a constant", "Constraints violated", "inferred a static shape")
    ):
        axes = [int(axis) for axis in re.findall(r"(?:size\(\)|shape)\[(\d+)\]", text)]
        return fixed_axis(max(axes, default=0))
    return f"torch.export cannot follow it{line}: {type(reason).__name__}: {first_line(reason)}"


def fixed_axis(axis: int) -> str:
    """Say what fixes an axis that has to be open, the batch being axis 0."""
    return _FIXED_AXIS.format(axis=axis) if axis else FIXED_BATCH
