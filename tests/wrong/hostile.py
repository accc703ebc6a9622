"""Folders and files of a stranger: what each one holds, and words that its refusal must hold.

Whatever is run of them leaves a file ``ran`` in the current folder.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVIL = "from pathlib import Path\nPath('ran').touch()\ndef make(*args, **kwargs):\n    Path('ran').touch()\n"
TOUCH = "touch ran"
MINE = "net.py:make"


class Pickled:
    """An object that leaves its mark where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Say what unpickling calls."""
        return os.system, (TOUCH,)


@dataclass(frozen=True)
class Hostile:
    """A folder that `prune` left, and what a stranger changed in it."""

    name: str
    says: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Path], Any] | None = None
    trust: tuple[str, ...] = ()

    def lay_out(self, folder: Path) -> None:
        """Change a folder that was whole."""
        path = folder / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **self.about}))
        if self.change is not None:
            self.change(folder)


def calls(reference: Any, says: tuple[str, ...] = ("never chooses code", "trust="), /, **arguments: Any) -> Hostile:
    """Name code, without the caller's word for it."""
    return Hostile(f"calls {reference!r} {arguments or ''}", says, {"reference": reference, "arguments": arguments})


def library(reference: str, says: tuple[str, ...], /, **arguments: Any) -> Hostile:
    """Say something to a model that a library registers."""
    name = f"{reference} {arguments}"
    return Hostile(name, says, {"reference": reference, "arguments": arguments})


def structure(name: str, says: tuple[str, ...], *place: str, value: Any) -> Hostile:
    """Set a value somewhere in the structure of a model that the caller trusts."""

    def change(folder: Path) -> None:
        path = folder / "model.json"
        about = json.loads(path.read_text())
        inner = about["structure"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_text(json.dumps(about))

    return Hostile(f"structure with {name}", says, {}, change, (MINE,))


def file(name: str, says: tuple[str, ...], change: Callable[[Path], Any]) -> Hostile:
    """Put something else in the place of a file."""
    return Hostile(name, says, {}, change, (MINE,))


def replaced(name: str, by: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Put what ``by`` makes in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        by(folder / name)

    return change


def text(held: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(held)


def link(to: str) -> Callable[[Path], Any]:
    return lambda path: path.symlink_to(to)


BOMB = "[" * 100_000
STRANGE_NUMBERS = '{"format": "distill pruned model 1", "structure": {}, "arguments": {}, "reference": %s}'
CODE = ("never chooses code", "trust=")
NOT_SET = ("is none that a file may set", "a function of your own")
WORD = ("is a word that no architecture", "a function of your own")

FOLDERS = (
    calls("os:system", command=TOUCH),
    calls("subprocess:run", args=TOUCH, shell=True),
    calls("subprocess:getoutput", cmd=TOUCH),
    calls("builtins:exec", source="open('ran', 'w')"),
    calls("builtins:eval", source="open('ran', 'w')"),
    calls("builtins:open", file="ran", mode="w"),
    calls("importlib:import_module", name="evil"),
    calls("runpy:run_path", path_name="evil.py"),
    calls("pickle:loads", data="..."),
    calls("torch:load", f="evil.pt", weights_only=False),
    calls("torch.hub:load", repo_or_dir=".", model="make", source="local"),
    calls("shutil:rmtree", path="."),
    calls("distill.cli:main", arguments=["run"]),
    calls("distill.prune:load", folder="there", trust="./evil.py:make"),
    calls("distill.references.functions:load_reference", reference="./evil.py:make"),
    calls("evil:make"),
    calls("evil.py:make"),
    calls("./evil.py:make"),
    calls("there/evil.py:make"),
    calls("there/../evil.py:make"),
    calls("~/../../../../evil.py:make"),
    calls("net:make.__globals__"),
    calls("net.py:Blocks"),
    calls("Timm:resnet10t"),
    calls(" timm:resnet10t"),
    calls("net\0.py:make"),
    calls("net.py:make\n"),
    calls("\x1b[2Jnet.py:make", ("never chooses code", "\\x1b[2J")),
    calls("a" * 10_000),
    calls(""),
    calls(":"),
    calls(5, ("is damaged",)),
    calls(None, ("is damaged",)),
    calls(["os:system"], ("is damaged",)),
    Hostile("arguments are a list", ("is damaged",), {"arguments": [TOUCH]}, trust=(MINE,)),
    Hostile("another is trusted", CODE, {"reference": "./evil.py:make"}, trust=(MINE, "evil:other")),
    Hostile("a part of it is trusted", CODE, {"reference": "./evil.py:make"}, trust=("evil.py", "make", "./evil.py:")),
    calls("timm:hf-hub:evil/x"),
    calls("timm:hf_hub:evil/x"),
    calls("timm:local-dir:there"),
    calls("timm:../there"),
    calls("timm:resnet10t.hf-hub:evil"),
    calls("timm:"),
    library("timm:resnet10t", NOT_SET, checkpoint_path="evil.pt"),
    library("timm:resnet10t", NOT_SET, pretrained=True),
    library("timm:resnet10t", NOT_SET, pretrained_cfg={"file": "evil.pt"}),
    library("timm:resnet10t", NOT_SET, pretrained_cfg_overlay={"file": "evil.pt"}),
    library("timm:resnet10t", NOT_SET, cache_dir="there"),
    library("timm:resnet10t", NOT_SET, features_only=True),
    library("timm:resnet10t", NOT_SET, pruned=True),
    library("timm:resnet10t", WORD, act_layer="os:system"),
    library("timm:resnet10t", ("is beyond",), num_classes=2**62),
    library("timm:resnet10t", ("a model of more than",), num_classes=2**23),
    library("timm:resnet10t", NOT_SET, global_pool={"a": 1}),
    calls("torchvision:get_model", name="resnet18"),
    calls("torchvision:__getattr__"),
    calls("torchvision:.."),
    calls("torchvision:resnet18/../../there"),
    library("torchvision:resnet18", NOT_SET, weights="DEFAULT"),
    library("torchvision:resnet18", NOT_SET, weights="there/evil.pt"),
    library("torchvision:fcn_resnet50", NOT_SET, weights_backbone="DEFAULT"),
    library("torchvision:resnet18", WORD, norm_layer="os:system"),
    calls("transformers:there", trust_remote_code=True),
    calls("transformers:./there", trust_remote_code=True),
    calls("transformers:evil/x", trust_remote_code=True, code_revision="main"),
    library("transformers:distilbert", NOT_SET, trust_remote_code=True),
    library("transformers:swin", ("is beyond 64",), window_size=160, image_size=224),
    library("transformers:vit", ("is beyond 3072",), image_size=[5120, 224]),
    library("timm:swin_tiny_patch4_window7_224", ("is beyond",), window_size=300, img_size=9600),
    library("timm:maxvit_tiny_rw_224", ("is beyond 3072",), img_size=8192),
    library("transformers:distilbert", NOT_SET, auto_map={"AutoModelForSequenceClassification": "evil.make"}),
    library("transformers:distilbert", NOT_SET, attn_implementation="evil/kernel"),
    library("transformers:distilbert", NOT_SET, _attn_implementation="evil/kernel"),
    library("transformers:distilbert", NOT_SET, quantization_config={"quant_method": "evil"}),
    library("transformers:distilbert", NOT_SET, pretrained=True),
    library("transformers:distilbert", WORD, dtype="nn"),
    library("transformers:distilbert", WORD, activation="../evil"),
    library("transformers:llama", NOT_SET, rope_parameters={"__class__": 1}),
    library("transformers:timm_wrapper", WORD, architecture="hf-hub:evil/x"),
    library("transformers:timm_wrapper", NOT_SET, model_args={"checkpoint_path": "evil.pt"}),
    Hostile(
        "a hub's name is trusted, and told to run its code",
        NOT_SET,
        {"reference": "transformers:there", "arguments": {"trust_remote_code": True}},
        trust=("transformers:there",),
    ),
    Hostile(
        "arguments that fill the memory", ("a model of more than",), {"arguments": {"width": 2**14}}, None, (MINE,)
    ),
    structure("2^62 channels", ("only narrows",), "modules", "0", "shapes", "weight", value=[2**62, 3, 3, 3]),
    structure("fewer than none", ("only narrows",), "modules", "0", "shapes", "weight", value=[-1, 3, 3, 3]),
    structure("half a channel", ("only narrows",), "modules", "0", "shapes", "weight", value=[0.5, 3, 3, 3]),
    structure("words for sizes", ("only narrows",), "modules", "0", "shapes", "weight", value="4333"),
    structure("truth for a size", ("only narrows",), "modules", "0", "attributes", "groups", value=True),
    structure("no groups", ("only narrows",), "modules", "0", "attributes", "groups", value=0),
    structure("many inputs", ("only narrows",), "modules", "0", "attributes", "in_channels", value=2**62),
    structure("a word for a width", ("only narrows",), "modules", "0", "attributes", "in_channels", value="os:system"),
    structure("another attribute", ("other tensors",), "modules", "0", "attributes", "forward", value="os:system"),
    structure("another tensor", ("other tensors",), "modules", "0", "shapes", "__class__", value=[1]),
    structure("another module", ("another model",), "modules", "0.__class__", value={"attributes": {}, "shapes": {}}),
    structure("a number for a module", ("other tensors",), "modules", "0", value=5),
    structure("modules in a list", ("this version reads",), "modules", value=[1]),
    structure("another format", ("this version reads",), "format", value="os:system"),
    structure("a class to skip", ("is no block",), "skipped", value=[{"name": "0", "kind": "os:system"}]),
    structure("a module to skip that is none", ("has no module",), "skipped", value=[{"name": "os", "returns": "x"}]),
    structure("a number to skip", ("must be a list",), "skipped", value=5),
    structure("a property for a stand-in", ("stand_ins has",), "stand_ins", value=["__class__"]),
    structure("a number for a stand-in", ("stand_ins has",), "stand_ins", value=[5]),
    structure("a mapping of stand-ins", ("must be a list",), "stand_ins", value={"0": "os:system"}),
    file("the structure is a word", ("is damaged",), replaced("model.json", text(STRANGE_NUMBERS % "NaN"))),
    file("a number beyond all", ("is damaged",), replaced("model.json", text(STRANGE_NUMBERS % "1e999"))),
    file("a number of 5,000 digits", ("is damaged",), replaced("model.json", text(STRANGE_NUMBERS % ("9" * 5000)))),
    file("nested too deeply", ("nested too deeply",), replaced("model.json", text(BOMB))),
    file("a link out of the folder", ("is damaged",), replaced("model.json", link("/etc/passwd"))),
    file("a link to itself", ("cannot be read",), replaced("model.json", link("model.json"))),
    file("a device", ("is a device",), replaced("model.json", link("/dev/zero"))),
    file("a pipe", ("is damaged",), replaced("model.json", os.mkfifo)),
    file("a folder", ("is a folder",), replaced("model.json", os.mkdir)),
    file("bytes", ("is damaged",), replaced("model.json", lambda path: path.write_bytes(b"\xff\xfe\x00"))),
    file("a pickle", ("is no safetensors file",), replaced("model.safetensors", lambda path: pickled(path))),
    file("weights that link out", ("is no safetensors file",), replaced("model.safetensors", link("/etc/passwd"))),
    file("weights in a pipe", ("there is no such file",), replaced("model.safetensors", os.mkfifo)),
    file("weights in a device", ("there is no such file",), replaced("model.safetensors", link("/dev/zero"))),
    file("weights of a huge header", ("is no safetensors",), replaced("model.safetensors", lambda path: huge(path))),
)


def pickled(path: Path) -> None:
    """Write a pickle that leaves its mark."""
    path.write_bytes(pickle.dumps(Pickled()))


def huge(path: Path) -> None:
    """Write a file of safetensors whose header says that it is all of the memory."""
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


def chosen(**values: Any) -> dict[str, Any]:
    """Return decisions in which the search chose these values, by dotted keys with a double underscore."""
    named = {key.replace("__", "."): value for key, value in values.items()}
    return {"search": {"chosen": named, "trial": 0, "metric": 1.0, "macs": 1.0, "goal": 1.0, "trials": []}}


def decided(**values: Any) -> dict[str, Any]:
    """Return decisions in which pruning was kept, with other values in some places."""
    whole = {"kept": True, "reason": "", "drop": None, "speedup": None, "bytes_before": 1, "bytes_after": 1}
    return {"prune": {**whole, "warnings": [], **values}}


NOT_CHOSEN = "which a search does not choose"
DECISIONS: dict[str, tuple[Any, str]] = {
    "a program": (chosen(export__load_with=["/bin/sh"]), "search.chosen.export.load_with"),
    "a program as a number": (chosen(export__load_with=1.0), f"'export.load_with', {NOT_CHOSEN}"),
    "a source of data": (chosen(data__source="./evil.py:make"), "search.chosen.data.source"),
    "a teacher": (chosen(teacher__model="./evil.py:make"), "search.chosen.teacher.model"),
    "a command that measures": (chosen(target__measure=TOUCH), "search.chosen.target.measure"),
    "a threshold": (chosen(max_drop=1.0), f"'max_drop', {NOT_CHOSEN}"),
    "epochs": (chosen(distill__epochs=10.0), f"'distill.epochs', {NOT_CHOSEN}"),
    "batches of all memory": (chosen(prune__batches=2.0**40), f"'prune.batches', {NOT_CHOSEN}"),
    "a part of a part": (chosen(distill__temperature__real=1.0), NOT_CHOSEN),
    "an attribute of the class": (chosen(__class=1.0), NOT_CHOSEN),
    "a key that is none": (chosen(nothing=1.0), NOT_CHOSEN),
    "a temperature beyond its range": (
        chosen(distill__temperature=99.0),
        "distill.temperature=99.0: must be in [1, 8]",
    ),
    "a temperature below none": (chosen(distill__temperature=-1.0), "distill.temperature=-1.0: must be in"),
    "a temperature in words": (chosen(distill__temperature="4"), "search.chosen.distill.temperature"),
    "a temperature that is true": (chosen(distill__temperature=True), "search.chosen.distill.temperature"),
    "a temperature that is nothing": (chosen(distill__temperature=None), "search.chosen.distill.temperature"),
    "a temperature of many": (chosen(distill__temperature=[4.0]), "search.chosen.distill.temperature"),
    "a ratio where nothing is pruned": (chosen(prune__ratio=0.5), f"'prune.ratio', {NOT_CHOSEN}"),
    "another key in the search": ({"search": {**chosen()["search"], "run": TOUCH}}, "search.run"),
    "a search without a choice": ({"search": {}}, "search.chosen"),
    "a stage that is none": ({"exec": {"kept": True}}, "exec"),
    "a word for a verdict": (decided(kept="yes"), "prune.kept"),
    "a number for a verdict": (decided(kept=1), "prune.kept"),
    "a number for a reason": (decided(reason=5), "prune.reason"),
    "half of a drop": (decided(drop={"value": 1.0}), "prune.drop.low"),
    "warnings in a word": (decided(warnings="all"), "prune.warnings"),
    "widths in a word": ({"prune-widths": "all"}, "prune-widths"),
    "widths of a class": ({"prune-widths": [{"skipped": [{"name": "0", "kind": "os:system"}], "gone": {}}]}, "returns"),
    "widths below none": ({"prune-widths": [{"skipped": [], "gone": {"0": -1}}]}, "prune-widths.0.gone.0"),
    "widths of half a channel": ({"prune-widths": [{"skipped": [], "gone": {"0": 0.5}}]}, "prune-widths.0.gone.0"),
    "decisions in a list": ([1], "decisions"),
    "decisions that are a number": (5, "decisions"),
}

DOCUMENTS: dict[str, Callable[[Path], Any]] = {
    "nested too deeply": text(BOMB),
    "mappings nested too deeply": text('{"schema":2,"reports":' * 50_000),
    "flow nested too deeply": text("{a: " * 50_000),
    "a number of 5,000 digits": text(f'{{"schema": 2, "models": {"9" * 5000}, "cases": []}}'),
    "a date that is none": text("models: [0000-99-99]"),
    "a python object": text(f"!!python/object/apply:os.system [{TOUCH}]"),
    "a python object inside": text(f"models: [!!python/object/apply:os.system [{TOUCH}]]"),
    "a python name": text("models: !!python/name:os.system"),
    "a link out": link("/etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": link("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a pickle": lambda path: pickled(path),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "nothing": text(""),
    "a number": text("5"),
    "lists of lists": text('{"schema": 2, "models": [[]], "cases": [[]], "reports": [[]], "status": []}'),
    "a command in a report": text(
        json.dumps({"schema": 2, "reports": [{"models": [{"facts": {"path": "./evil.py:make"}}], "command": TOUCH}]})
    ),
    "a command in a result": text(
        json.dumps({"status": "ok", "board": {}, "sent": {"facts": [], "target": {"measure": TOUCH}}, "answers": [1]})
    ),
    "an error without a kind": text('{"status": "error", "board": 5, "sent": 5}'),
}
