"""Write a DenseNet module as ONNX through `torch.export`.

Three ATen operators get translations of our own, through the exporter's public table, so that the graph is clean from
the start. The stock path decomposes batch_norm, gives every Conv without bias a bias of zeros made by Shape, Expand
and CastLike nodes (removing them again takes the exporter's optimizer longer than the translation), and writes the
pooling of the head as ReduceMean, where ONNX Runtime has a GlobalAveragePool for its blocked layout.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from densenet_deploy.models.naming import name_by_module
from densenet_deploy.options import require_range

INPUT_NAME: Final = "input"
LOWEST_OPSET: Final = 18
HIGHEST_OPSET: Final = 23
_TRACED_BATCH: Final = 2  # a traced size of 1 could be taken for a constant


@dataclass(frozen=True)
class ExportOptions:
    """How the ONNX file is written.

    Attributes:
        image_size: height and width of the input in pixels.
        batch: None keeps the batch dimension dynamic.
        opset: ONNX operator set, 18 to 23. TensorRT 10.3 and later and ONNX Runtime read the default.
    """

    image_size: int = 224
    batch: int | None = None
    opset: int = 20

    def __post_init__(self) -> None:
        require_range("image-size", self.image_size, 1, 8192)
        require_range("opset", self.opset, LOWEST_OPSET, HIGHEST_OPSET)
        if self.batch is not None:
            require_range("batch", self.batch, 1, 4096)


def onnx_from_module(module: torch.nn.Module, output_name: str, options: ExportOptions) -> ir.Model:
    """Return `module` as an ONNX model with input `input` (N, 3, H, W) float32 and output `output_name`.

    Nodes and values are named after the modules they come from (`features.denseblock1.denselayer1.conv1`).
    """
    example = torch.zeros(options.batch or _TRACED_BATCH, 3, options.image_size, options.image_size)
    dynamic = None if options.batch else ({0: torch.export.Dim("batch")},)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=[INPUT_NAME],
            output_names=[output_name],
            opset_version=options.opset,
            optimize=False,
            verbose=False,
            custom_translation_table=_TRANSLATIONS,
        )
    assert program is not None
    name_by_module(program.model)
    return program.model


def _batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool = False,  # noqa: ARG001 - the ATen signature
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
    cudnn_enabled: bool = False,  # noqa: ARG001
) -> Any:
    """aten::batch_norm of a module in eval mode."""
    return op.BatchNormalization(x, weight, bias, running_mean, running_var, epsilon=eps)


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
    return op.Conv(*tensors, strides=list(stride), pads=pads, dilations=list(dilation), group=groups)


def _global_average_pool(x: Any, output_size: Sequence[int]) -> Any:
    """aten::adaptive_avg_pool2d to one pixel."""
    if list(output_size) != [1, 1]:
        raise ValueError(f"no translation for adaptive average pooling to {output_size}")
    return op.GlobalAveragePool(x)


_TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.aten.batch_norm.default: _batch_norm,
    torch.ops.aten.conv2d.default: _conv2d,
    torch.ops.aten.adaptive_avg_pool2d.default: _global_average_pool,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own warnings and log lines away from the user: our parity check judges the result."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
