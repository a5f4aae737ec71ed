"""Write a module as ONNX through `torch.export`.

For modules of any class; a DenseNet of ours is written without it (`models.lower`). Three ATen operators get
translations of our own, through the exporter's public table, so that the graph is clean from the start. The stock path
gives every Conv without bias a bias of zeros made by Shape, Expand and CastLike nodes (removing them again takes the
exporter's optimizer longer than the translation), and writes global pools as ReduceMean and ReduceMax, where ONNX
Runtime has GlobalAveragePool and GlobalMaxPool for its blocked layout. What they do not cover, such as pooling to
another size, is left to the exporter.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch.onnx.errors import OnnxExporterError
from torch.utils import _pytree as pytree

from densenet_deploy.errors import ModelFileError
from densenet_deploy.models.lower import OnnxOptions
from densenet_deploy.models.naming import name_by_module
from densenet_deploy.models.operations import INPUT_NAME
from densenet_deploy.runtime.backends.torch import exported_shape, named_tensors

_LOWEST_WRITTEN: Final = 18  # by PyTorch; lower ones are made from it by the version converter of the onnx package
_TRACED_BATCH: Final = 2  # a traced size of 1 could be taken for a constant
_LOGGERS: Final = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript")
_WAY_OUT: Final = "check image-size and channels, or write it with torch.onnx.export and give the .onnx file"


def onnx_from_module(module: torch.nn.Module, output_names: str | Sequence[str], options: OnnxOptions) -> ir.Model:
    """Return `module` in eval mode as an ONNX model with one input `input` (N, C, H, W) float32.

    Nodes and values are named after the modules they come from (`features.denseblock1.denselayer1.conv1`).

    Args:
        module: takes one tensor; returns a tensor, or tensors in dictionaries, tuples and lists.
        output_names: of the tensor or of the entries of a tuple; keys of a dictionary stay (see `named_tensors`).
        options: shape of the input, and operator set.

    Raises:
        ModelFileError: if PyTorch cannot export the module, if the module has one batch size only and `options` has
            none, or if the operator set cannot express it.
    """
    names = (output_names,) if isinstance(output_names, str) else tuple(output_names)
    _refuse_programs(module, options)
    with _in_eval_mode(module), _quiet():
        program = _exported(module, options)
    model = program.model
    if options.batch is None and isinstance(model.graph.inputs[0].shape[0], int):  # type: ignore[index]
        raise ModelFileError(type(module).__name__, "computes with one batch size only", "export it with a fixed batch")
    assert program.exported_program is not None
    _name_outputs(model, program.exported_program, names)
    name_by_module(model)
    return model if options.opset >= _LOWEST_WRITTEN else _lowered(module, model, options.opset)


def _refuse_programs(module: torch.nn.Module, options: OnnxOptions) -> None:
    """Refuse what PyTorch cannot trace again: TorchScript, and a program for other images or batches than these."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        fix = "give the module itself, or the file that torch.onnx.export(program, images, path, dynamo=False) writes"
        raise ModelFileError(kind, "is a TorchScript program, which PyTorch does not export", fix)
    shape = exported_shape(module)
    if shape is None:
        return
    if any(_normalizes_by_batch(node) for node in module.graph.nodes):  # type: ignore[union-attr]
        fix = "call model.eval() and torch.export it again"
        raise ModelFileError(kind, "is a program in training mode: a result depends on the whole batch", fix)
    batch, *image = shape
    if any(size not in (None, given) for size, given in zip(image, options.image_shape, strict=True)):
        taken = "x".join("?" if size is None else str(size) for size in image)
        given = "x".join(map(str, options.image_shape))
        raise ModelFileError(kind, f"is a program for images of {taken}, not {given}", "state its image size")
    if batch not in (None, options.batch):
        fix = f"export it with the batch {batch}, or give a program that torch.export made with a dynamic batch"
        raise ModelFileError(kind, f"is a program for batches of {batch} only", fix)


def _normalizes_by_batch(node: torch.fx.Node) -> bool:
    return node.target == torch.ops.aten.batch_norm.default and bool(node.args[5])


def _exported(module: torch.nn.Module, options: OnnxOptions) -> torch.onnx.ONNXProgram:
    """Export with our translations, without those that do not cover what the module does."""
    example = torch.zeros(options.batch or _TRACED_BATCH, *options.image_shape, device=_device_of(module))
    translations = dict(_TRANSLATIONS)
    while True:
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=None if options.batch else _dynamic_batch(module),
                input_names=[INPUT_NAME],
                opset_version=max(options.opset, _LOWEST_WRITTEN),
                optimize=False,
                custom_translation_table=translations,
            )
        except OnnxExporterError as exc:
            cause = _root_cause(exc)
            if not isinstance(cause, _NotCoveredError):
                raise _export_error(module, cause, options) from exc
            del translations[cause.operator]
        else:
            assert program is not None
            return program


def _dynamic_batch(module: torch.nn.Module) -> tuple[Any, ...]:
    """Say of the first argument of `module`, which may be `*images`, that its batch is dynamic."""
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    shape = {0: torch.export.Dim("batch")}
    return ((shape,),) if first is not None and first.kind is first.VAR_POSITIONAL else (shape,)


def _device_of(module: torch.nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in module.state_dict().values()), None)


def _root_cause(exc: BaseException) -> BaseException:
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def _export_error(module: torch.nn.Module, cause: BaseException, options: OnnxOptions) -> ModelFileError:
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    kind = type(module).__name__
    if any(isinstance(layer, torch.nn.Conv3d) for layer in module.modules()):
        return ModelFileError(kind, "takes 3-D images (N, C, D, H, W), which are not supported", "give a 2-D network")
    return ModelFileError(kind, f"PyTorch cannot export it for images {options.image_shape}: {reason}", _WAY_OUT)


def _name_outputs(model: ir.Model, program: torch.export.ExportedProgram, names: tuple[str, ...]) -> None:
    """Name the graph's outputs after their places in what the module returns."""
    structure = program.call_spec.out_spec
    assert structure is not None
    result = pytree.tree_unflatten([torch.empty(0)] * structure.num_leaves, structure)
    found = [name for name, _ in named_tensors(result, names or ("logits",))]
    if len(found) != len(model.graph.outputs):  # a class of its own holds them, or some are not tensors
        found = [f"output{index}" for index in range(len(model.graph.outputs))]
    for value, name in zip(model.graph.outputs, found, strict=True):
        value.name = name


def _lowered(module: torch.nn.Module, model: ir.Model, opset: int) -> ir.Model:
    """Return the model in an operator set below those that PyTorch writes."""
    proto = ir.to_proto(model)
    try:
        lowered = onnx.version_converter.convert_version(proto, opset)
        onnx.checker.check_model(lowered, full_check=True)
    except Exception as exc:
        reason = str(exc).strip().partition("\n")[0]
        fix = f"export with --opset {_LOWEST_WRITTEN} or higher"
        raise ModelFileError(type(module).__name__, f"cannot be written in opset {opset}: {reason}", fix) from exc
    return ir.from_proto(lowered)


class _NotCoveredError(ValueError):
    """Our translation of `operator` does not cover this use of it."""

    def __init__(self, operator: Callable[..., Any]) -> None:
        super().__init__(str(operator))
        self.operator = operator


def _conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    """aten::conv2d, without a bias where the module has none."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    pads = [*padding, *padding]
    return op.Conv(*tensors, strides=[*stride], pads=pads, dilations=[*dilation], group=groups)


def _global_average_pool(x: Any, output_size: Sequence[int]) -> Any:
    """aten::adaptive_avg_pool2d to one pixel."""
    if list(output_size) != [1, 1]:
        raise _NotCoveredError(torch.ops.aten.adaptive_avg_pool2d.default)
    return op.GlobalAveragePool(x)


def _maximum(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    """aten::amax; over the pixels of maps (N, C, H, W), which is what a pool to one pixel becomes, a GlobalMaxPool."""
    if keepdim and len(x.shape) == 4 and sorted(axis % 4 for axis in dim) == [2, 3]:
        return op.GlobalMaxPool(x)
    axes = (op.Constant(value_ints=[*dim]),) if dim else ()
    return op.ReduceMax(x, *axes, keepdims=keepdim)


_TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.aten.conv2d.default: _conv2d,
    torch.ops.aten.adaptive_avg_pool2d.default: _global_average_pool,
    torch.ops.aten.amax.default: _maximum,
}


@contextlib.contextmanager
def _in_eval_mode(module: torch.nn.Module) -> Iterator[None]:
    """Export in eval mode, and leave every inner module in the mode it was in; programs have no modes."""
    if exported_shape(module) is not None:
        yield
        return
    training = [inner for inner in module.modules() if inner.training]
    module.eval()
    try:
        yield
    finally:
        for inner in training:
            inner.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter prints, logs and warns of from the user: the parity check judges the result."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
