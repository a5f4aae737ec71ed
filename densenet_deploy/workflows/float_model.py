"""The float32 graph that other precisions start from, and its form after the exact passes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.errors import ModelFileError
from densenet_deploy.manifest import THIRD_PARTY, Manifest
from densenet_deploy.model import Model
from densenet_deploy.workflows.load import load, preprocessing_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from densenet_deploy.quantization.calibration_data import CalibrationData


NARROW: Final = ("fp16", "bf16")


def float32_form(model: Model) -> Model:
    """Return `model` with float32 weights: itself, or, of a graph in FP16 or BF16, the float32 graph of its weights.

    A note says so, and the name loses the ending that stands for the precision. A quantized graph comes back as it is.
    """
    if not model.is_onnx or model.precision not in NARROW:
        return model
    from densenet_deploy.graph.onnx_file import has_quantization
    from densenet_deploy.graph.widen import widened

    if has_quantization(model.onnx):
        return model
    manifest = None if model.manifest is None else dataclasses.replace(model.manifest, precision="fp32")
    note = f"its {model.precision} weights were widened to float32 first, and the result is compared with that form"
    name = model.name.removesuffix(f".{model.precision}")
    return Model.from_onnx(name, widened(model.onnx), manifest).replaced(notes=(*model.notes, note))


def normalized_form(model: Model) -> Model:
    """Return `model` without the normalization at its beginning, if it takes pixels: itself otherwise.

    Raises:
        ModelFileError: if what it does to pixels first is not a normalization.
    """
    if not model.is_onnx or not preprocessing_of(model).takes_pixels:
        return model
    from densenet_deploy.graph.pixel_input import without_pixel_input

    proto = without_pixel_input(model.onnx, preprocessing_of(model), model.path or model.name)
    return _of_input(model, proto, "float32")


def pixel_form(model: Model) -> Model:
    """Return `model`, which takes normalized images, so that it takes pixels, which it normalizes as its facts say."""
    from densenet_deploy.graph.pixel_input import with_pixel_input

    return _of_input(model, with_pixel_input(model.onnx, preprocessing_of(model)), "uint8")


def _of_input(model: Model, proto: onnx.ModelProto, dtype: str) -> Model:
    """Return the graph `proto` with what is known of `model`; the manifest says that it takes `dtype`."""
    manifest = input_manifest(model.manifest, dtype)
    made = Model.from_onnx(model.name, proto, manifest, model.module)
    return made.replaced(report=model.report, notes=model.notes)


def input_manifest(manifest: Manifest | None, dtype: str) -> Manifest | None:
    """Return the facts of the form that takes `dtype`."""
    if manifest is None:
        return None
    return dataclasses.replace(manifest, preprocessing=dataclasses.replace(manifest.preprocessing, dtype=dtype))


def require_float32(model: Model) -> None:
    """Check that `model` is a float32 ONNX graph.

    Raises:
        ModelFileError: if it is not ONNX, or quantized, or holds 16-bit weights.
    """
    from densenet_deploy.graph.onnx_file import has_quantization

    subject = model.path or model.name
    if not model.is_onnx:
        found = "PyTorch module" if model.artifact is None else f"{model.artifact.kind} file"
        raise ModelFileError(subject, f"is a {found}, not an ONNX graph", "export it to a float32 .onnx file first")
    if has_quantization(model.onnx):
        raise ModelFileError(subject, "is already quantized", "give the float32 file it was made from")
    if model.precision != "fp32":
        raise ModelFileError(subject, f"holds {model.precision} weights", "give the float32 file")


def knows_normalization(manifest: Manifest | None) -> bool:
    """Whether mean and std were stated, so that arrays of calibration data can be checked against them."""
    return manifest is not None and manifest.states_normalization


def sized_by(model: Model, calibration: Any) -> Model:
    """Return `model` with the image size of calibration arrays, where its graph takes any and nobody stated one."""
    from densenet_deploy.quantization.calibration_data import image_size_of_inputs

    if calibration is None or model.manifest is None or "image_size" not in model.manifest.assumed:
        return model
    size = image_size_of_inputs(calibration)
    is_fixed = model.is_onnx and model.manifest.variant != THIRD_PARTY
    return model if size is None or is_fixed else load(model, image_size=size)


def calibration_data(model: Model, calibration: Any, samples: int) -> CalibrationData:
    """Open at most `samples` calibration images for `model`; arrays are checked if its mean and std were stated."""
    from densenet_deploy.quantization.calibration_data import open_calibration_data

    check_values = knows_normalization(model.manifest)
    plain = dataclasses.replace(preprocessing_of(model), dtype="float32")
    return open_calibration_data(calibration, plain, samples, check_values=check_values)


def exact_graph(model: Model, oldest_opset: int = 0) -> ir.Model:
    """Return a copy of the graph after the exact passes, with shapes inferred and a name for every node.

    A graph of an operator set before `oldest_opset` is lifted to that.
    A graph that `export` or `simplify` just made has been through the passes, which would change nothing.
    """
    import onnx
    import onnx_ir

    from densenet_deploy.graph.graph_pass import EXACT, apply_passes
    from densenet_deploy.graph.reduced_precision import lift_opset

    graph = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model.onnx))  # passes ask for axes and channels
    lift_opset(graph, oldest_opset)
    if model.report is None or model.report.kind not in ("export", "simplify"):
        apply_passes(graph, EXACT)
    graph = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx_ir.to_proto(graph)))  # recipes count channels
    for node in graph.graph:
        node.name = node.name or str(node.outputs[0].name)  # layers are distinguished by name
    return graph
