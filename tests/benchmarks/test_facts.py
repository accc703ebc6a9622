from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.benchmarks.onnx_file import facts as module
from distill.errors import UserError

Save = Callable[..., Path]


def test_a_chain_of_convolutions_is_counted(conv: Callable[..., Path]) -> None:
    found = module.read_facts(conv(layers=3))
    assert found.parameters == 3 * 2 * 2 * 9
    assert found.macs == 3 * (2 * 36) * (2 * 9)
    assert found.inputs == [("x", "float32", ["n", 2, 6, 6])]
    assert (found.name, found.opset, found.ir_version) == ("conv", 13, 7)
    assert found.bytes == conv(layers=3).stat().st_size


def test_matrix_products_are_counted_in_every_form(save: Save) -> None:
    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "c"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 5), ("y", 3)))
    path = save(nodes, [x], [y], [weight("a", 7, 5), weight("b", 7), weight("c", 7, 3)])
    found = module.read_facts(path)
    assert found.macs == 7 * 5 + 7 * 3
    assert found.parameters == 7 * 5 + 7 + 7 * 3


def test_an_open_shape_leaves_the_work_unknown(save: Save) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "length", 4]) for name in "xy")
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    assert module.read_facts(save([helper.make_node("MatMul", ["x", "w"], ["y"])], [x], [y], [weight])).macs is None


def test_subnormal_weights_are_counted(save: Save) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    weight = numpy_helper.from_array(np.array([1.0, 0.0, 1e-40, -1e-39], np.float32), "w")
    assert module.read_facts(save([helper.make_node("Mul", ["x", "w"], ["y"])], [x], [y], [weight])).subnormal == 2


def external(tmp_path: Path, location: str) -> Path:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    path = home / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    if location != "w.bin":
        proto = onnx.load(path, load_external_data=False)
        for entry in proto.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_belong_to_the_file(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    found = module.read_facts(path)
    assert found.bytes == path.stat().st_size + 64 * 64 * 4
    data = path.with_name("w.bin")
    data.write_bytes(data.read_bytes()[::-1])
    assert module.read_facts(path).sha256 != found.sha256


@pytest.mark.parametrize(("location", "says"), [("none.bin", "are missing"), ("../w.bin", "outside its own folder")])
def test_external_data_that_cannot_be_had(tmp_path: Path, location: str, says: str) -> None:
    path = external(tmp_path, location)
    (tmp_path / "w.bin").write_bytes(b"0" * math.prod((64, 64, 4)))
    with pytest.raises(UserError, match=says):
        module.read_facts(path)
