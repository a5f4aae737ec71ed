"""Adopt an ONNX file of somebody else's: bring it into the form that passes, recipes and backends expect.

Exporters differ in what they write for the same network: operator sets since 7, weights that are listed as graph
inputs (IR 3), weights that nodes compute, nodes out of order or with names used twice, functions, images in NHWC or
in 16-bit floats.
`adopt` removes these differences, says each in one sentence, and changes no result. What no rewrite can mend is refused
with the reason and the way out: a network in training mode, one that ONNX Runtime has optimized for a machine, 3-D
convolutions, and operator sets before 7.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    TopologicalSortPass,
)

from densenet_deploy.errors import ModelFileError, printable
from densenet_deploy.graph.graph_pass import apply_passes
from densenet_deploy.graph.nodes import is_operator, new_node, unused_name
from densenet_deploy.graph.onnx_file import check_onnx, invalid_onnx_refused, refuse_optimized
from densenet_deploy.graph.reduced_precision import lift_opset
from densenet_deploy.runtime.batching import IMAGE_CHANNELS, is_nhwc

OLDEST_OPSET: Final = 7
"""The oldest operator set that is adopted: since then, norms and broadcasting mean what they mean today."""

LIFTED_OPSET: Final = 13
"""The operator set to which older ones are lifted: the first in which DequantizeLinear has a scale per channel."""

_WEIGHTS_ARE_NO_INPUTS: Final = 4  # the first IR version in which they do not have to be listed
_ANY_CONSTANT: Final = 9  # the first operator set in which a Constant holds other numbers than floats
_TRAINING_FLAG: Final = 14  # the first operator set in which BatchNormalization has the attribute training_mode
_VARIANCE: Final = 4  # which input of a BatchNormalization
_LAYERS: Final = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})
_OTHER_FLOATS: Final = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_TO_NHWC: Final = (0, 2, 3, 1)
_TO_NCHW: Final = (0, 3, 1, 2)
_RANDOM: Final = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_EVAL: Final = "call model.eval() and export it again"


@dataclass(frozen=True)
class AdoptedGraph:
    """A graph that passes the checks of `check_onnx`, and what was done to it, one sentence each."""

    model: onnx.ModelProto
    notes: tuple[str, ...]


def adopt(model: onnx.ModelProto, subject: object, *, allow_nonfinite: bool = False) -> AdoptedGraph:
    """Return a form of `model`, which `subject` names in errors, that computes the same; `model` is unchanged.

    Weights may be NaN or Inf, and variances negative, with `allow_nonfinite`.

    >>> adopt(onnx.load("densenet-9.onnx"), "densenet-9.onnx").notes                      # doctest: +SKIP
    ('846 weights that were listed as inputs are constants', 'operator set 9 was lifted to 13')

    Raises:
        ModelFileError: if it is not a valid ONNX model, is in training mode or random, ends in a softmax over the
            batch, was optimized by ONNX Runtime, has 3-D convolutions or damaged weights, or is of an operator
            set before 7.
    """
    refuse_optimized(model, subject)
    _refuse_old(model, subject)
    copy = type(model)()
    copy.CopyFrom(model)
    repeated = _without_repeats(copy.graph)
    notes = [f"{repeated} weights or nodes that the file holds twice were dropped"] if repeated else []
    _refuse_contradictions(copy.graph, subject)
    with invalid_onnx_refused(subject):
        graph = ir.from_proto(copy)
        notes += _in_order(graph)
    sound = ir.to_proto(graph) if notes else model
    if not all(value.type.tensor_type.HasField("shape") for value in sound.graph.output):
        with invalid_onnx_refused(subject):
            sound = onnx.shape_inference.infer_shapes(sound)
        graph = ir.from_proto(sound)
        notes.append("the shapes of outputs, which the file leaves out, were inferred")
    check_onnx(sound, subject)
    _refuse_unusable(graph, subject)
    _refuse_unclear_pixels(graph.graph, subject)
    further = list(_rewritten(graph))
    if not allow_nonfinite:
        _refuse_damaged_weights(graph.graph, subject)
    if not further:
        return AdoptedGraph(sound, tuple(notes))
    adopted = ir.to_proto(graph)
    check_onnx(adopted, subject)
    return AdoptedGraph(adopted, (*notes, *further))


def _in_order(model: ir.Model) -> Iterator[str]:
    """Do what makes `model` a valid one, in place, and yield a sentence for each thing done."""
    if model.functions:
        yield f"{len(model.functions)} functions were inlined"
        InlinePass()(model)
    if TopologicalSortPass()(model).modified:
        yield "nodes were sorted into execution order"
    if count := _rename_nodes(model.graph):
        yield f"{count} nodes whose name another node has were renamed"
    constants = [node for node in model.graph if is_operator(node, "Constant")]
    if any(_is_misplaced(node, model.opset_imports.get("", LIFTED_OPSET)) for node in constants):
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        model.ir_version = max(model.ir_version, _WEIGHTS_ARE_NO_INPUTS)
        yield f"{len(constants)} Constant nodes were stored as initializers"


def _rewritten(model: ir.Model) -> Iterator[str]:
    """Rewrite the valid `model` in place, and yield a sentence for each thing done."""
    if count := _listed_weights(model.graph):
        RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, _WEIGHTS_ARE_NO_INPUTS)
        yield f"{count} weights that were listed as inputs are constants"
    if unused := _unused_inputs(model.graph):
        yield f"inputs that nothing reads were dropped: {', '.join(printable(str(value.name)) for value in unused)}"
        model.graph.inputs[:] = [value for value in model.graph.inputs if value not in unused]
    yield from _lifted(model)
    (folded,) = apply_passes(model, ["fold-constants"])
    if folded.changed:
        yield f"{len(folded.changed)} nodes that compute constants were replaced by what they compute"
    yield from _with_image_input(model.graph)
    yield from _with_float_ends(model.graph)


# -- what is refused


def _refuse_old(model: onnx.ModelProto, subject: object) -> None:
    version = _opset_of(model.opset_import)
    if version is not None and version < OLDEST_OPSET:
        why = f"is of operator set {version}, older than {OLDEST_OPSET}, the oldest that is read"
        raise ModelFileError(subject, why, f"export it again with operator set {LIFTED_OPSET} or later")


def _refuse_contradictions(graph: onnx.GraphProto, subject: object) -> None:
    names = [*(tensor.name for tensor in graph.initializer), *(name for node in graph.node for name in node.output)]
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            why = f"is not a valid ONNX model: {count} weights or nodes make a value called {name}"
            raise ModelFileError(subject, why, "export it again")


def _opset_of(imports: Iterable[Any]) -> int | None:
    return next((int(entry.version) for entry in imports if entry.domain in ("", "ai.onnx")), None)


def _refuse_unusable(model: ir.Model, subject: object) -> None:
    """Refuse a network in training mode, results that depend on the batch, and 3-D convolutions."""
    version = model.opset_imports.get("", LIFTED_OPSET)
    for node in model.graph.all_nodes():
        name = node.name or node.outputs[0].name
        if is_operator(node, "BatchNormalization") and _normalizes_by_batch(node, version):
            why = f"its BatchNormalization {name} is in training mode: a result depends on the whole batch"
            raise ModelFileError(subject, why, _EVAL)
        if is_operator(node, "Dropout") and _drops_at_random(node):
            raise ModelFileError(subject, f"its Dropout {name} is in training mode: results are random", _EVAL)
        if node.domain == "" and node.op_type in _RANDOM:
            raise ModelFileError(subject, f"its {node.op_type} {name} makes results random", _EVAL)
        if _divides_by_batch(node):
            why = f"its {node.op_type} {name} is over axis 0: the scores of an image depend on the whole batch"
            raise ModelFileError(subject, why, "export it again with Softmax over axis 1, dim=1 in PyTorch")
        if is_operator(node, "Conv") and _is_3d(node):
            why = f"its convolution {name} is 3-D (N, C, D, H, W), and only 2-D images (N, C, H, W) are supported"
            raise ModelFileError(subject, why, "give a 2-D network")


def _refuse_damaged_weights(graph: ir.Graph, subject: object) -> None:
    """Refuse weights of layers that are NaN or Inf, and variances below 0."""
    for node in graph.all_nodes():
        for place, value in enumerate(node.inputs[1:], start=1) if node.op_type in _LAYERS else ():
            tensor = ir.convenience.get_const_tensor(value) if value is not None else None
            if value is None or tensor is None or not tensor.dtype.is_floating_point():
                continue
            numbers, layer = tensor.numpy(), f"{node.op_type} {node.name}".rstrip()
            if count := int(np.count_nonzero(~np.isfinite(numbers))):
                why = f"holds {count} NaN or Inf values in {value.name}, a weight of {layer}"
                raise ModelFileError(subject, why, "export it again, from weights that are finite")
            is_variance = is_operator(node, "BatchNormalization") and place == _VARIANCE
            if is_variance and (count := int(np.count_nonzero(numbers < 0))):
                why = f"holds {count} negative values in {value.name}, the variance of {layer}"
                raise ModelFileError(subject, why, "export it again: the file or its weights are damaged")


def _refuse_unclear_pixels(graph: ir.Graph, subject: object) -> None:
    """Refuse a uint8 input whose channels are not clear."""
    images = [value for value in graph.inputs if not value.is_initializer()]
    if len(images) != 1 or images[0].dtype != ir.DataType.UINT8 or images[0].shape is None:
        return
    shape = _known_sizes(images[0])
    if len(shape) == 4 and not is_nhwc(shape) and shape[1] not in IMAGE_CHANNELS:
        sizes = ", ".join("?" if size is None else str(size) for size in shape)
        why = f"takes uint8 ({sizes}), in which no axis is clearly that of 1, 3 or 4 channels"
        raise ModelFileError(subject, why, "export it with uint8 (N, H, W, C), or float32 (N, C, H, W)")


def _known_sizes(value: ir.Value) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in value.shape or ()]


def _normalizes_by_batch(norm: ir.Node, version: int) -> bool:
    if version >= _TRAINING_FLAG:
        return norm.attributes.get_int("training_mode", 0) != 0
    return any(value.name for value in norm.outputs[1:])


def _drops_at_random(dropout: ir.Node) -> bool:
    """Whether the third input, which operator sets before 12 do not have, says so."""
    flag = dropout.inputs[2] if len(dropout.inputs) > 2 else None
    tensor = ir.convenience.get_const_tensor(flag) if flag is not None else None
    return tensor is not None and bool(tensor.numpy().any())


def _divides_by_batch(node: ir.Node) -> bool:
    """Whether an output of the graph is a softmax over the images of a batch."""
    if not (is_operator(node, "Softmax") or is_operator(node, "LogSoftmax")):
        return False
    shape = node.outputs[0].shape
    first = {0} if shape is None else {0, -shape.rank()}
    return node.outputs[0].is_graph_output() and node.attributes.get_int("axis", -1) in first


def _is_3d(conv: ir.Node) -> bool:
    weight = conv.inputs[1]
    ranks = {len(conv.attributes.get_ints("kernel_shape", ()))}
    if weight is not None and weight.shape is not None:
        ranks.add(weight.shape.rank() - 2)
    return 3 in ranks


# -- names, order, inputs, operator set


def _without_repeats(graph: onnx.GraphProto) -> int:
    """Drop weights and nodes that stand there twice, the second the same as the first, and return how many."""
    return _drop_repeats(graph.initializer, lambda tensor: tensor.name) + _drop_repeats(
        graph.node, lambda node: tuple(node.output)
    )


def _drop_repeats(items: Any, key: Callable[[Any], object]) -> int:
    first: dict[object, int] = {}
    seen = [first.setdefault(key(item), place) for place, item in enumerate(items)]
    repeats = [place for place, item in enumerate(items) if seen[place] < place and items[seen[place]] == item]
    for place in reversed(repeats):
        del items[place]
    return len(repeats)


def _rename_nodes(graph: ir.Graph) -> int:
    """Give every node whose name an earlier node has a name of its own, and return how many those are."""
    taken, met, count = {node.name for node in graph}, set[str](), 0
    for node in graph:
        if node.name in met:
            number = next(number for number in itertools.count(2) if f"{node.name}_{number}" not in taken)
            node.name = f"{node.name}_{number}"
            taken.add(node.name)
            count += 1
        elif node.name:
            met.add(node.name)
    return count


def _listed_weights(graph: ir.Graph) -> int:
    return sum(value.is_initializer() for value in graph.inputs)


def _unused_inputs(graph: ir.Graph) -> list[ir.Value]:
    """Return the inputs beside the images that no node reads, such as a flag `is_training` of an old exporter."""
    unused = [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]
    return unused if len(unused) < len(graph.inputs) else []


def _is_misplaced(constant: ir.Node, version: int) -> bool:
    """Whether a layer reads what `constant` holds, or the operator set knows no Constant of such numbers."""
    attribute = constant.attributes.get("value")
    is_float = attribute is None or attribute.as_tensor().dtype.is_floating_point()
    return any(use.node.op_type in _LAYERS for use in constant.outputs[0].uses()) or (
        version < _ANY_CONSTANT and not is_float
    )


def _lifted(model: ir.Model) -> Iterator[str]:
    """Lift `model`, in place; what cannot be lifted can still be run, and what needs a later set refuses it."""
    given = model.opset_imports.get("", LIFTED_OPSET)
    if given >= LIFTED_OPSET:
        return
    try:
        lift_opset(model, LIFTED_OPSET)
        apply_passes(model, ["restore-softmax"])
        yield f"operator set {given} was lifted to {LIFTED_OPSET}"
    except ModelFileError as exc:
        yield f"operator set {given} was kept: {exc.why}"


# -- the input


def _with_image_input(graph: ir.Graph) -> Iterator[str]:
    """Let images enter as (N, C, H, W), and pixels, uint8, as (N, H, W, C)."""
    is_pixels = len(graph.inputs) == 1 and graph.inputs[0].dtype == ir.DataType.UINT8
    if is_pixels and _takes_nchw(graph.inputs[0]):
        yield "pixels enter as (N, H, W, C): a Transpose to the (N, C, H, W) of the file was put in front"
        shape = graph.inputs[0].shape
        assert shape is not None
        batch, channels, height, width = shape
        perm = ir.AttrInt64s("perm", list(_TO_NCHW))
        _put_in_front(graph, graph.inputs[0].type, ir.Shape([batch, height, width, channels]), "Transpose", perm)
    elif not is_pixels and len(graph.inputs) == 1 and _takes_nhwc(graph):
        yield "images enter as (N, C, H, W): a Transpose to the (N, H, W, C) of the file was put in front"
        _put_transpose_in_front(graph)


def _takes_nchw(pixels: ir.Value) -> bool:
    """Whether axis 1 of uint8 images holds the channels."""
    shape = _known_sizes(pixels)
    return len(shape) == 4 and not is_nhwc(shape)


def _takes_nhwc(graph: ir.Graph) -> bool:
    """Whether the last axis of the input holds channels, and axis 1 not those that the first convolution reads.

    Channels are as many as that convolution reads, or as the sizes show: a gray image may be repeated before it.
    """
    shape = graph.inputs[0].shape
    if shape is None or shape.rank() != 4:
        return False
    conv = next((node for node in graph if is_operator(node, "Conv")), None)
    weight = conv.inputs[1] if conv is not None else None
    if conv is None or weight is None or weight.shape is None:
        return False
    channels = weight.shape[1]
    if not isinstance(channels, int):
        return False
    channels *= conv.attributes.get_int("group", 1)
    sizes = [size if isinstance(size, int) else None for size in shape]
    return sizes[1] != channels and (is_nhwc(sizes) or (sizes[3] == channels and channels in IMAGE_CHANNELS))


def _put_transpose_in_front(graph: ir.Graph) -> None:
    shape = graph.inputs[0].shape
    assert shape is not None
    batch, height, width, channels = shape
    perm = ir.AttrInt64s("perm", list(_TO_NHWC))
    _put_in_front(graph, graph.inputs[0].type, ir.Shape([batch, channels, height, width]), "Transpose", perm)


def _put_in_front(
    graph: ir.Graph, kind: ir.TypeProtocol | None, shape: ir.Shape | None, op_type: str, attribute: ir.Attr
) -> None:
    """Give the one input another type or shape, from which a new node makes the old one."""
    old = graph.inputs[0]
    new = ir.Value(name=old.name, type=kind, shape=shape)
    node = new_node(op_type, f"{old.name}:{op_type.lower()}", [new], [attribute])
    result = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, result)
    graph.inputs[0] = new
    result.name = unused_name(graph, f"{new.name}:{op_type.lower()}")
    graph.insert_before(graph[0], node)


def _with_float_ends(graph: ir.Graph) -> Iterator[str]:
    """Let images enter, and scores leave, as float32."""
    given = graph.inputs[0]
    if len(graph.inputs) == 1 and given.dtype in _OTHER_FLOATS:
        yield f"images enter as float32: a Cast to the {_name_of(given)} of the file was put in front"
        to = ir.AttrInt64("to", int(given.dtype))
        _put_in_front(graph, ir.TensorType(ir.DataType.FLOAT), given.shape, "Cast", to)
    others = [value for value in graph.outputs if value.dtype in _OTHER_FLOATS]
    kinds = ", ".join(sorted(set(map(_name_of, others))))
    for value in others:
        _cast_at_the_end(graph, value)
    if others:
        yield f"{len(others)} outputs leave as float32: a Cast from the {kinds} of the file was put after them"


def _name_of(value: ir.Value) -> str:
    return "" if value.dtype is None else value.dtype.name.lower()


def _cast_at_the_end(graph: ir.Graph, value: ir.Value) -> None:
    name = str(value.name)
    value.name = unused_name(graph, f"{name}:{_name_of(value)}")
    cast = new_node("Cast", f"{name}:cast", [value], [ir.AttrInt64("to", int(ir.DataType.FLOAT))])
    result = cast.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.append(cast)
    graph.outputs[:] = [result if output is value else output for output in graph.outputs]
