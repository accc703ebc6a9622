"""YAML that a person wrote, or a stranger: lists, mappings, texts, numbers, true, false and null, and nothing else.

As in YAML 1.2 a date and a time of day are texts; and 1e-3 is a number, as everywhere else. A key that comes twice is
an error, of which YAML's own loader would keep the last. Aliases are followed, but not without end.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from distill.documents import MOST_LEVELS, require_shallow

MOST_VALUES = 10**6
"""Of a document, aliases followed: ten lines of aliases of aliases can stand for more than any memory holds."""

_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": r"[-+]?(?:0|[1-9][0-9_]*)|0b[01_]+|0o[0-7]+|0x[0-9a-fA-F_]+",
    "float": r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
}


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: it is no YAML, is nested too deeply, or holds something else than plain values; with the line.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: not YAML (the character {chr(error.character)!r} is not allowed)") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{place}not YAML ({error.problem or error.context})") from error
    require_shallow(value)  # also where aliases make it deep
    return value


class _Loader(yaml.SafeLoader):
    """Composes nodes within limits, and makes plain values of them."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - of YAML's own class
    yaml_constructors = {  # noqa: RUF012
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _KINDS
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open = [0]  # values so far of each node that is being read
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read a node, and count what it stands for."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._open.append(1)
        if len(self._open) > MOST_LEVELS:
            raise _error("is nested too deeply", event)
        node = super().compose_node(parent, index)
        size = self._open.pop()
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _error(f"*{event.anchor} stands for what it stands in", event)
            size = self._sizes[id(node)]
        self._sizes[id(node)] = size
        self._open[-1] += size
        if self._open[-1] > MOST_VALUES:
            raise _error(f"aliases make more than {MOST_VALUES} values of it", event)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a mapping whose keys differ."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and key.value != "<<":
                    raise _error(f"{key.value!r} comes twice", key)
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make the value of a node; of a text that is none of its kind an error with its line."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError) as error:
            kind = node.tag.removeprefix(_TAG)
            raise _error(f"{str(node.value)[:40]!r} is no {kind} that can be read", node) from error

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        """Make a mapping of what is one."""
        if not isinstance(node, yaml.MappingNode):
            raise _error("a mapping was expected", node)
        return super().construct_mapping(node, deep=deep)

    def construct_undefined(self, node: yaml.Node) -> Any:
        """Refuse a value of any other kind."""
        tag = node.tag.replace(_TAG, "!!")
        raise _error(f"{tag} is not read here; write texts, numbers, lists and mappings", node)


_Loader.add_constructor(None, _Loader.construct_undefined)


def _error(problem: str, at: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


for _first, _resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
    for _of_tag, _pattern in _resolvers:
        if _of_tag.removeprefix(_TAG) in ("null", "bool", "merge"):
            _Loader.add_implicit_resolver(_of_tag, _pattern, [_first])
for _kind, _number in _NUMBERS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_number})$"), list("-+0123456789."))
