"""Writes ONNX graphs node by node, with choices left to Hypothesis: names, forms of constants, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
Sides = tuple[int, ...]
FORMS = (*["initializer"] * 17, "constant", "identity", "input")
"""How a constant is written; most are initializers. An input with an initializer can be overridden: not a constant."""

ODD_NAMES = ("", "a b", "ünï/1", "x:scaled", "w.folded", "%", "0", "features.norm0", "-", "w:shifted", "c.bias")


@dataclass(frozen=True)
class Tensor:
    """A feature map (N, C, H, W) with `sides` (H, W), or rows (N, C) without."""

    name: str
    channels: int
    sides: Sides

    @property
    def size(self) -> int:
        """The shorter side; 0 of rows."""
        return min(self.sides, default=0)


@dataclass
class GraphWriter:
    """A graph under construction; `draw` is Hypothesis's, `rng` gives the numbers."""

    draw: st.DrawFn
    seed: int
    plain: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    _weights: dict[tuple[int, ...], list[str]] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    # -- choices

    def one_of(self, *choices: object) -> object:
        """The first choice is the plain one, to which failures shrink."""
        return choices[0] if self.plain else self.draw(st.sampled_from(choices))

    def chance(self, percent: int) -> bool:
        return not self.plain and self.draw(st.integers(0, 99)) >= 100 - percent

    def name(self, stem: str) -> str:
        """A name that no other value has."""
        odd = self.draw(st.sampled_from(ODD_NAMES)) if self.chance(8) else stem
        name = odd or stem
        while name in self._names:
            name = f"{name}_{len(self._names)}"
        self._names.add(name)
        return name

    # -- parts

    def constant(self, stem: str, array: np.ndarray) -> str:
        """A constant in one of the forms that files have."""
        name, form = self.name(stem), self.one_of(*FORMS)
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if form == "constant":
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.initializers.append(tensor)
        if form == "input":
            self.inputs.append(helper.make_tensor_value_info(name, tensor.data_type, array.shape))
        if form != "identity":
            return name
        alias = self.name(f"{stem}.same")
        self.nodes.append(helper.make_node("Identity", [name], [alias]))
        return alias

    def weights(self, stem: str, shape: tuple[int, ...], spread: float = 1.0) -> str:
        """Numbers of that shape, now and then shared with another node."""
        known = self._weights.setdefault(shape, [])
        if known and self.chance(10):
            return self.draw(st.sampled_from(known))
        numbers = self.rng.standard_normal(shape) * spread
        known.append(self.constant(stem, numbers.astype(np.float32)))
        return known[-1]

    def node(self, op_type: str, inputs: Sequence[str], channels: int, sides: Sides, **attributes: object) -> Tensor:
        """Add a node of one output, which may come to leave the graph."""
        made = Tensor(self.name(op_type.lower()), channels, sides)
        label = "" if self.chance(10) else made.name
        self.nodes.append(helper.make_node(op_type, inputs, [made.name], label, **attributes))
        self.tensors.append(made)
        if self.chance(3):
            self.leave(made)
        return made

    def leave(self, tensor: Tensor) -> None:
        """Make `tensor` an output of the graph."""
        self.outputs[tensor.name] = tensor

    def conv(self, source: Tensor, channels: int, kernel: int, *, same_size: bool = False) -> Tensor:
        """A Conv of any padding, dilation, group, with or without bias, that leaves at least one pixel."""
        group = int(self.one_of(1, 1, 1, np.gcd(source.channels, channels)))  # type: ignore[call-overload]
        dilation = int(self.one_of(1, 1, 2)) if kernel > 1 else 1  # type: ignore[call-overload]
        stride = 1 if same_size else int(self.one_of(1, 1, 1, 2))  # type: ignore[call-overload]
        padding, added = self._padding((kernel - 1) * dilation, source.size, dilation, same_size=same_size)
        if added is None:
            sides = tuple(-(-side // stride) for side in source.sides)
        else:
            sides = tuple((side + added - (kernel - 1) * dilation - 1) // stride + 1 for side in source.sides)
        shape = (channels, source.channels // group, kernel, kernel)
        inputs = [source.name, self.weights("w", shape, float(np.prod(shape[1:])) ** -0.5)]
        if self.chance(50):
            inputs.append(self.weights("b", (channels,)))
        attributes = padding | {"strides": [stride] * 2, "dilations": [dilation] * 2, "group": group}
        if self.chance(70):
            attributes["kernel_shape"] = [kernel] * 2
        return self.node("Conv", inputs, channels, sides, **attributes)

    def _padding(
        self, reach: int, size: int, dilation: int, *, same_size: bool
    ) -> tuple[dict[str, object], int | None]:
        """Attributes, and how many pixels they add to an axis; None: as many as keep the size."""
        choices: list[tuple[dict[str, object], int | None]] = [({"pads": [reach // 2] * 4}, reach)]
        if dilation == 1:
            choices += [({"auto_pad": "SAME_UPPER"}, None), ({"auto_pad": "SAME_LOWER"}, None)]
        choices.append(({"pads": [reach, 0, 0, reach]}, reach))
        if size > reach and not (same_size and reach):
            choices += [({"pads": [0] * 4}, 0), ({}, 0), ({"auto_pad": "VALID"}, 0)]
        if not same_size:
            choices.append(({"pads": [reach, 1, 1, reach]}, reach + 1))
        return self.one_of(*choices)  # type: ignore[return-value]

    def norm(self, source: Tensor) -> Tensor:
        """A BatchNormalization with scales of both signs, some zero, some all but zero."""
        shape = (source.channels,)
        gamma = self.rng.standard_normal(shape)
        if self.chance(40):
            gamma[self.rng.random(shape) < 0.4] = self.one_of(0.0, 1e-20, 1e-39, -1e-42)
        numbers = [self.constant("gamma", gamma.astype(np.float32)), self.weights("beta", shape)]
        numbers += [
            self.weights("mean", shape),
            self.constant("var", self.rng.uniform(0.3, 3, shape).astype(np.float32)),
        ]
        attributes = {"epsilon": self.one_of(1e-5, 1e-3)} if self.chance(50) else {}
        return self.node("BatchNormalization", [source.name, *numbers], source.channels, source.sides, **attributes)

    def relu(self, source: Tensor) -> Tensor:
        return self.node("Relu", [source.name], source.channels, source.sides)

    def pool(self, source: Tensor, op_type: str, kernel: int, stride: int) -> Tensor:
        """A pool with or without padding, rounding up or not."""
        attributes: dict[str, object] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        pad = self.one_of(0, 0, kernel // 2)
        if self.chance(15):
            attributes["auto_pad"] = self.one_of("SAME_UPPER", "SAME_LOWER", "VALID")
            same = attributes["auto_pad"] != "VALID"
            sides = tuple(-(-n // stride) if same else (n - kernel) // stride + 1 for n in source.sides)
        else:
            spaces = [side + 2 * pad - kernel for side in source.sides]
            last = (-(-space // stride) * stride for space in spaces)  # where the last window begins, rounding up
            begin_inside = all(start < side + pad for start, side in zip(last, source.sides, strict=True))
            ceil = self.one_of(0, 0, 1) if begin_inside else 0  # else tools disagree about the last window
            attributes |= {"pads": [pad] * 4, "ceil_mode": ceil}
            sides = tuple(-(-space // stride) + 1 if ceil else space // stride + 1 for space in spaces)
        if op_type == "AveragePool":
            attributes["count_include_pad"] = self.one_of(0, 1)
        return self.node(op_type, [source.name], source.channels, sides, **attributes)

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        axis = self.one_of(1, 1, -3)
        return self.node(
            "Concat", [part.name for part in parts], sum(p.channels for p in parts), parts[0].sides, axis=axis
        )

    def extra_readers(self, count: int) -> None:
        """Nodes that no pass knows, reading anything, whose results leave the graph."""
        for _ in range(count):
            source = self.draw(st.sampled_from(self.tensors))
            kind = self.draw(st.sampled_from(("Sigmoid", "Mul", "Identity", "If", "Conv", "Add", "Norm", "Output")))
            if kind == "Output":
                self.leave(source)
                continue
            self.leave(self._extra(kind, source))

    def _extra(self, kind: str, source: Tensor) -> Tensor:
        if kind == "If":
            return self.branch(source)
        if kind == "Conv" and source.size:
            return self.conv(source, self.draw(st.integers(1, 4)), 1)
        if kind == "Norm" and source.size:
            return self.norm(source)
        inputs = [source.name] if kind in ("Sigmoid", "Identity") else [source.name, source.name]
        op_type = kind if kind in ("Sigmoid", "Identity", "Add", "Mul") else "Mul"
        if op_type == "Mul" and source.size and self.chance(50):
            inputs[1] = self.weights("factor", (source.channels, 1, 1))
        return self.node(op_type, inputs, source.channels, source.sides)

    def branch(self, source: Tensor) -> Tensor:
        """An If of which one branch, or both, read `source` from outside; inner names are anything."""
        constant = self.chance(50)
        condition = self.constant("condition", np.array(constant or self.chance(50)))
        branches = {}
        for branch, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
            inner = self.name(f"inner.{branch}")
            shape = ["N", source.channels, *source.sides]
            value = helper.make_tensor_value_info(inner, TensorProto.FLOAT, shape)
            nodes = [helper.make_node(op_type, [source.name], [inner])]
            if branch == "else_branch" and constant:
                zero = helper.make_tensor(inner, TensorProto.FLOAT, [1] * len(shape), [0.0])
                nodes = [helper.make_node("Constant", [], [inner], value=zero)]
                value = helper.make_tensor_value_info(inner, TensorProto.FLOAT, [1] * len(shape))
            branches[branch] = helper.make_graph(nodes, branch, [], [value])
        return self.node("If", [condition], source.channels, source.sides, **branches)

    # -- the whole

    def model(self, pixels: Tensor) -> onnx.ModelProto:
        """The model, checked, its shapes written into it or left out."""
        fed = helper.make_tensor_value_info(pixels.name, TensorProto.FLOAT, ["N", pixels.channels, *pixels.sides])
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "g", [fed, *self.inputs], outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        for output in inferred.graph.output:
            if not output.type.tensor_type.HasField("shape"):  # axes behind an Identity are unknown to the inference
                tensor = self.outputs[output.name]
                shape = ["N", tensor.channels, *tensor.sides]
                output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
        if self.chance(40):
            del inferred.graph.value_info[:]
        onnx.checker.check_model(inferred, full_check=True)
        return inferred
