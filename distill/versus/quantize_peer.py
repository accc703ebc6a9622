"""One other quantiser on one file, in an environment of its own: needs that tool, onnx, onnxruntime and numpy.

    python quantize_peer.py TOOL MODEL.onnx CALIBRATION.npz OUT.onnx

Each runs as its documentation has it; where it has two usual ways both are here.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx

Rows = dict[str, Any]


def each(rows: Rows) -> Iterator[Rows]:
    """Hand out one row at a time."""
    for number in range(len(next(iter(rows.values())))):
        yield {name: value[number : number + 1] for name, value in rows.items()}


class Reader:
    """What onnxruntime and those after it call a calibration data reader."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.rewind()

    def get_next(self) -> Rows | None:
        """Return the next row, None at the end."""
        return next(self.left, None)

    def rewind(self) -> None:
        """Begin anew."""
        self.left = each(self.rows)


def onnxruntime_defaults(model: str, rows: Rows, out: str) -> None:
    """`quantize_static` with every default."""
    from onnxruntime.quantization import quantize_static

    quantize_static(model, out, Reader(rows))


def onnxruntime_tuned(model: str, rows: Rows, out: str, *, reduce_range: bool = False) -> None:
    """As its documentation advises for x86: preprocessed, unsigned activations, a scale for each channel.

    Without VNNI it advises ``reduce_range`` as well.
    """
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        ready = os.path.join(folder, "ready.onnx")
        quant_pre_process(model, ready)
        quantize_static(
            ready,
            out,
            Reader(rows),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def nncf(model: str, rows: Rows, out: str) -> None:
    """`nncf.quantize`; text models say that they are transformers, as its documentation asks."""
    import nncf as tool  # type: ignore[import-not-found]

    proto = onnx.load(model)
    text = any(value.dtype == np.int64 for value in rows.values())
    options: dict[str, Any] = {"model_type": tool.ModelType.TRANSFORMER} if text else {}
    count = len(next(iter(rows.values())))
    made = tool.quantize(proto, tool.Dataset(list(each(rows))), subset_size=count, **options)
    onnx.save(made, out)


def modelopt(model: str, rows: Rows, out: str) -> None:
    """`modelopt.onnx.quantization.quantize` to int8, what is left over in float32 since a CPU has no fp16 kernels."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    quantize(
        onnx_path=model,
        quantize_mode="int8",
        calibration_data=rows,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=out,
    )


def neural_compressor(model: str, rows: Rows, out: str) -> None:
    """Run static int8 of the ONNX half of Neural Compressor, which lives on as a package of its own."""
    from onnx_neural_compressor import data_reader, quantization  # type: ignore[import-not-found]
    from onnx_neural_compressor.quantization import config  # type: ignore[import-not-found]

    class Data(data_reader.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.reader = Reader(rows)

        def get_next(self) -> Rows | None:
            return self.reader.get_next()

        def rewind(self) -> None:
            self.reader.rewind()

    settings = config.StaticQuantConfig(calibration_data_reader=Data(), quant_format=quantization.QuantFormat.QDQ)
    quantization.quantize(model, out, settings)


TOOLS: dict[str, Callable[[str, Rows, str], None]] = {
    "onnxruntime": onnxruntime_defaults,
    "onnxruntime-tuned": onnxruntime_tuned,
    "onnxruntime-tuned-7-bit": partial(onnxruntime_tuned, reduce_range=True),
    "nncf": nncf,
    "modelopt": modelopt,
    "neural-compressor": neural_compressor,
}


def main() -> None:
    """Read the command line."""
    name, model, data, out = sys.argv[1:]
    with np.load(data) as stored:
        rows = {key: stored[key] for key in stored.files}
    TOOLS[name](model, rows, out)


if __name__ == "__main__":
    main()
