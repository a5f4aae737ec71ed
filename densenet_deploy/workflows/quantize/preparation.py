"""From a float graph and calibration data to a graph that INT8 can be written into, for every workflow that does."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.errors import DataError, GateError
from densenet_deploy.manifest import Manifest
from densenet_deploy.model import Model
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import compare_outputs, worst
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.cpus import has_vnni
from densenet_deploy.runtime.feeds import Feeds
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, RunnerOptions
from densenet_deploy.workflows.float_model import calibration_data, exact_graph, knows_normalization, require_float32
from densenet_deploy.workflows.quantize.options import QuantizeOptions, recipe_here
from densenet_deploy.workflows.stages import Stages

if TYPE_CHECKING:
    from densenet_deploy.model import Model
    from densenet_deploy.quantization.cache import CalibrationCache
    from densenet_deploy.quantization.calibration_data import CalibrationData
    from densenet_deploy.quantization.int8_writer import Int8Writer

MOST_BYTES: Final = 64 * 2**20
_CHECKED: Final = 4
_SAME_DB: Final = 60.0  # float32 sums in another order are above 100 dB
_OLDEST_OPSET: Final = 13  # the first in which DequantizeLinear has a scale per channel
_LEAST_FILLED: Final = 0.02

log = logging.getLogger(__name__)


class FloatOutputs:
    """The outputs of `model` on the first samples of `data`.

    Calibration runs the graph after the exact passes and has seen its outputs: those are taken if the model itself
    gives the same for four of the samples. What does not fit into 64 MiB is computed again whenever it is asked for.
    """

    def __init__(self, model: Model, data: CalibrationData, seen: Sequence[Feeds] = ()) -> None:
        """Nothing is run before outputs are asked for; `seen` are those of the first samples, as far as is known."""
        self._model, self._data = model, data
        self._seen, self._is_checked = list(seen), not seen

    def first(self, count: int) -> Iterator[Feeds]:
        """Yield the outputs, by name, of at most `count` samples, on ONNX Runtime."""
        if not self._is_checked:
            self._check()
        known = len(self._seen)
        yield from self._seen[:count]
        if count > known:
            yield from self._run(known, count)

    def _check(self) -> None:
        found = compare_outputs(self._seen[:_CHECKED], self._outputs(0, min(_CHECKED, len(self._seen))))
        name, parity = worst(found)
        if parity.nonfinite or parity.sqnr_db < _SAME_DB:
            log.info("%s differs after the exact passes by %.1f dB: the model itself is run", name, parity.sqnr_db)
            self._seen = []
        self._is_checked = True

    def _run(self, start: int, end: int) -> Iterator[Feeds]:
        for number, outputs in enumerate(self._outputs(start, end), start=start):
            size = sum(array.nbytes for array in outputs.values())
            if number == len(self._seen) and (number + 1) * size <= MOST_BYTES:
                self._seen.append(outputs)
            yield outputs

    def _outputs(self, start: int, end: int) -> Iterator[Feeds]:
        calls, threads = shared_cpus(REFERENCE_BACKEND)
        with self._model.runner(REFERENCE_BACKEND, "cpu", RunnerOptions(threads=threads)) as runner:
            for _, outputs in run_each(runner, itertools.islice(self._data, start, end), calls):
                yield outputs


@dataclass(frozen=True)
class Int8Preparation:
    """A calibrated graph that waits for a choice of layers.

    Attributes:
        writer: writes it.
        data: the calibration data.
        note: where the ranges came from.
        floats: what the float model gives for the first of the data.
    """

    writer: Int8Writer
    data: CalibrationData
    note: str
    floats: FloatOutputs

    @property
    def count(self) -> int:
        """How many samples were calibrated on."""
        return self.data.count


def prepare_int8(
    model: Model,
    calibration: Any,
    options: QuantizeOptions,
    stages: Stages,
    cache: CalibrationCache | None = None,
    *,
    from_pixels: bool = False,
) -> Int8Preparation:
    """Run the exact passes, calibrate and equalize.

    With `from_pixels`, the first convolution reads pixels where the recipe writes it in INT8 (see `read_pixels`).

    Raises:
        UnknownNameError: if the recipe is unknown.
        ModelFileError: if the source is not a float32 image model.
        DataError: if the calibration data are too few, all alike, or not normalized.
        GateError: if it holds no convolution that can be INT8.
    """
    import onnx_ir

    from densenet_deploy.graph.nodes import is_operator
    from densenet_deploy.graph.pixel_input import LEVELS, read_pixels, zero_point_of
    from densenet_deploy.quantization.calibrate import calibrate
    from densenet_deploy.quantization.int8_writer import CORRECTION_SAMPLES, Int8Writer, tensors_to_observe
    from densenet_deploy.quantization.observers.minmax import MinMaxOptions
    from densenet_deploy.quantization.observers.observer import CalibrationConfig
    from densenet_deploy.quantization.recipes.recipe import RecipeOptions, recipes
    from densenet_deploy.quantization.scales import QuantizedType

    recipe = chosen_recipe(options.recipe)
    require_float32(model)
    data = calibration_data(model, calibration, options.samples)
    with stages("passes"):
        graph = exact_graph(model, _OLDEST_OPSET)
        if not any(is_operator(node, "Conv") for node in graph.graph):
            raise GateError(model.name, "holds no convolution that can be INT8", "keep the float file")
        reads_pixels = from_pixels and recipes.get(recipe).reads_image
        pixels = read_pixels(graph, data.preprocessing) if reads_pixels else None
    with stages("calibrate") as step:
        minmax = (options.observer_options or MinMaxOptions()) if options.observer == "minmax" else None
        tensors = tensors_to_observe(graph, through_norms=minmax is not None)
        config = CalibrationConfig(options.observer, options.observer_options, tensors)
        found = calibrate(onnx_ir.to_proto(graph), data, config, cache, step, CORRECTION_SAMPLES)
        beyond = about_range(data, is_stated=knows_normalization(model.manifest))
    with stages("prepare"):
        per_channel = options.weights == "per-channel"
        bits = weight_bits() if recipes.get(recipe).for_cpus else 8
        how = RecipeOptions(per_channel, bits, quantize_bus=options.quantize_bus)
        alpha = options.alpha if options.equalize else None
        manifest = int8_manifest(model.manifest, recipe)
        assert minmax is None or isinstance(minmax, MinMaxOptions)  # as the configuration checked
        exact = {} if pixels is None else {pixels: QuantizedType(1 / LEVELS, zero_point_of(data.preprocessing))}
        writer = Int8Writer(
            graph, found.ranges, recipe, how, alpha=alpha, manifest=manifest, minmax=minmax, exact=exact
        )
        floats = FloatOutputs(model, data, found.outputs)
        if options.correct:
            writer.correct(data, floats.first(min(CORRECTION_SAMPLES, data.count)))
    return Int8Preparation(writer, data, "; ".join(filter(None, (found.note, beyond))), floats)


def about_range(data: CalibrationData, *, is_stated: bool) -> str | None:
    """Compare the values of calibration arrays with those that the preprocessing of images gives.

    A graph takes what it was calibrated on. Where images are prepared for it in another range, it gives nonsense
    for them, and no measurement on the arrays shows it.

    Args:
        data: after they were read.
        is_stated: whether somebody stated mean and std; else they are assumed, and arrays tell more than they do.

    Returns:
        A sentence if an assumption cannot hold, else None.

    Raises:
        DataError: if what was stated cannot hold: values lie farther outside of the range of images than that is wide,
            or fill less than a fiftieth of it.
    """
    ends = data.extremes()
    if ends is None:
        return None
    low, high = float(ends.low.min()), float(ends.high.max())
    lowest, highest = data.preprocessing.value_range
    width = highest - lowest
    is_inside = lowest - width <= low and high <= highest + width
    if is_inside and high - low >= _LEAST_FILLED * width:
        return None
    values, images = f"{low:.4g} to {high:.4g}", f"{lowest:.4g} to {highest:.4g}"
    if is_stated:
        why = f"ranges from {values}, where the stated mean and std give {images}"
        raise DataError(data.origin, why, "prepare it as the model takes its inputs, or state their mean and std")
    return (
        f"input: calibrated on values from {values}; the assumed mean and std give images from {images}, "
        "for which the result is not made: state --mean and --std"
    )


def int8_manifest(manifest: Manifest | None, recipe: str) -> Manifest | None:
    """Return the facts of the INT8 form that `recipe` makes of a model with `manifest`."""
    return None if manifest is None else dataclasses.replace(manifest, precision="int8", recipe=recipe)


def chosen_recipe(name: str) -> str:
    """Return the recipe called `name`; see `recipe_here`.

    Raises:
        UnknownNameError: if the recipe is unknown.
        MissingPackageError: if what writes recipes is not installed.
    """
    require_packages("export", "onnx", "onnxscript")
    from densenet_deploy.quantization.recipes.recipe import recipes

    chosen = recipe_here(name)
    recipes.get(chosen)
    return chosen


def weight_bits(flags: frozenset[str] | None = None) -> int:
    """Return 7 for x86 CPUs whose INT8 kernels add pairs of products in saturating 16 bits, else 8."""
    return 7 if has_vnni(flags) is False else 8
