"""From a float graph and calibration data to what pruning works on: bottlenecks, images in two parts, the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densenet_deploy.errors import ModelFileError
from densenet_deploy.model import Model
from densenet_deploy.workflows.float_model import calibration_data, exact_graph, normalized_form
from densenet_deploy.workflows.load import preprocessing_of
from densenet_deploy.workflows.prune.images import SplitImages
from densenet_deploy.workflows.prune.options import PruneOptions
from densenet_deploy.workflows.stages import Stages

if TYPE_CHECKING:
    import onnx

    from densenet_deploy.graph.bottlenecks import Bottlenecks
    from densenet_deploy.pruning.reconstruction import Reconstruction
    from densenet_deploy.quantization.calibration_data import CalibrationData


@dataclass(frozen=True, eq=False)
class Preparation:
    """What pruning starts from.

    Attributes:
        model: the float graph that takes normalized images.
        proto: after the exact passes, for images of one size.
        found: its bottlenecks.
        data: the calibration data, and `images` what was read of them.
    """

    model: Model
    proto: onnx.ModelProto
    found: Bottlenecks
    data: CalibrationData
    images: SplitImages
    reconstruction: Reconstruction


def prepare(given: Model, calibration: Any, options: PruneOptions, stages: Stages) -> Preparation:
    """Find the bottlenecks of a float32 graph, read the images, and run the original.

    Raises:
        UsageError: if `ratio` leaves a layer without channels, or removes none.
        ModelFileError: if the graph has no bottleneck that can be pruned, or gives NaN or Inf.
        DataError: if the calibration data are too few, all alike, or not normalized.
    """
    from densenet_deploy.graph.bottlenecks import find_bottlenecks
    from densenet_deploy.pruning.reconstruction import Reconstruction, images_that_fit

    model = normalized_form(given)
    with stages("passes"):
        import onnx_ir

        graph = exact_graph(of_one_size(model))
        found = find_bottlenecks(graph.graph)
        if not found.found:
            why = f"has no bottleneck that can be pruned: {found.refused[0] if found.refused else 'no dense layers'}"
            raise ModelFileError(given.path or given.name, why, "prune a DenseNet with 1x1 and 3x3 convolutions")
        proto = onnx_ir.to_proto(graph)
    if options.ratio is not None:
        uniform(found, options.ratio)  # which refuses a ratio before any image is read
    with stages("read images"):
        data = calibration_data(model, calibration, options.samples)
        images = SplitImages.of(data, images_that_fit(proto, found.found))
    with stages("original"):
        reconstruction = Reconstruction(proto, found.found, images.choosing, batch=fixed_batch_of(model))
    return Preparation(model, proto, found, data, images, reconstruction)


def of_one_size(model: Model) -> Model:
    """Return `model` for images of the size that its facts say, if its graph takes any."""
    from densenet_deploy.graph.onnx_file import image_shape_of, with_image_size

    if None not in image_shape_of(model.onnx, model.name):
        return model
    _, height, width = preprocessing_of(model).shape
    return Model.from_onnx(model.name, with_image_size(model.onnx, height, width), model.manifest)


def fixed_batch_of(model: Model) -> int | None:
    """Return the batch size of a graph with a fixed one."""
    stored = {tensor.name for tensor in model.onnx.graph.initializer}
    image = next(value for value in model.onnx.graph.input if value.name not in stored)
    return image.type.tensor_type.shape.dim[0].dim_value or None


def uniform(found: Bottlenecks, ratio: float) -> dict[str, int]:
    """Return the widths after a share `ratio` of the channels of each is gone. Errors as `uniform_widths`."""
    from densenet_deploy.pruning.widths import uniform_widths

    return uniform_widths({bottleneck.name: bottleneck.width for bottleneck in found.found}, ratio)
