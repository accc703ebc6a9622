"""The architectures that pruning is tried on: published sizes with random weights, small inputs.

torchvision, timm and transformers are imported by the functions that need them only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.prune import recalibrate
from distill.prune.modules import Example

_SETTLING_ROWS = 8
_VOCABULARY = 1000  # as many as every vocabulary has
_SMALL = 0.1  # spread of parameters that start at nearly nothing
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Case:
    """One architecture: where it comes from, what makes it, and the ``shape`` of one image or row of tokens."""

    source: str
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)
    classes: int = 1000

    @property
    def title(self) -> str:
        """Return the name that ``--only`` is matched with."""
        return f"{self.source}/{self.name}"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Return the graph's input names, which are those of transformers' arguments too."""
        if len(self.shape) == 1:
            return ("input_ids", "attention_mask")
        return ("pixel_values",) if self.source == "transformers" else ("image",)

    def inputs(self, rows: int) -> Example:
        """Return the (args, kwargs) of a call, always the same rows; transformers are called by name, as people do."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.stack([self._row(generator) for _ in range(rows)])
        tensors = (drawn, torch.ones_like(drawn)) if len(self.shape) == 1 else (drawn,)
        if self.source == "transformers":
            return (), dict(zip(self.input_names, tensors, strict=True))
        return tensors, {}

    def _row(self, generator: torch.Generator) -> Tensor:
        if len(self.shape) == 1:
            return torch.randint(_VOCABULARY, self.shape, generator=generator)
        # As pictures do, rows differ in brightness and contrast: that is what a norm behind the pooling sees of them.
        light = torch.randn(self.shape[0], 1, 1, generator=generator)
        contrast = 0.5 + torch.rand(1, generator=generator)
        return light + contrast * torch.randn(self.shape, generator=generator)


def logits_of(output: Any) -> Tensor:
    """Take the logits from what a model of any of the sources returns."""
    found = getattr(output, "logits", output)
    assert isinstance(found, Tensor)
    return found


def built(case: Case, seed: int = 0) -> nn.Module:
    """Build a case in eval mode, with weights that answer to the input through every branch.

    Fresh layer scales, the last norms of residual branches and some heads are zero or nearly so, and some families
    start with weights so small that batch norms see nothing but their epsilon: a wrong cut would change no answer. So
    gains are drawn around 1, other constant parameters around their value, heads and convolutions beside batch norms as
    He et al. do (arXiv:1502.01852); batch norms then take the statistics of rows that hold those of every later call.
    """
    torch.manual_seed(seed)
    model = case.make().eval()
    normed = any(isinstance(module, _BatchNorm) for module in model.modules())
    heads = heads_of(model, case)
    with torch.no_grad():
        for module in model.modules():
            if module in heads or (normed and isinstance(module, nn.Conv2d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # type: ignore[arg-type]
            for name, parameter in module.named_parameters(recurse=False):
                if name == "weight" and isinstance(module, _NORMS):
                    parameter.uniform_(0.5, 1.5)
                elif parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
                    _draw_around(parameter, parameter.flatten()[0].item())
    return recalibrate(model, [case.inputs(_SETTLING_ROWS)], batches=1)


def _draw_around(parameter: Tensor, value: float) -> None:
    if abs(value) >= _SMALL:
        parameter.uniform_(0.5, 1.5).mul_(value)
    else:
        parameter.normal_(std=_SMALL)


def heads_of(model: nn.Module, case: Case) -> list[nn.Module]:
    """Return the layers that give the classes."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [layer for layer in layers if layer.weight.shape[0] == case.classes]


def _torchvision(name: str, **settings: Any) -> nn.Module:
    models = import_module("torchvision.models")
    if name in ("googlenet", "inception_v3"):  # their auxiliary heads are for training
        settings |= {"aux_logits": False, "init_weights": True}
    model = models.get_model(name, weights=None, **settings)
    assert isinstance(model, nn.Module)
    return model


def _timm(name: str, **settings: Any) -> nn.Module:
    model = import_module("timm").create_model(name, pretrained=False, num_classes=1000, **settings)
    assert isinstance(model, nn.Module)
    return model


def _transformers(family: str, task: str, classes: int, **settings: Any) -> nn.Module:
    transformers = import_module("transformers")
    config = getattr(transformers, f"{family}Config")(num_labels=classes, **settings)
    config._attn_implementation = "eager"  # others export badly or not at all
    model = getattr(transformers, f"{family}For{task}Classification")(config)
    assert isinstance(model, nn.Module)
    return model


def _vision(name: str, size: int = 64, **settings: Any) -> Case:
    return Case("torchvision", name, partial(_torchvision, name, **settings), (3, size, size))


def _of_timm(name: str, size: int = 64, **settings: Any) -> Case:
    return Case("timm", name, partial(_timm, name, **settings), (3, size, size))


def _image(name: str, family: str, size: int = 64, **settings: Any) -> Case:
    make = partial(_transformers, family, "Image", 1000, **settings)
    return Case("transformers", name, make, (3, size, size))


def _text(name: str, family: str, **settings: Any) -> Case:
    return Case("transformers", name, partial(_transformers, family, "Sequence", 2, **settings), (32,), classes=2)


CASES: tuple[Case, ...] = (
    _vision("alexnet"),
    _vision("vgg11_bn"),
    _vision("resnet18"),
    _vision("resnet50"),
    _vision("resnext50_32x4d"),
    _vision("wide_resnet50_2"),
    _vision("squeezenet1_1"),
    _vision("densenet121"),
    _vision("inception_v3", 96),
    _vision("googlenet"),
    _vision("shufflenet_v2_x1_0"),
    _vision("mobilenet_v2"),
    _vision("mobilenet_v3_small"),
    _vision("mobilenet_v3_large"),
    _vision("mnasnet1_0"),
    _vision("efficientnet_b0"),
    _vision("efficientnet_v2_s"),
    _vision("regnet_x_400mf"),
    _vision("regnet_y_400mf"),
    _vision("convnext_tiny"),
    _vision("vit_b_16", image_size=64),
    _vision("swin_t"),
    _vision("swin_v2_t"),
    _vision("maxvit_t", 224),  # its windows of 7 fit no smaller input
    _of_timm("mobilenetv4_conv_small"),
    _of_timm("ghostnet_100"),
    _of_timm("repvgg_a0"),
    _of_timm("rexnet_100"),
    _of_timm("res2net50_26w_4s"),
    _of_timm("cspresnet50"),
    _of_timm("dla34"),
    _of_timm("hrnet_w18_small"),
    _of_timm("skresnet18"),
    _of_timm("ese_vovnet19b_dw"),
    _of_timm("nfnet_l0"),
    _of_timm("convnextv2_atto"),
    _of_timm("poolformer_s12"),
    _of_timm("mixer_s16_224", img_size=64),
    _of_timm("vit_tiny_patch16_224", img_size=64),
    _of_timm("eva02_tiny_patch14_224", 56, img_size=56),
    _of_timm("levit_128s", 224),  # its attention biases are for this size
    _of_timm("mobilevit_xs"),
    _of_timm("pvt_v2_b0"),
    _of_timm("efficientformer_l1", 224),  # likewise
    _image("resnet-18", "ResNet", layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]),
    _image(
        "regnet-y-002", "RegNet", layer_type="y", depths=[1, 1, 4, 7], hidden_sizes=[24, 56, 152, 368], groups_width=8
    ),
    _image("mobilenet_v1_1.0", "MobileNetV1"),
    _image("mobilenet_v2_1.0", "MobileNetV2"),
    _image("efficientnet-b0", "EfficientNet", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
    _image("convnext-tiny", "ConvNext"),
    _image("vit-base", "ViT", image_size=64),
    _image(
        "deit-tiny",
        "DeiT",
        image_size=64,
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
    ),
    _image("swin-tiny", "Swin", 224),
    _text("bert-small", "Bert", num_hidden_layers=4, hidden_size=512, num_attention_heads=8, intermediate_size=2048),
    _text("distilbert-base", "DistilBert"),
)
