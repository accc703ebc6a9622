"""A multilayer perceptron for tabular data."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with batch norm, ReLU and dropout between them, and a linear classifier.

    Args:
        classes: number of logits.
        features: columns of the input.
        hidden: width of each hidden layer.
        dropout: share of hidden units dropped in training, in [0, 1).
    """

    def __init__(
        self, *, classes: int = 2, features: int = 1, hidden: Sequence[int] = (128, 128), dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = features
        for width in hidden:
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, features] to logits [N, classes]."""
        return self.head(self.body(x))  # type: ignore[no-any-return]
