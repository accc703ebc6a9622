"""Which residual blocks can be left out, found and skipped in models of many forms."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.export import export_onnx, parity, run_onnx
from distill.models import MODELS
from distill.models.resnet import ResNet
from distill.prune import PruneSettings, count, prune_channels
from distill.prune.depth.blocks import examine_blocks, removable_blocks
from distill.prune.depth.shallow import rank_blocks
from distill.prune.depth.skipped import Block, Skipped, skip_blocks, skip_blocks_, skipped_of
from distill.prune.modules import at_batch

Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    example: Example
    blocks: tuple[str, ...]
    logits: Callable[[Any], Tensor] = lambda output: output


def _of(package: str, build: Callable[[Any], nn.Module]) -> Callable[[], nn.Module]:
    """Build a model with a package that may be missing."""

    def built() -> nn.Module:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
        for name in ("nms", "qnms"):  # PyPI's torchvision looks for them, and a CPU build of torch has them not
            if not hasattr(torch.ops.torchvision, name):
                shape = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{name}", shape)
        return build(importlib.import_module(package))

    return built


def _bottlenecks(torchvision: Any) -> nn.Module:
    resnet = torchvision.models.resnet
    return resnet.ResNet(resnet.Bottleneck, [3, 1, 1, 1], num_classes=4, width_per_group=8)


def _efficientnet(torchvision: Any) -> nn.Module:
    family = torchvision.models.efficientnet
    stages = [family.MBConvConfig(1, 3, 1, 16, 16, 1, 1, 1), family.MBConvConfig(4, 3, 2, 16, 24, 2, 1, 1)]
    return family.EfficientNet(stages, dropout=0.1, num_classes=4)


class Encoder(nn.Module):
    """torch's own encoder, whose forward looks into its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=mask).mean(1))


class Residual(nn.Module):
    """Two layers with a shortcut, which takes and gives as told."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.up, self.down, self.form = nn.Linear(8, 16), nn.Linear(16, 8), form

    def forward(self, x: Tensor, *rest: Any, bias: Tensor | None = None, hidden_states: Tensor | None = None) -> Any:
        branch = self.down(torch.relu(self.up(x)))
        if self.form == "gate":
            return x * torch.sigmoid(branch)
        if self.form == "none":
            return branch
        if self.form == "detached":
            return (x + branch).detach()
        if self.form == "dict":
            return {"x": x + branch}
        return (x + branch, bias, branch.mean()) if self.form == "tuple" else x + branch


class Chain(nn.Module):
    """Residual blocks of one form, called in one of several ways."""

    def __init__(self, form: str = "tensor", call: str = "plain") -> None:
        super().__init__()
        self.first, self.layers = nn.Linear(6, 8), nn.ModuleList(Residual(form) for _ in range(2))
        self.head, self.form, self.call = nn.Linear(8, 3), form, call

    def forward(self, x: Tensor) -> Any:
        x, bias, seen = torch.relu(self.first(x)), None, []
        for layer in self.layers:
            for _ in range(2 if self.call == "twice" else 1):
                given = layer(x=x, bias=x) if self.form == "tuple" else layer(x)
                if self.form == "tuple":
                    x, bias, _ = given
                else:
                    x = given["x"] if self.form == "dict" else given
            seen.append(layer.up.weight.sum() if self.call == "reads inside" else x)
        logits = self.head(x if bias is None else x + 0 * bias)
        return {"logits": logits, "all": seen} if self.call == "keeps" else logits + 0 * sum(s.sum() for s in seen)


def images(side: int, channels: int = 3) -> Example:
    return (torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1)),), {}


TOKENS = torch.arange(16).reshape(2, 8) % 20
MASK = torch.arange(8).expand(2, 8) < torch.tensor([[8], [5]])
TEXT: Example = ((), {"input_ids": TOKENS, "attention_mask": MASK.long()})
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def _names(pattern: str, *numbers: Any) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in numbers)


CASES = {
    "resnet": Case(lambda: ResNet(blocks=(2, 2), widths=(8, 16)), images(8), _names("stages.{}", 0, 1, 3)),
    "encoder": Case(Encoder, ((TOKENS, ~MASK), {}), _names("encoder.layers.{}", 0, 1, 2)),
    "tuple": Case(lambda: Chain("tuple"), ((torch.ones(2, 6),), {}), _names("layers.{}", 0, 1)),
    "basic blocks": Case(
        _of("torchvision", lambda tv: tv.models.resnet18(num_classes=4)), images(32),
        ("layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"),
    ),
    "bottlenecks": Case(_of("torchvision", _bottlenecks), images(32), ("layer1.1", "layer1.2")),
    "mobilenet v2": Case(
        _of("torchvision", lambda tv: tv.models.mobilenet_v2(num_classes=4, width_mult=0.5)), images(32),
        _names("features.{}", 3, 5, 6, 8, 9, 10, 12, 13, 15, 16),
    ),
    "efficientnet": Case(_of("torchvision", _efficientnet), images(32), ("features.1.0", "features.2.1")),
    "mobilenet v3": Case(
        _of("timm", lambda timm: timm.create_model("mobilenetv3_small_050", num_classes=4)), images(32),
        ("blocks.1.1", "blocks.2.1", "blocks.2.2", "blocks.3.0", "blocks.3.1", "blocks.4.1", "blocks.4.2"),
    ),
    "convnext": Case(
        _of("timm", lambda timm: timm.create_model("convnext_atto", depths=(1, 2, 1, 1), dims=(8, 16, 16, 16))),
        images(32), _names("stages.{}", "0.blocks.0", "1.blocks.0", "1.blocks.1", "2.blocks.0", "3.blocks.0"),
    ),
    "vit": Case(
        _of("timm", lambda timm: timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2)),
        images(32), _names("blocks.{}", 0, 1),
    ),
    "swin": Case(
        _of("timm", lambda timm: timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4,
                                                   embed_dim=12, depths=(2, 1), num_heads=(1, 2))), images(32),
        _names("layers.{}", "0.blocks.0", "0.blocks.1", "1.blocks.0"),
    ),
    "bert": Case(
        _of("transformers", lambda t: t.BertForSequenceClassification(t.BertConfig(vocab_size=20, **SMALL))), TEXT,
        _names("bert.encoder.layer.{}", 0, 1), lambda output: output.logits,
    ),
    "distilbert": Case(
        _of("transformers", lambda t: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=32))), TEXT,
        _names("distilbert.transformer.layer.{}", 0, 1), lambda output: output.logits,
    ),
    "transformers vit": Case(
        _of("transformers", lambda t: t.ViTForImageClassification(t.ViTConfig(image_size=16, patch_size=8, **SMALL))),
        images(16), _names("vit.layers.{}", 0, 1), lambda output: output.logits,
    ),
    "transformers swin": Case(
        _of("transformers", lambda t: t.SwinForImageClassification(
            t.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=4))),
        images(16), _names("swin.encoder.layers.{}", "0.blocks.0", "0.blocks.1", "1.blocks.0"),
        lambda output: output.logits,
    ),
}  # fmt: skip


SHIPPED = {
    "tuple": CASES["tuple"],
    "bert": CASES["bert"],
    "basic": Case(lambda: ResNet(blocks=(3,), widths=(8,)), images(8), ()),
}


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return CASES[name].build().eval()


def logits_of(name: str, model: nn.Module, example: Example | None = None) -> Tensor:
    args, kwargs = example or CASES[name].example
    with torch.no_grad():
        return CASES[name].logits(model(*args, **kwargs))


def found(name: str, model: nn.Module) -> list[Block]:
    return removable_blocks(model, CASES[name].example, CASES[name].logits)


@pytest.mark.parametrize("name", CASES)
def test_residual_blocks_are_found_skipped_and_rebuilt(name: str) -> None:
    case, model = CASES[name], make(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    blocks = found(name, model)
    assert tuple(block.name for block in blocks) == case.blocks

    result = skip_blocks(model, blocks[:-1])

    assert not any(isinstance(module, Skipped) for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    before, after = count(model, *case.example), count(result, *case.example)
    assert before.parameters - after.parameters == sum(block.parameters for block in blocks[:-1])
    assert before.macs - after.macs == sum(block.macs for block in blocks[:-1]) > 0
    gone = tuple(f"{block.name}." for block in blocks[:-1])
    assert list(result.state_dict()) == [key for key in state if not key.startswith(gone)]
    for batch in (1, 2, 3):
        example = at_batch(case.example, batch)
        assert logits_of(name, result, example).shape == logits_of(name, model, example).shape
    loss = case.logits(result.train()(*case.example[0], **case.example[1])).sum()
    loss.backward()

    fresh = skip_blocks_(make(name, seed=1), json.loads(json.dumps(skipped_of(result))))
    fresh.load_state_dict(result.state_dict())
    assert torch.equal(logits_of(name, fresh.eval()), logits_of(name, result.eval()))
    assert skipped_of(fresh) == skipped_of(result)


@pytest.mark.parametrize("name", ["resnet", "encoder", "tuple", "bottlenecks", "vit", "convnext"])
def test_a_block_without_a_branch_is_missed_by_nobody(name: str) -> None:
    model = make(name)
    block = found(name, model)[1]
    branch = model.get_submodule(block.name)
    for parameter in branch.parameters():
        parameter.data.zero_()
    for module in branch.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    without = skip_blocks(model, [block])
    assert torch.equal(logits_of(name, model), logits_of(name, without))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["tuple", "basic", "bert"])
def test_the_exported_graph_has_nothing_of_the_block(name: str) -> None:
    case, model = SHIPPED[name], SHIPPED[name].build().eval()
    result = skip_blocks(model, removable_blocks(model, case.example, case.logits)[1:])
    args, kwargs = case.example
    names = [f"input{number}" for number in range(len(args))] + list(kwargs)
    proto = export_onnx(result, args=args, kwargs=kwargs, logits=case.logits, input_names=names)
    feed = dict(zip(names, (value.numpy() for value in (*args, *kwargs.values())), strict=True))
    with torch.no_grad():
        expected = case.logits(result(*args, **kwargs)).numpy()
    assert parity(expected, run_onnx(proto, [feed]), atol=1e-5, rtol=1e-4).ok
    kept = sum(onnx.numpy_helper.to_array(one).size for one in proto.graph.initializer if one.data_type == 1)
    sizes = [sum(tensor.numel() for tensor in one.state_dict().values()) for one in (model, result)]
    assert kept <= sizes[1] + 32 < sizes[0]
    if name == "basic":
        assert sum(node.op_type == "Conv" for node in proto.graph.node) == 3


def test_models_without_such_blocks_are_refused_with_the_reason() -> None:
    image = images(16)
    with pytest.raises(UserError, match=r"blocks\.2: its input does not reach its output around the layers"):
        removable_blocks(MODELS["depthwise"](), image, lambda output: output)
    with pytest.raises(UserError, match="no part of it"):
        removable_blocks(MODELS["mlp"](features=4), ((torch.ones(2, 4),), {}), lambda output: output)
    with pytest.raises(UserError, match="does not run on its example input at batch 1"):
        removable_blocks(ResNet(), images(16, channels=1), lambda output: output)


@pytest.mark.parametrize(
    ("form", "call", "reason"),
    [
        ("none", "plain", "no shortcut inside"),
        ("gate", "plain", "no shortcut inside"),
        ("detached", "plain", "autograd does not follow"),
        ("dict", "plain", "neither a tensor nor a tuple"),
        ("tensor", "twice", "more than once"),
        ("tensor", "reads inside", "without it the model does not run"),
    ],
)
def test_every_block_that_stays_has_a_reason(form: str, call: str, reason: str) -> None:
    blocks, refused = examine_blocks(Chain(form, call), ((torch.ones(2, 6),), {}), lambda output: output)
    assert not blocks
    assert set(refused) == {"layers.0", "layers.1"}
    assert all(reason in why for why in refused.values())


def test_a_block_that_changes_another_output_stays() -> None:
    class Collects(Chain):
        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.first(x))
            middle = self.layers[0](x, bias=x)[0]
            last, _, extra = self.layers[1](middle)
            return {"logits": self.head(last), "extra": extra}

    blocks, refused = examine_blocks(Collects("tuple"), ((torch.ones(2, 6),), {}), lambda output: output["logits"])
    assert [block.name for block in blocks] == ["layers.0"]
    assert "without it" in refused["layers.1"]


def test_a_stage_is_offered_block_by_block_and_a_nested_residual_as_one() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = Residual("tensor"), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            return x + self.other(x)

    stage = nn.Sequential(Residual("tensor"), Residual("tensor"))
    model = nn.Sequential(nn.Linear(8, 8), stage, Nested(), nn.Linear(8, 2))
    blocks = removable_blocks(model, ((torch.ones(2, 8),), {}), lambda output: output)
    assert [(block.name, block.kind) for block in blocks] == [("1.0", "Residual"), ("1.1", "Residual"), ("2", "Nested")]


def test_a_model_keeps_its_modes_gradients_and_hooks() -> None:
    model = ResNet(channels=1, blocks=(2,), widths=(8,)).train()
    model.stem.eval()
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    blocks = removable_blocks(model, images(8, 1), lambda output: output)
    rank_blocks(model, blocks, [images(8, 1)], lambda model, batch: model(*batch[0]).mean(), remove=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_plain_data_that_fit_no_block_are_refused_and_change_nothing() -> None:
    model = ResNet(channels=1, blocks=(2,), widths=(8,))
    good = {"name": "stages.0", "returns": "x"}
    for wrong, message in (
        ({"name": "stages.7", "returns": "x"}, "no module 'stages.7'"),
        ({"name": "stages.0.conv1", "returns": "x"}, "lies in another block"),
        ({"name": "stages.1"}, "is no block"),
        ("stages.1", "is no block"),
    ):
        with pytest.raises(UserError, match=message):
            skip_blocks_(model, [good, wrong])  # type: ignore[list-item]
    assert not skipped_of(model)
    assert skip_blocks_(model, [good]) is model
    assert skipped_of(skip_blocks_(model, [good])) == [good]
    with pytest.raises(UserError, match="skipped already"):
        skip_blocks_(model, [{"name": "stages.0", "returns": ["x", None]}])


@pytest.mark.parametrize(
    ("decided", "says"),
    [
        ([], "they are of 0 steps, 1 are asked for"),
        ([{"skipped": [], "gone": {"0": 10**9}}], "1000000000 units of '0' are to go, at most 16"),
        ([{"skipped": [], "gone": {"nobody": 3}}], "3 units of 'nobody' are to go, at most 0"),
        ([{"skipped": [{"name": "nope", "returns": "x"}], "gone": {}}], "no module 'nope'"),
        ([{"skipped": [{"name": "5", "returns": "nothing"}], "gone": {}}], "does not run"),
        ([{"skipped": [{"name": "5", "returns": "input"}], "gone": {}}], "the model returns something else"),
    ],
)
def test_decisions_of_another_model_are_refused(decided: list[dict[str, Any]], says: str) -> None:
    layers = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    settings = PruneSettings(speedup=2.0, importance="magnitude")
    with pytest.raises(UserError, match=says):
        prune_channels(
            nn.Sequential(*layers).eval(),
            settings,
            example=((torch.randn(2, 3, 8, 8),), {}),
            batches=None,
            loss=None,
            logits=lambda output: output,
            decided=decided,
        )
