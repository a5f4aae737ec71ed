"""From a float graph and calibration data to what pruning works on: bottlenecks, images in two parts, the original.

Some of the images choose channels and fit weights, the others judge the result.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.errors import DataError, ModelFileError
from densenet_deploy.model import Model
from densenet_deploy.quantization.calibrate import varied
from densenet_deploy.quantization.calibration_data import CalibrationData, ImageFolder
from densenet_deploy.runtime.image_folders import find_images
from densenet_deploy.workflows.float_model import calibration_data, exact_graph, normalized_form
from densenet_deploy.workflows.load import preprocessing_of
from densenet_deploy.workflows.prune.options import PruneOptions
from densenet_deploy.workflows.stages import Stages

if TYPE_CHECKING:
    import onnx

    from densenet_deploy.graph.bottlenecks import Bottlenecks
    from densenet_deploy.pruning.reconstruction import Reconstruction
    from densenet_deploy.quantization.calibration_data import CalibrationData
    from densenet_deploy.runtime.feeds import Array

MOST_JUDGING: Final = 64
_EVERY: Final = 4


@dataclass(frozen=True, eq=False)
class SplitImages:
    """Inputs (1, C, H, W): of four that follow each other, three choose and the fourth judges.

    Attributes:
        choosing: they choose channels and fit weights.
        judging: at most 64, which do neither.
        left_out: how many of the first kind were not used.
    """

    choosing: tuple[Array, ...]
    judging: tuple[Array, ...]
    left_out: int

    @classmethod
    def of(cls, data: CalibrationData, most: int) -> SplitImages:
        """Read `data`; at most `most` choose.

        Raises:
            DataError: if there are fewer than 32, or they are all alike, or an image cannot be read.
        """
        choosing: list[Array] = []
        judging: list[Array] = []
        left_out = 0
        for place, sample in enumerate(varied(data, data.origin)):
            if _judges(place):
                judging += [sample] if len(judging) < MOST_JUDGING else []
            elif len(choosing) < most:
                choosing.append(sample)
            else:
                left_out += 1
        return cls(tuple(choosing), tuple(judging), left_out)


def _judges(place: int) -> bool:
    return place % _EVERY == _EVERY - 1


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

    @functools.cached_property
    def widths(self) -> dict[str, int]:
        """The channels of each bottleneck."""
        return {bottleneck.name: bottleneck.width for bottleneck in self.found.found}

    @functools.cached_property
    def macs_per_channel(self) -> dict[str, int]:
        """The multiply-accumulates that each channel of a bottleneck costs."""
        from densenet_deploy.analysis.onnx_cost import onnx_cost

        macs = {layer.name: layer.macs for layer in onnx_cost(self.proto).layers}
        return {
            bottleneck.name: (macs[bottleneck.name] + macs[str(bottleneck.reading.name)]) // bottleneck.width
            for bottleneck in self.found.found
        }

    def macs_of(self, widths: Mapping[str, int]) -> int:
        """Return the multiply-accumulates of the bottlenecks at these widths."""
        return sum(width * self.macs_per_channel[name] for name, width in widths.items())


def prepare(given: Model, calibration: Any, options: PruneOptions, stages: Stages) -> Preparation:
    """Find the bottlenecks of a float32 graph, read the images, and run the original.

    Raises:
        UsageError: if `ratio` leaves a layer without channels, or removes none.
        ModelFileError: if the graph has no bottleneck that can be pruned, or gives NaN or Inf.
        DataError: if the calibration data are too few, all alike, or not normalized.
    """
    from densenet_deploy.graph.bottlenecks import find_bottlenecks
    from densenet_deploy.pruning.reconstruction import Reconstruction, images_that_fit
    from densenet_deploy.pruning.widths import uniform_widths

    model = normalized_form(given)
    with stages("passes"):
        import onnx_ir

        graph = exact_graph(of_one_size(model))
        found = find_bottlenecks(graph.graph)
        if not found.found:
            why = f"has no bottleneck that can be pruned: {found.refused[0] if found.refused else 'no dense layers'}"
            raise ModelFileError(given.path or given.name, why, "prune a DenseNet with 1x1 and 3x3 convolutions")
        proto = onnx_ir.to_proto(graph)
    if options.ratio is not None:  # which is refused before any image is read
        uniform_widths({bottleneck.name: bottleneck.width for bottleneck in found.found}, options.ratio)
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


@contextlib.contextmanager
def judging_folder(folder: Path, data: CalibrationData, choosing: int) -> Iterator[Path]:
    """Give a folder for the block with class folders of links: to all images of `folder` that did not choose.

    `choosing` is how many of `data` did.

    Raises:
        DataError: if a class would have no image, which would make other classes of a model without labels.
    """
    assert isinstance(data, ImageFolder)  # as is every folder
    chose = {path for place, path in enumerate(data.paths) if not _judges(place)}
    chose = set([path for path in data.paths if path in chose][:choosing])
    with tempfile.TemporaryDirectory() as made:
        for path in find_images(folder):
            if path not in chose:
                link = Path(made) / path.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.absolute())
        missing = sorted({path.parent.name for path in chose} - {path.name for path in Path(made).iterdir()})
        if missing:
            why = "has no image left to judge by, all of them choose channels"
            raise DataError(folder / missing[0], why, "give more images of it, or use --min-sqnr")
        yield Path(made)
