"""torch-pruning's dependency graph, with what happens to channels in reshapes and splits read from shapes.

torch-pruning 1.6 reads both from attributes of autograd that newer versions of torch have renamed, and guesses from the
layers around instead: by zero where channels are shuffled, and by lists without an end in windowed attention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, cycle
from threading import RLock
from typing import Any

import torch_pruning as tp
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch_pruning import ops
from torch_pruning._helpers import GroupItem, _HybridIndex
from torch_pruning.dependency import index_mapping, shape_infer
from torch_pruning.dependency.dependency import Dependency as Edge
from torch_pruning.dependency.group import Group

from distill.prune.graph.axes import Axes, Flattened, Halved, Reshape, axis_of, input_shape, output_shape, read_reshape
from distill.prune.graph.operands import Joins, first_uses, is_product, linear_weights, within

_LOCK = RLock()  # torch-pruning's functions are those of the whole process


class Dependency(tp.DependencyGraph):  # type: ignore[misc]
    """torch-pruning's graph with our reading of reshapes and splits.

    ``lost`` says of nodes why the channels that go through them cannot be followed: their groups must stay as they are.
    ``bare`` are the parameters that multiply channels though no layer of torch's holds them, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost: dict[Any, str] = {}
        self.bare: list[str] = []
        self._reshapes: dict[Any, Reshape] = {}
        self._parts: dict[Any, list[int]] = {}
        self._joined: dict[Any, list[tuple[Any, int]] | None] = {}
        self._axes = Axes()
        self._mapped = False
        # A module that is called twice is one node, of two functions.
        self._nodes: dict[Any, Any] = {}
        self._longest = 0

    def build_dependency(self, *args: Any, **kwargs: Any) -> Any:
        """Trace a model, as torch-pruning does."""
        with self._reads_shapes(), Joins(self._parts):
            built = super().build_dependency(*args, **kwargs)
        self._map_halves()
        called = {id(node.module.weight) for node in self.module2node.values() if isinstance(node.module, nn.Linear)}
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for node in self.module2node.values():
            weights = linear_weights(node.grad_fn) if node.type == ops.OPTYPE.ELEMENTWISE else ()
            for weight in weights:
                if id(weight) not in called:
                    name = names.get(id(weight), "a weight")
                    self.lost[node] = f"its channels meet {name}, which is applied outside of its layer's own call"
        self._meet_bare_parameters()
        self._let_go()
        self._longest = max((size for node in self.module2node.values() for size in _sizes(node)), default=0)
        return built

    def _meet_bare_parameters(self) -> None:
        for node in list(self.module2node.values()):
            if node.type != ops.OPTYPE.PARAMETER or node.module.ndim < 2:
                continue
            products = [product for product in first_uses(node) if is_product(product.grad_fn)]
            name = self._param_to_name.get(node.module, "a parameter")
            if products:
                self.bare.append(name)
            for product in products:
                self.lost[product] = f"its channels meet {name}, a parameter that no layer of torch.nn applies"

    def runs_along(self, module: nn.Module) -> bool:
        """Tell a layer that reads another axis than that of the channels which come in: each meets the others in it."""
        node = self.module2node[module]
        into, shape = self._axes.into(node), next(map(output_shape, node.inputs), None)
        if into is None or shape is None or not isinstance(module, _ConvNd | nn.Linear):
            return False
        return into != (1 if isinstance(module, _ConvNd) else len(shape) - 1)

    def _let_go(self) -> None:
        """Take away the edges on which no channel goes on: behind a statistic over them, and where there is one only.

        What is broadcast over the channels of another tensor would be cut with its first channel.
        """
        nodes = [node for node in self.module2node.values() if node.type != ops.OPTYPE.PARAMETER]
        ends, single = (set(filter(tells, nodes)) for tells in (self._axes.is_end, self._axes.is_single))
        for node in nodes:
            if isinstance(node.module, nn.Linear) and node.module.in_features > 1:
                single -= within(node)  # what leads to its product is no single channel

        def goes_on(node: Any, edge: Any) -> bool:
            source, reader = (node, edge.target) if edge.target in node.outputs else (edge.target, node)
            if ops.OPTYPE.OUTPUT in (source.type, reader.type) or source is reader:
                return True
            if isinstance(reader.module, nn.RNNBase) and source not in self._first_inputs(reader):
                return False  # a state: a recurrent layer's own channels stay
            return source not in ends | single

        for node in self.module2node.values():
            node.dependencies = [edge for edge in node.dependencies if goes_on(node, edge)]

    def _first_inputs(self, node: Any) -> set[Any]:
        """Return what a node reads as the first input, in all of its calls."""
        functions = [function for function, other in self._nodes.items() if other is node]
        return {self._nodes.get(function.next_functions[0][0]) for function in functions}

    def _trace_computational_graph(
        self, module2node: Any, output: Any, gradfn2module: Any, *args: Any, **kw: Any
    ) -> Any:
        traced = super()._trace_computational_graph(module2node, output, gradfn2module, *args, **kw)
        for function, module in gradfn2module.items():
            if module in module2node:
                self._nodes[function] = module2node[module]
        return traced

    def get_pruning_group(self, module: nn.Module, pruning_fn: Any, idxs: Sequence[int]) -> Any:
        """Return what has to be cut together, as torch-pruning does.

        Each index goes on from each place once, and none from where channels are lost. torch-pruning sends on every
        list that it has not seen there, and where shortcuts join some of the channels, as in ReXNet, there are more
        lists than time.
        """
        if not self._mapped:
            with self._reads_shapes():
                index_mapping.update_index_mapping(self)
            self._map_halves()
            self._mapped = True
        if isinstance(module, _ConvNd) and module.groups == module.out_channels > 1:
            pruning_fn = tp.prune_depthwise_conv_out_channels
        root = Edge(pruning_fn, pruning_fn, self.module2node[module], self.module2node[module])
        indices = [_HybridIndex(idx=index, root_idx=index) for index in idxs]
        # What of an edge tells whether indices have been there: the node, and which side of it is cut.
        edges = {(root.target, root.handler): (root, {index.idx: index for index in indices})}
        stack = [(root, indices)]
        while stack:
            edge, indices = stack.pop()
            for following in edge.target.dependencies:
                if following.is_triggered_by(edge.handler):
                    moved = _mapped(following, indices)
                    place = following.target, following.handler
                    seen = edges.setdefault(place, (following, {}))[1] if moved else {}
                    new = [index for index in moved if index.idx not in seen]
                    if any(index.idx >= self._longest for index in new):
                        self.lost[following.target] = "its channels cannot be followed"
                        new = [index for index in new if index.idx < self._longest]
                    for index in new:
                        seen.setdefault(index.idx, index)
                    if new and following.target not in self.lost:
                        stack.append((following, new))
        return self._group(edges.values())

    def joined(self, groups: Iterable[Any]) -> Any:
        """Return one group that takes of every layer what these take together, each channel once."""
        edges: dict[Any, tuple[Any, dict[int, Any]]] = {}
        for group in groups:
            for item in group:
                indices = edges.setdefault((item.dep.target, item.dep.handler), (item.dep, {}))[1]
                pairs = zip(item.idxs, item.root_idxs, strict=True)
                indices |= {index: _HybridIndex(idx=index, root_idx=root) for index, root in pairs}
        return self._group(edges.values())

    def _group(self, edges: Iterable[tuple[Any, dict[int, Any]]]) -> Any:
        group = Group()
        group._DG = self
        for edge, indices in edges:
            item = GroupItem(edge, list(indices))
            item.root_idxs = [index.root_idx for index in indices.values()]
            group._group.append(item)
        return group

    @contextmanager
    def _reads_shapes(self) -> Iterator[None]:
        ours = (
            (shape_infer, "init_shape_information", self._measure),
            (index_mapping, "update_reshape_index_mapping", self._map_reshape),
            (index_mapping, "update_split_index_mapping", self._map_split),
            (index_mapping, "update_slice_index_mapping", self._map_slice),
            (index_mapping, "update_concat_index_mapping", self._map_concat),
            # For grouped-query attention, which is not cut here: it takes most of the time of a large graph.
            (index_mapping, "update_expand_index_mapping", lambda graph, node: None),
        )
        with _LOCK:
            theirs = [(module, name, getattr(module, name)) for module, name, _ in ours]
            for module, name, function in ours:
                setattr(module, name, function)
            try:
                yield
            finally:
                for module, name, function in theirs:
                    setattr(module, name, function)

    def _map_reshape(self, graph: Any, node: Any) -> None:
        if node not in self._reshapes:
            # Shapes are those of the trace, so they are read before anything is cut.
            self._reshapes[node] = read_reshape(graph, node, self._axes.into(node))
        reshape = self._reshapes[node]
        if reshape.shuffles:
            self.lost[node] = "its channels are shuffled"
        if reshape.positions == 1:
            return
        channels = None
        if reshape.last:
            infer, flat = (
                (shape_infer.infer_out_channels_recursively, node.inputs)
                if reshape.undone
                else (shape_infer.infer_in_channels_recursively, node.outputs)
            )
            # Features that some other layer makes are told by their number, which these channels do not make.
            inferred = [infer(graph, other, [0]) for other in flat]
            features = next((width for width in inferred if width and not width % reshape.positions), None)
            channels = reshape.channels if features is None else features // reshape.positions
        for other in node.outputs if reshape.undone else node.inputs:
            _set(node, other, Flattened(reshape.positions, channels, back=True))
            _set(other, node, Flattened(reshape.positions, channels, back=False))

    def _measure(self, graph: Any) -> None:
        """Note the sizes of the parts that channels are split into, and joined from."""
        for node in graph.module2node.values():
            if node.type == ops.OPTYPE.SPLIT and self._is_along_channels(node):
                axis = axis_of(node, len(input_shape(node) or ()))
                node.module.split_sizes = [int(part.shape[axis]) for part in node.grad_fn._input_metadata]
            elif node.type == ops.OPTYPE.CONCAT:
                self._joined[node] = sizes = self._sizes_joined(node)
                node.module.concat_sizes = None if sizes is None else [size for _, size in sizes]

    def _sizes_joined(self, node: Any) -> list[tuple[Any, int]] | None:
        """Return what is joined along the channels, as autograd's function and its size; None where that is not known.

        What no layer has made has no function, and takes what the others leave.
        """
        whole, functions = output_shape(node), node.grad_fn.next_functions
        axis = None if whole is None else axis_of(node, len(whole))
        if whole is None or axis is None or axis != self._axes.into(node):
            return None
        sizes = [
            (function, int(function._input_metadata[number].shape[axis]))
            if hasattr(function, "next_functions") and function.next_functions
            else (None, 0)
            for function, number in functions
        ]
        lengths = self._parts.get(node.grad_fn, [])
        if len(lengths) == len(sizes):
            return [(function, length) for (function, _), length in zip(sizes, lengths, strict=True)]
        remaining = whole[axis] - sum(size for _, size in sizes)
        strange = sum(function is None for function, _ in sizes)
        if strange > 1:
            return None
        return [(function, size if function is not None else remaining) for function, size in sizes]

    def _map_concat(self, graph: Any, node: Any) -> None:
        joined, sizes = self._joined.get(node), node.module.concat_sizes
        if joined is None or sizes is None:
            return
        offsets = [0, *accumulate(sizes)]
        there, back = defaultdict[Any, list[Any]](list), defaultdict[Any, list[Any]](list)
        for number, (function, _) in enumerate(joined):
            part = offsets[number : number + 2]
            there[self._nodes.get(function)].append(index_mapping._ConcatIndexMapping(part, reverse=False))
            back[self._nodes.get(function)].append(index_mapping._ConcatIndexMapping(part, reverse=True))
        for other in dict.fromkeys(node.inputs):
            _set(other, node, *there[other], second=True)
            _set(node, other, *back[other], second=True)

    def _map_halves(self) -> None:
        """Map channels through gated linear units, which multiply the first half of them by the second."""
        for node in self.module2node.values():
            if not node.grad_fn.name().startswith("GluBackward"):
                continue
            shape = output_shape(node)
            if shape is None or self._axes.into(node) != axis_of(node, len(shape)):
                continue
            for other in node.inputs:
                width = shape_infer.infer_out_channels_recursively(self, other, [0])
                if width:
                    _set(node, other, Halved(width // 2, back=True))
                    _set(other, node, Halved(width // 2, back=False))

    def _map_split(self, _: Any, node: Any) -> None:
        sizes = node.module.split_sizes
        if sizes is None:
            return
        offsets = [0, *accumulate(sizes)]
        readers = {reader: self._parts_read(reader, node) for reader in node.outputs}
        if any(len(parts) != 1 for parts in readers.values()):
            self.lost[node] = "its channels are split, and one layer reads several of the parts"
            return
        for reader, (part,) in readers.items():
            span = offsets[part : part + 2]
            _set(node, reader, index_mapping._SplitIndexMapping(span, reverse=False))
            _set(reader, node, index_mapping._SplitIndexMapping(span, reverse=True))

    def _parts_read(self, reader: Any, split: Any) -> set[int]:
        """Return which parts of a split a node reads, in all of its calls."""
        functions = [function for function, node in self._nodes.items() if node is reader]
        return {
            number
            for function in functions
            for source, number in function.next_functions
            if source is not None and self._nodes.get(source) is split
        }

    def _map_slice(self, _: Any, node: Any) -> None:
        if input_shape(node) == output_shape(node) or not self._is_along_channels(node):
            return
        cut = node.module
        for other in node.inputs:
            for source, target, back in ((node, other, True), (other, node, False)):
                mapping = index_mapping._SliceIndexMapping(cut.dim, cut.start, cut.step, cut.end, reverse=back)
                _set(source, target, mapping)

    def _is_along_channels(self, node: Any) -> bool:
        """Tell a split or slice of channels from one of positions; where nothing says so, the rank does."""
        shape = input_shape(node)
        if shape is None or (axis := axis_of(node, len(shape))) is None:
            return False
        channels = self._axes.into(node)
        return axis == (channels if channels is not None else len(shape) - 1 if len(shape) == 3 else 1)


def _sizes(node: Any) -> Iterator[int]:
    """Yield the lengths of all axes of a node's output, its input and its parameters."""
    yield from output_shape(node) or ()
    yield from input_shape(node) or ()
    if isinstance(node.module, nn.Module):
        for parameter in node.module.parameters(recurse=False):
            yield from parameter.shape


def _mapped(edge: Any, indices: Sequence[Any]) -> Sequence[Any]:
    for mapping in edge.index_mapping:
        indices = indices if mapping is None else mapping(indices)
    return indices


def _set(source: Any, target: Any, *mappings: Any, second: bool = False) -> None:
    """Set how indices go from one node to another; where several edges do, one mapping for each.

    Of its two an edge applies the one for joining last, after that for splitting.
    """
    edges = [edge for edge in source.dependencies if edge.target is target]
    for edge, mapping in zip(edges, cycle(mappings), strict=False):
        edge.index_mapping[1 if second else 0] = mapping
