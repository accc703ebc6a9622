"""Small data sets on disk, in the forms that the built-in tasks read."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder: Path, train: int = 200, test: int = 50, zipped: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", test)):
        files = {
            f"{stem}-images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            f"{stem}-labels-idx1-ubyte": (np.arange(count) % 10).astype(np.uint8),
        }
        for name, array in files.items():
            data = idx_bytes(array)
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    return folder


def cifar_batch(count: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records.tobytes()


def write_cifar(folder: Path, count: int = 30) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(cifar_batch(count, number))
    (folder / "test_batch.bin").write_bytes(cifar_batch(count, 6))
    return folder


def write_images(
    folder: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    count: int = 40,
    side: int = 12,
    mode: str = "RGB",
    seed: int = 0,
) -> Path:
    rng = np.random.default_rng(seed)
    for number, label in enumerate(classes):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for image in range(count):
            shape = (side, side) if mode == "L" else (side, side, 3)
            pixels = rng.integers(100 * number, 100 * number + 56, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{image:03}.png")
    return folder


def csv_rows(count: int = 120, seed: int = 0) -> list[list[str]]:
    """Age (some missing), job (text, some missing), one (constant), site (12 groups), class yes or no."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        age, job = rng.normal(40, 10), str(rng.choice(["baker", "smith", "clerk"]))
        rows.append([
            "" if number % 17 == 3 else f"{age:.2f}",
            "" if number % 19 == 5 else job,
            "7",
            f"s{number % 12}",
            "yes" if number % 3 == 0 else "no",
        ])  # fmt: skip
    return rows


def write_csv(path: Path, rows: list[list[str]] | None = None, header: str = "age,job,one,site,class") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = csv_rows() if rows is None else rows
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


CUSTOM = '''
import random
import numpy as np
import torch

SHIFT = 0


class Pairs(torch.utils.data.Dataset):
    """Two inputs a sample, drawn by number, with random augmentation from all three generators."""

    def __init__(self, count, first):
        self.count, self.first = count, first

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if not 0 <= number < self.count:
            raise IndexError(number)
        y = (self.first + number) % 3
        generator = torch.Generator().manual_seed(self.first + number)
        a = torch.randn(4, generator=generator) + y
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        return {"a": a + 0.01 * noise, "b": torch.full((2,), float(y)), "y": y}


def collate(items):
    batch = {name: torch.stack([item[name] for item in items]) for name in ("a", "b")}
    return {**batch, "y": torch.tensor([item["y"] for item in items])}


def make_data(count=60):
    return {
        "train": Pairs(count, 0), "validation": Pairs(20, 1000), "test": Pairs(20, 2000),
        "collate": collate,
        "labels": ["x", "y", "z"],
        "inputs": lambda batch: ((batch["a"],), {"b": batch["b"]}),
        "target": lambda batch: batch["y"],
        "logits": lambda output: output["scores"],
        "loss": lambda logits, target: torch.nn.functional.cross_entropy(
            logits, target, weight=torch.tensor([1.0, 2.0, 1.0], device=logits.device)),
        "metrics": lambda logits, target: {"balanced": float(np.mean([
            (logits.argmax(1)[target == c] == c).mean() for c in np.unique(target)]))},
        "metric": "balanced",
    }


def make_arrays(n=100, bad=None):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 5))
    y = np.arange(n) % 3
    if bad == "nan":
        x[7, 2] = np.nan
    if bad == "range":
        y[5] = -1
    if bad == "float":
        y = y.astype(float)
    return {"train": (x, y)}
'''


def forget(folder: Path) -> None:
    """Drop the modules that were loaded from a folder; those of libraries stay."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(folder):
            del sys.modules[name]


def write_custom(folder: Path, text: str = CUSTOM, name: str = "mydata.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
