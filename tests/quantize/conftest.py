from __future__ import annotations

from quantize_zoo import mlp, pre_activation, resnet, separable, two_inputs, x86

__all__ = ["mlp", "pre_activation", "resnet", "separable", "two_inputs", "x86"]
