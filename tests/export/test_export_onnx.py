from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn
from torch.nn import functional

from distill.errors import UserError
from distill.export import ExportSettings, export_onnx, run_onnx, strip, to_bytes
from distill.export.graph import layer_names
from distill.models.resnet import ResNet


def randomise_norms(model: nn.Module) -> nn.Module:
    """Give batch norms statistics that a fold cannot ignore."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x, *, scale=1.0, y, unused=None):
        features = torch.relu(self.left(x)) * scale + torch.relu(self.right(y))
        return {"features": features, "scores": self.head(features)}


class Calls(nn.Module):
    """A linear layer inside any function, for models that misbehave."""

    def __init__(self, function) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.function = function

    def forward(self, x):
        return self.function(self.linear, x)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = randomise_norms(ResNet(classes=10, channels=1, blocks=(1, 1, 1))).eval()
    return model, export_onnx(model, args=(torch.randn(1, 1, 28, 28),), input_names=["x"])


def small(model, *shape, **options):
    return export_onnx(model, args=(torch.randn(2, *shape),), input_names=["x"], **options)


def test_a_resnet_gives_the_same_logits_at_any_batch(resnet):
    model, proto = resnet
    for batch in (1, 5):
        x = torch.randn(batch, 1, 28, 28)
        with torch.no_grad():
            expected = model(x).numpy()
        np.testing.assert_allclose(run_onnx(proto, [{"x": x.numpy()}]), expected, atol=1e-4)


def test_a_resnet_is_one_clean_graph_of_its_weights_and_little_else(resnet):
    model, proto = resnet
    assert [value.name for value in proto.graph.input] == ["x"]
    assert [value.name for value in proto.graph.output] == ["logits"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    operators = {node.op_type for node in proto.graph.node}
    assert operators == {"Conv", "Relu", "Add", "GlobalAveragePool", "Reshape", "Gemm"}
    content = to_bytes(proto)
    assert len(content) <= 4 * sum(parameter.numel() for parameter in model.parameters()) + 2000
    assert b"forward" not in content and b"torch" not in content
    assert proto.ir_version == 8 and [(e.domain, e.version) for e in proto.opset_import] == [("", 18)]
    onnx.checker.check_model(proto, full_check=True)


def test_the_module_is_left_as_it_was_and_its_watching_hooks_are_not_called():
    torch.manual_seed(0)
    model = randomise_norms(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))).train()
    seen: list[torch.Size] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(type(output)))
    before = copy.deepcopy(model.state_dict())
    first = to_bytes(small(model, 5))
    assert all(kind is torch.Tensor for kind in seen)  # plain calls at most, never a tracer's tensors
    assert model.training and len(model[0]._forward_hooks) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert to_bytes(small(model, 5)) == first


def test_args_and_kwargs_become_inputs_and_constants_are_built_in():
    torch.manual_seed(0)
    model = TwoInputs().eval()
    x, y = torch.randn(4, 6), torch.randn(4, 4)
    proto = export_onnx(
        model,
        args=(x,),
        kwargs={"scale": 2.0, "y": y, "unused": torch.ones(4, 2)},
        logits=lambda output: output["scores"],
        input_names=["left", "right", "ignored"],
    )
    assert [value.name for value in proto.graph.input] == ["left", "right", "ignored"]
    with torch.no_grad():
        expected = model(x, scale=2.0, y=y)["scores"].numpy()
    feed = {"left": x.numpy(), "right": y.numpy(), "ignored": np.ones((4, 2), np.float32)}
    np.testing.assert_allclose(run_onnx(proto, [feed]), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hooks_that_compute_and_half_precision_weights_are_exported():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 3))).to(torch.bfloat16).eval()
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    x = torch.randn(2, 5)
    model(x.bfloat16())  # leaves a tensor with a history on the module, which deepcopy refuses
    expected = 2 * nn.functional.linear(x, model[0].weight.float(), model[0].bias.float())
    np.testing.assert_allclose(run_onnx(small(model, 5), [{"x": x.numpy()}]), expected.detach().numpy(), atol=0.02)


def test_an_older_opset_is_written_as_asked():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    proto = small(model, 1, 6, 6, settings=ExportSettings(opset=17))
    assert [entry.version for entry in proto.opset_import] == [17]
    assert run_onnx(proto, [{"x": np.zeros((3, 1, 6, 6), np.float32)}]).shape == (3, 2)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda linear, x: linear(x) + torch.zeros(2, 3), "fixes the batch size"),
        (
            lambda linear, x: linear(x) if x.sum() > 0 else linear(-x),
            r"branches on the values .*test_export_onnx.py:\d+",
        ),
        (lambda linear, x: linear(x) + torch.rand(1), "two calls in eval mode differ"),
        (lambda linear, x: (linear(x), x), "not a tensor: name the logits"),
        (lambda linear, x: linear(x).argmax(1), "must be a floating-point tensor"),
        (lambda linear, x: linear(x).sum(), "first axis must be the batch"),
        (lambda linear, x: linear(x[:, :4]), "fails on the CPU in eval mode"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_with_the_reason(function, reason):
    with pytest.raises(UserError, match=reason):
        small(Calls(function), 5)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (
            {"args": (torch.ones(2, 6),), "kwargs": {"y": torch.ones(2, 4)}, "input_names": ["a"]},
            "one name for each of",
        ),
        ({"args": (torch.ones(2, 6),), "kwargs": {"y": torch.ones(3, 4)}, "input_names": ["a", "b"]}, "same batch"),
        ({"args": (torch.ones(2, 6),), "kwargs": {"y": torch.ones(2, 4)}, "input_names": ["a", "logits"]}, "output"),
        ({"args": (), "input_names": []}, "one name for each"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(call, reason):
    with pytest.raises(UserError, match=reason):
        export_onnx(TwoInputs(), **call, logits=lambda output: output["scores"])


@pytest.mark.parametrize("settings", [{"opset": 16}, {"opset": 22}, {"atol": 0}, {"rtol": -1}, {"ops": 18}])
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ExportSettings(**settings)


class Bag(nn.Module):
    """A classifier of bags of words, which exports as a loop with two outputs, one of which nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(50, 8, mode="mean"), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.bag(x))


class Parts(nn.Module):
    """A layer of whose parts the last is not used, as a gate that is left out."""

    def __init__(self, cut) -> None:
        super().__init__()
        self.wide, self.head, self.cut = nn.Linear(6, 24), nn.Linear(8, 3), cut

    def forward(self, x):
        a, b, _ = self.cut(self.wide(x))
        return self.head(a * b.sigmoid())


class Branch(nn.Module):
    """Two ways with two results each, of which the second is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        ways = (lambda x: (self.wide(x), x.clone()), lambda x: (-self.wide(x), x * 2))
        return self.head(torch.cond(x.sum() > 0, *ways, (x,))[0])


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Bag(), torch.randint(0, 50, (2, 7))),
        (Parts(lambda x: x.chunk(3, 1)), torch.randn(2, 6)),
        (Parts(lambda x: x.split([8, 8, 8], 1)), torch.randn(2, 6)),
        (Branch(), torch.randn(2, 6)),
    ],
    ids=["bag", "chunk", "split", "cond"],
)
def test_results_that_are_not_used_do_not_change_the_rest(model: nn.Module, example: torch.Tensor) -> None:
    core = export_onnx(model, args=(example,), input_names=["x"])
    onnx.checker.check_model(core)
    found = run_onnx(core, [{"x": example.numpy()}])
    np.testing.assert_allclose(found, model(example).detach().numpy(), rtol=1e-4, atol=1e-5)


class Bags(nn.Module):
    """A classifier of bags of tokens [N, L], weighted where it is given weights."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.bags, self.head = nn.EmbeddingBag(40, 8, **options), nn.Linear(8, 3)

    def forward(self, ids, weights=None):
        return self.head(self.bags(ids, per_sample_weights=weights))


@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted"])
@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_bags_of_embeddings_are_one_gather_at_any_batch_and_length(mode, padding, kind):
    torch.manual_seed(0)
    weighted = mode == "weighted"
    model = Bags(mode="sum" if weighted else mode, padding_idx=padding).eval()
    ids = torch.randint(0, 40, (5, 7), dtype=kind)
    ids[2] = 39 if padding == -1 else 0  # a bag of nothing but padding, where there is any
    ids[:, 5:] = ids[2, 0]
    args = (ids, torch.rand(5, 7)) if weighted else (ids,)
    names = ["ids", "weights"][: len(args)]
    axes = {name: {1: "tokens"} for name in names}
    proto = export_onnx(model, args=args, input_names=names, open_axes=axes)
    assert not {node.op_type for node in proto.graph.node} & {"Loop", "Scan", "SequenceEmpty", "ConcatFromSequence"}
    for rows, length in ((5, 7), (1, 7), (3, 6), (4, 1)):
        part = [value[:rows, :length] for value in args]
        with torch.no_grad():
            expected = model(*part).numpy()
        feed = {name: value.numpy() for name, value in zip(names, part, strict=True)}
        np.testing.assert_allclose(run_onnx(proto, [feed]), expected, atol=1e-5)


def test_bags_by_offsets_and_with_a_largest_norm_are_exported_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(40, 8, max_norm=1.0), nn.Linear(8, 3)).eval()
    flat = Calls(
        lambda head, x: head(
            nn.functional.embedding_bag(
                x.reshape(-1), torch.linspace(-1, 1, 200).reshape(40, 5), torch.arange(0, 7 * x.shape[0], 7), mode="max"
            )
        )
    )
    ids = torch.randint(0, 40, (4, 7))
    for case in (model, flat):
        proto = export_onnx(case, args=(ids,), input_names=["ids"])
        more = torch.randint(0, 40, (9, 7))
        with torch.no_grad():
            np.testing.assert_allclose(run_onnx(proto, [{"ids": more.numpy()}]), case(more).numpy(), atol=1e-5)


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        lengths = torch.full((x.shape[0],), 2)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.cells(packed)[1][-1])


class Middle(nn.Module):
    def forward(self, x):
        return x - x.kthvalue(2, dim=1, keepdim=True).values


@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        (
            nn.Sequential(nn.Linear(5, 4), nn.Sequential(Middle()), nn.Linear(4, 3)),
            (5,),
            r"aten\.kthvalue in its layer '1\.0', Middle\(\)",
        ),
        (Packs(), (3, 4), r"in its layer 'cells', GRU\(.*take each row's last step by gather"),
        (
            nn.Sequential(nn.LSTM(4, 6, proj_size=3, batch_first=True)),
            (5, 4),
            "its layer '0', LSTM.*leave proj_size out",
        ),
        (
            Calls(lambda f, x: f(torch.masked_select(x, x == x).reshape(x.shape))),
            (5,),
            "depends on the values of another",
        ),
    ],
)
def test_what_has_no_onnx_form_is_told_with_its_layer_and_a_way_out(model, shape, says):
    take = (
        (lambda out: out[0][:, -1])
        if isinstance(model[0] if isinstance(model, nn.Sequential) else 0, nn.LSTM)
        else None
    )
    with pytest.raises(UserError, match=says):
        small(model.eval(), *shape, logits=take)


class Twice(nn.Module):
    """Calls one layer twice, and adds in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU())
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.body[0](2 * x) + self.body(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("opset", [18, 20])
def test_nodes_are_called_by_their_modules(opset: int) -> None:
    settings = ExportSettings(opset=opset)
    proto = export_onnx(Twice(), args=(torch.randn(2, 3, 6, 6),), input_names=["x"], settings=settings)
    names = [(node.op_type, node.name) for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert names == [("Conv", "body.0"), ("Conv", "body.0/Conv_1"), ("Gemm", "head")]
    layers = layer_names(proto.graph)
    assert [layers[node.output[0]] for node in proto.graph.node if node.op_type == "Gemm"] == ["head"]
    assert not any(node.name for node in strip(proto).graph.node)


def test_layers_of_other_exporters_are_known_by_their_nodes() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "onnx::Conv_7"], ["a"], name="/layer1/layer1.0/conv1/Conv"),
        helper.make_node("Conv", ["a", "layer2.weight"], ["b"], name="/layer2/Conv_1"),
        helper.make_node("Relu", ["b"], ["c"], name="Relu"),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = onnx.GraphProto(node=nodes, initializer=[onnx.TensorProto(name="layer2.weight")])
    assert layer_names(graph) == {"a": "layer1/layer1.0/conv1", "b": "layer2", "c": "Relu"}


class Attention(nn.Module):
    """Attends over tensors of any number of axes, all of them as ``shape`` says behind the batch."""

    def __init__(self, *shape: int, **settings: Any) -> None:
        super().__init__()
        self.project, self.shape, self.settings = nn.Linear(8, 24), shape, settings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (part.reshape(-1, *self.shape) for part in self.project(x).chunk(3, -1))
        return functional.scaled_dot_product_attention(query, key, value, **self.settings).flatten(1)


class Routed(nn.Module):
    """A kernel of its own for each row, which is done by as many groups as there are rows."""

    def __init__(
        self, convolve: Any, kernel: tuple[int, ...], groups: int = 1, bias: bool = True, **steps: Any
    ) -> None:
        super().__init__()
        self.convolve, self.groups, self.steps = convolve, groups, steps
        self.kernel = (4 // groups, *kernel)
        self.weigh = nn.Linear(4, 8 * math.prod(self.kernel))
        self.shift = nn.Linear(4, 8) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, route = x.shape[0], x.flatten(2).mean(2)
        bias = None if self.shift is None else self.shift(route).flatten()
        kernels = self.weigh(route).view(rows * 8, *self.kernel)
        joined = x.reshape(1, rows * 4, *x.shape[2:])
        return self.convolve(joined, kernels, bias, groups=self.groups * rows, **self.steps).reshape(rows, -1)


MASK = torch.ones(3, 3, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Attention(6, 8), (6, 8)),
        (Attention(3, 2, 4), (3, 8)),
        (Attention(2, 2, 3, 4), (6, 8)),  # as in Hiera
        (Attention(1, 2, 2, 3, 4), (6, 8)),
        (Attention(2, 2, 3, 4, attn_mask=MASK), (6, 8)),
        (Attention(2, 2, 3, 4, attn_mask=torch.randn(2, 1, 3, 3)), (6, 8)),
        (Attention(2, 2, 3, 4, is_causal=True, scale=0.3), (6, 8)),
        (Routed(functional.conv2d, (1, 1)), (4, 7, 9)),  # as in CondConv
        (Routed(functional.conv2d, (3, 3), bias=False, padding=1), (4, 7, 9)),
        (Routed(functional.conv2d, (3, 3), groups=4, stride=2), (4, 7, 9)),
        (Routed(functional.conv2d, (5, 3), groups=2, stride=(1, 2), padding=(2, 1), dilation=(1, 2)), (4, 7, 9)),
        (Routed(torch.conv2d, (3, 3), padding=(1,), stride=[2]), (4, 7, 9)),
        (Routed(functional.conv1d, (3,), padding=1, dilation=2), (4, 9)),
    ],
)
def test_calls_that_the_exporter_has_no_form_for_are_written_in_others(
    model: nn.Module, shape: tuple[int, ...]
) -> None:
    """Each is compared with the module, as it is called outside of an export, at three batch sizes."""
    export_onnx(model, args=(torch.randn(2, *shape),), input_names=["x"])
