"""A DenseNet as the list of ONNX operators that an export writes, from its numbers alone.

It is the network after the exact passes (`graph/passes/`), so that nothing is left to simplify: a norm behind a
convolution is folded into it, a transition pools before it convolves, each Concat of a dense block reads the one before
it, and a Concat of one tensor does not exist. Nodes and tensors are named after the modules of `models.build`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from densenet_deploy.variants.hidden import named_hidden_layers
from densenet_deploy.variants.spec import SCALE_CHANNELS, DenseNetSpec

Shape = tuple[int, ...]
Attribute = int | float | str | tuple[int, ...]
Array = npt.NDArray[Any]

INPUT_NAME: Final = "input"
NORM_EPSILON: Final = 1e-5
"""Of every norm, as in PyTorch and in the paper's code: σ = √(variance + ε)."""

_NORM_PARAMETERS: Final = ("weight", "bias", "running_mean", "running_var")
_NORM: Final[Mapping[str, Attribute]] = {"epsilon": NORM_EPSILON, "momentum": 0.9}
_BLUR: Final = np.outer((0.25, 0.5, 0.25), (0.25, 0.5, 0.25)).astype(np.float32)
_MARGIN: Final = np.array((0, 0, 1, 1, 0, 0, 1, 1))  # before and behind N, C, H and W: one pixel on every side
_GEMM: Final[Mapping[str, Attribute]] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}


@dataclass(frozen=True)
class Operation:
    """One node.

    Attributes:
        op_type: the ONNX operator.
        name: the module that computes it (`features.conv0`), or that and the operator (`features.denseblock1.concat`).
        inputs: names of the tensors that it reads first.
        output: name of the tensor that it makes: of the last module whose work it does.
        parameters: shapes by name, in the order in which the operator reads them.
        constants: numbers that it reads and that are not weights, by name.
        attributes: of the ONNX operator.
        norm: the norm that is folded into a convolution; None without one.
        pooled: the convolution that read `inputs` before a pool was moved in front of it; None for all other nodes.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    output: str
    parameters: Mapping[str, Shape] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    norm: str | None = None
    pooled: str | None = None


class _Value(NamedTuple):
    """A tensor (N, channels, …)."""

    name: str
    channels: int


def operations(spec: DenseNetSpec) -> tuple[Operation, ...]:
    """Return the nodes of `spec` in the order of execution; the last one makes `spec.output_name`.

    >>> [node.name for node in operations(DenseNetSpec(blocks=(1,), stem="cifar"))][:3]
    ['features.conv0', 'features.denseblock1.denselayer1.norm1', 'features.denseblock1.denselayer1.relu1']
    """
    network = _Network()
    row = _head(network, spec, _features(network, spec))
    if spec.head != "features":
        network.linear("classifier", row, spec.num_classes, bias=spec.bias)
    *before, last = network.operations
    return (*before, dataclasses.replace(last, output=spec.output_name))


def parameter_shapes(spec: DenseNetSpec) -> dict[str, Shape]:
    """Return the shape of every parameter and running statistic by its name in a state dict, without batch counters.

    >>> parameter_shapes(DenseNetSpec())["features.norm5.running_var"]
    (1024,)
    """
    shapes: dict[str, Shape] = {}
    for operation in operations(spec):
        shapes.update(operation.parameters)
        if operation.norm is not None:
            width = next(iter(operation.parameters.values()))[0]
            shapes.update(_norm_shapes(operation.norm, width))
    return shapes


def norm_parameters(name: str) -> tuple[str, ...]:
    """Return the names of a norm's parameters in the order of ONNX: scale, shift, mean, variance."""
    return tuple(f"{name}.{parameter}" for parameter in _NORM_PARAMETERS)


def _norm_shapes(name: str, channels: int) -> dict[str, Shape]:
    return dict.fromkeys(norm_parameters(name), (channels,))


class _Network:
    """Nodes appended one after the other; each method returns the tensor that its node makes."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def conv(
        self,
        name: str,
        entering: _Value,
        width: int,
        kernel: int,
        *,
        stride: int = 1,
        bias: bool = False,
        norm: str | None = None,
        output: str | None = None,
    ) -> _Value:
        """Convolve square kernels, padded to keep the size at stride 1; `norm`, which follows, is folded in."""
        parameters: dict[str, Shape] = {f"{name}.weight": (width, entering.channels, kernel, kernel)}
        if bias:
            parameters[f"{name}.bias"] = (width,)
        attributes = _window(stride, kernel // 2) | {"group": 1}
        made = output or norm or name
        self.operations.append(
            Operation("Conv", name, (entering.name,), made, parameters, attributes=attributes, norm=norm)
        )
        return _Value(made, width)

    def norm(self, name: str, entering: _Value) -> _Value:
        return self._add("BatchNormalization", name, entering, _norm_shapes(name, entering.channels), attributes=_NORM)

    def linear(self, name: str, entering: _Value, width: int, *, bias: bool) -> _Value:
        parameters: dict[str, Shape] = {f"{name}.weight": (width, entering.channels)}
        if bias:
            parameters[f"{name}.bias"] = (width,)
        return self._add("Gemm", name, entering, parameters, attributes=_GEMM, width=width)

    def relu(self, name: str, entering: _Value) -> _Value:
        return self._add("Relu", name, entering)

    def max_pool(self, name: str, entering: _Value, *, stride: int) -> _Value:
        attributes = _window(stride, 1) | {"kernel_shape": (3, 3), "ceil_mode": 0, "storage_order": 0}
        return self._add("MaxPool", name, entering, attributes=attributes)

    def halve(self, name: str, entering: _Value, conv: str) -> _Value:
        """Average squares of 2x2 pixels, of what the convolution `conv` read before the pool was moved before it."""
        attributes = {key: value for key, value in _window(2, 0).items() if key != "dilations"}
        attributes |= {"kernel_shape": (2, 2), "ceil_mode": 0, "count_include_pad": 1}
        pooled = _Value(f"{entering.name}:pooled", entering.channels)
        self.operations.append(
            Operation("AveragePool", name, (entering.name,), pooled.name, attributes=attributes, pooled=conv)
        )
        return pooled

    def blur(self, name: str, entering: _Value) -> _Value:
        """Mirror a margin of one pixel, and filter and halve each channel; the filter is a constant."""
        margin, kernel = {f"{name}.constant": _MARGIN}, np.tile(_BLUR, (entering.channels, 1, 1, 1))
        padded = self._add("Pad", f"{name}.pad", entering, constants=margin, attributes={"mode": "reflect"})
        attributes = _window(2, 0) | {"group": entering.channels}
        return self._add("Conv", name, padded, constants={f"{name}.filter": kernel}, attributes=attributes)

    def global_pool(self, name: str, entering: _Value, kind: str = "Average") -> _Value:
        return self._add(f"Global{kind}Pool", name, entering)

    def flatten(self, name: str, entering: _Value) -> _Value:
        return self._add("Flatten", name, entering, attributes={"axis": 1})

    def concat(self, name: str, parts: Iterable[_Value]) -> _Value:
        given = tuple(parts)
        if len(given) == 1:
            return given[0]
        names = tuple(part.name for part in given)
        self.operations.append(Operation("Concat", name, names, name, attributes={"axis": 1}))
        return _Value(name, sum(part.channels for part in given))

    def _add(
        self,
        op_type: str,
        name: str,
        entering: _Value,
        parameters: Mapping[str, Shape] | None = None,
        *,
        width: int | None = None,
        constants: Mapping[str, Array] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> _Value:
        """Append a node whose output is called like itself, and keeps the channels unless there is a `width`."""
        self.operations.append(
            Operation(op_type, name, (entering.name,), name, parameters or {}, constants or {}, attributes or {})
        )
        return _Value(name, width or entering.channels)


def _window(stride: int, padding: int) -> dict[str, Attribute]:
    """The attributes that convolutions and pools share; every number counts for both axes and both sides."""
    return {"auto_pad": "NOTSET", "dilations": (1, 1), "pads": (padding,) * 4, "strides": (stride, stride)}


def _features(network: _Network, spec: DenseNetSpec) -> list[_Value]:
    """Stem, blocks and transitions; return what leaves each block."""
    maps, leaving = _stem(network, spec), []
    for index, bottlenecks in enumerate(spec.bottleneck_widths):
        if index:
            maps = _transition(network, f"features.transition{index}", maps, spec.channels_in[index])
        maps = _block(network, f"features.denseblock{index + 1}", maps, bottlenecks, spec)
        leaving.append(maps)
    return leaving


def _stem(network: _Network, spec: DenseNetSpec) -> _Value:
    stem, maps = spec.stem_layers, _Value(INPUT_NAME, spec.in_channels)
    for index, width in enumerate(spec.stem_widths):
        stride = stem.stride if index == 0 else 1
        norm = f"features.norm{index}" if stem.norm else None
        maps = network.conv(f"features.conv{index}", maps, width, stem.kernel, stride=stride, norm=norm)
        if stem.norm:
            maps = network.relu(f"features.relu{index}", maps)
    if stem.pool == "max":
        maps = network.max_pool("features.pool0", maps, stride=2)
    if stem.pool == "blur":
        maps = network.blur("features.pool0.blur", network.max_pool("features.pool0.max", maps, stride=1))
    return maps


def _block(network: _Network, name: str, maps: _Value, bottlenecks: Sequence[int], spec: DenseNetSpec) -> _Value:
    for number, narrow in enumerate(bottlenecks, start=1):
        new = _layer(network, f"{name}.denselayer{number}", maps, narrow, spec)
        reader = f"{name}.denselayer{number + 1}" if number < len(bottlenecks) else name
        maps = network.concat(f"{reader}.concat", (maps, new))
    return maps


def _layer(network: _Network, name: str, maps: _Value, width: int, spec: DenseNetSpec) -> _Value:
    maps = network.relu(f"{name}.relu1", network.norm(f"{name}.norm1", maps))
    if spec.bn_size == 0:
        return network.conv(f"{name}.conv1", maps, spec.growth_rate, 3)
    narrow = network.conv(f"{name}.conv1", maps, width, 1, norm=f"{name}.norm2")
    return network.conv(f"{name}.conv2", network.relu(f"{name}.relu2", narrow), spec.growth_rate, 3)


def _transition(network: _Network, name: str, maps: _Value, kept: int) -> _Value:
    maps = network.relu(f"{name}.relu", network.norm(f"{name}.norm", maps))
    pooled = network.halve(f"{name}.pool", maps, f"{name}.conv")
    return network.conv(f"{name}.conv", pooled, kept, 1, output=f"{name}.pool")


def _head(network: _Network, spec: DenseNetSpec, leaving: list[_Value]) -> _Value:
    """From what leaves the blocks to the row that the last linear layer reads, or that is the output."""
    if spec.head == "multiscale":
        names = [f"head.reduce{number}" for number in range(1, len(leaving) + 1)]
        return network.concat("head.concat", [_scale(network, *pair) for pair in zip(names, leaving, strict=True)])
    maps = network.norm("features.norm5", leaving[-1])
    if spec.pooling == "relu-avg":
        maps = network.relu("head.relu", maps)
    if spec.pooling == "max-avg":
        parts = network.global_pool("head.pool.max", maps, "Max"), network.global_pool("head.pool.mean", maps)
        row = network.concat("head.pool.concat", parts)
    else:
        row = network.global_pool("head.pool", maps)
    row = network.flatten("head.flatten", row)
    hidden = named_hidden_layers(spec.hidden, spec.pooled_width)
    kinds = [layer.kind for _, layer, _ in hidden]
    for (name, layer, _), following in zip(hidden, (*kinds, "")[1:], strict=True):
        if layer.kind == following == "relu":
            continue  # the next one alone computes the same
        if layer.kind == "linear":
            row = network.linear(f"head.{name}", row, layer.width, bias=layer.bias)
        else:
            row = (network.relu if layer.kind == "relu" else network.norm)(f"head.{name}", row)
    return row


def _scale(network: _Network, name: str, maps: _Value) -> _Value:
    reduced = network.conv(f"{name}.conv", maps, SCALE_CHANNELS, 1, bias=True)
    return network.flatten(f"{name}.flatten", network.global_pool(f"{name}.pool", reduced))
