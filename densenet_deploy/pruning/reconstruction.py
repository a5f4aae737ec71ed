"""Prune the bottlenecks of a graph one after the other, each fitted to what its layer made in the float original.

For every layer, Y are outputs of the original at pixels drawn by a seed, and U what the same pixels read in the network
pruned so far: so a layer also takes back, as far as it can, what the layers before it changed. One pass over the
original gives all Y, one pass over the pruned network all U (`segments`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.bottlenecks import Bottleneck
from densenet_deploy.graph.nodes import constant
from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.graph.windows import Window
from densenet_deploy.pruning.elimination import LeastSquares, eliminate
from densenet_deploy.pruning.segments import SegmentedGraph, State, batched, open_part
from densenet_deploy.runtime.feeds import Array

ROWS_PER_COLUMN: Final = 8
STATE_BYTES: Final = 512 * 2**20
FEWEST_IMAGES: Final = 8
_PIXELS_PER_BATCH: Final = 2**18
_MOST_PER_BATCH: Final = 32

Step = Callable[[int, int | None], None]


@dataclass(frozen=True)
class LayerFit:
    """What became of one bottleneck.

    Attributes:
        name: of the convolution that makes the channels.
        before, after: its channels.
        kept: which of them are left.
        relative_error: of the layer's outputs on the images that chose: squared error by variance.
        rows_per_column: pixels for each weight of an output that was fitted.
    """

    name: str
    before: int
    after: int
    kept: tuple[int, ...]
    relative_error: float
    rows_per_column: float


@dataclass(frozen=True, eq=False)
class PrunedGraph:
    """A graph with fewer channels, and what became of each bottleneck, by name and in execution order."""

    proto: onnx.ModelProto
    layers: Mapping[str, LayerFit]
    weights: Mapping[str, Array]
    """The initializers that changed, by name."""
    reading: Mapping[str, str]
    """By the names of the bottlenecks, the initializer with the weights of the convolution that reads it."""
    is_finetuned: bool = False
    """Whether all weights were trained afterwards."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """A bottleneck as arrays: W₀ (n, outputs) and the bias of what reads it; the names of its tensors."""

    name: str
    width: int
    hidden: str
    output: str
    reading: str
    weights: Array
    bias: Array
    window: Window
    shape: tuple[int, ...]
    tensors: tuple[str, str | None, str]
    narrow: tuple[Array, Array | None]

    @classmethod
    def of(cls, bottleneck: Bottleneck) -> _Layer:
        narrowing, reading = bottleneck.narrowing, bottleneck.reading
        weight = constant(reading.inputs[1])
        assert weight is not None
        bias = _optional(reading, 2)
        named = narrowing.inputs[2] if len(narrowing.inputs) > 2 else None
        narrow = constant(narrowing.inputs[1])
        assert narrow is not None
        return cls(
            name=bottleneck.name,
            width=bottleneck.width,
            hidden=str(bottleneck.activation.outputs[0].name),
            output=str(reading.outputs[0].name),
            reading=str(reading.name),
            weights=weight.reshape(len(weight), -1).T,
            bias=np.zeros(len(weight), np.float32) if bias is None else bias,
            window=Window.of(reading),
            shape=weight.shape,
            tensors=(
                str(narrowing.inputs[1].name),  # type: ignore[union-attr]
                None if named is None else str(named.name),
                str(reading.inputs[1].name),  # type: ignore[union-attr]
            ),
            narrow=(narrow, _optional(narrowing, 2)),
        )

    def changed(self, kept: Sequence[int], weights: Array) -> dict[str, Array]:
        """Return the tensors of the layer with the channels `kept` and the weights (n, outputs) that read them."""
        name, bias, reading = self.tensors
        chosen = list(kept)
        result = {name: self.narrow[0][chosen]}
        if bias is not None and self.narrow[1] is not None:
            result[bias] = self.narrow[1][chosen]
        outputs, _, *kernel = self.shape
        result[reading] = np.ascontiguousarray(weights.T.reshape(outputs, len(chosen), *kernel), np.float32)
        return result


def _optional(conv: object, index: int) -> Array | None:
    inputs = conv.inputs  # type: ignore[attr-defined]
    return constant(inputs[index]) if len(inputs) > index else None


class Reconstruction:
    """The bottlenecks of `model`, and what their layers make of the calibration images in the float original."""

    def __init__(
        self,
        model: onnx.ModelProto,
        bottlenecks: Sequence[Bottleneck],
        samples: Sequence[Array],
        *,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        """Run the original.

        Args:
            model: the float graph, after the exact passes, with shapes.
            bottlenecks: of it, in execution order.
            samples: inputs (1, C, H, W).
            batch: that of a graph with a fixed one: what is left over of the samples is not used.
            seed: of the pixels.
        """
        self._model, self._seed = model, seed
        self._layers = [_Layer.of(bottleneck) for bottleneck in bottlenecks]
        self._graph = SegmentedGraph(model, [layer.reading for layer in self._layers])
        size = batch or max(1, min(_MOST_PER_BATCH, _PIXELS_PER_BATCH // int(np.prod(samples[0].shape[2:]))))
        batches = batched(samples, size)
        self._batches = [images for images in batches if batch is None or len(images) == batch]
        self._targets, self._pixels = self._original()

    @property
    def count(self) -> int:
        """How many images are used."""
        return sum(map(len, self._batches))

    def problems(self) -> Iterator[tuple[str, LeastSquares]]:
        """Yield the name and the least squares of each layer in the original network; U is the original's too."""
        states = self._first_states()
        for number, layer in enumerate(self._layers):
            self._graph.advance(number, states, {})
            yield layer.name, self._problem(number, states)

    def pruned(self, widths: Mapping[str, int], step: Step | None = None) -> PrunedGraph:
        """Return the graph whose bottlenecks have `widths` channels, by name; others are left as they are."""
        weights: dict[str, Array] = {}
        states, fits = self._first_states(), dict[str, LayerFit]()
        for number, layer in enumerate(self._layers):
            self._graph.advance(number, states, weights)
            problem = self._problem(number, states)
            width = widths.get(layer.name, layer.width)
            kept = eliminate(problem, width).kept if width < layer.width else tuple(range(layer.width))
            weights |= layer.changed(kept, problem.fitted(kept))
            for state in states:
                state[layer.hidden] = state[layer.hidden][:, list(kept)]
            error = max(problem.objective(kept), 0.0) / problem.signal if problem.signal else 0.0
            rows = sum(len(pixels[0]) for pixels in self._pixels[number])
            fits[layer.name] = LayerFit(
                layer.name, layer.width, width, kept, error, rows / (width * len(problem.gram) // layer.width)
            )
            if step is not None:
                step(number + 1, len(self._layers))
        reading = {layer.name: layer.tensors[2] for layer in self._layers}
        return PrunedGraph(with_weights(self._model, weights), fits, weights, reading)

    def _first_states(self) -> list[State]:
        return [{self._graph.input: images} for images in self._batches]

    def _problem(self, number: int, states: Sequence[State]) -> LeastSquares:
        layer = self._layers[number]
        maps = (state[layer.hidden] for state in states)
        patches = [layer.window.patches(*pair) for pair in zip(maps, self._pixels[number], strict=True)]
        return LeastSquares.of(np.concatenate(patches), self._targets[number], layer.weights, layer.width)

    def _original(self) -> tuple[list[Array], list[list[tuple[Array, Array, Array]]]]:
        """Y of each layer without its bias, (pixels, outputs), and the pixels by layer and batch."""
        found: list[list[Array]] = [[] for _ in self._layers]
        pixels: list[list[tuple[Array, Array, Array]]] = [[] for _ in self._layers]
        exposed = expose_values(self._model, {layer.output for layer in self._layers})
        with open_part(exposed.SerializeToString()) as runner:
            for index, images in enumerate(self._batches):
                outputs = runner.run({runner.inputs[0].name: images})
                for number, layer in enumerate(self._layers):
                    maps = outputs[layer.output]
                    _require_finite(layer, maps)
                    chosen = self._drawn(number, index, maps.shape)
                    pixels[number].append(chosen)
                    image, row, column = chosen
                    found[number].append(maps[image, :, row, column] - layer.bias)
        return [np.concatenate(parts) for parts in found], pixels

    def _drawn(self, number: int, batch: int, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """Draw pixels (image, row, column) of maps of this shape, equally many of every image."""
        images, _, height, width = shape
        wanted = ROWS_PER_COLUMN * len(self._layers[number].weights)
        count = min(height * width, -(-wanted // self.count))
        rng = np.random.default_rng((self._seed, number, batch))
        places = np.stack([rng.choice(height * width, count, replace=False) for _ in range(images)])
        return np.repeat(np.arange(images), count), *np.divmod(places.ravel(), width)


def _require_finite(layer: _Layer, maps: Array) -> None:
    if not np.isfinite(maps).all():
        raise ModelFileError(layer.reading, "gives NaN or infinite values for a calibration image", "check its weights")


def images_that_fit(model: onnx.ModelProto, bottlenecks: Sequence[Bottleneck]) -> int:
    """Return for how many images 512 MiB hold what is kept between two layers, at least 8; shapes must be known."""
    graph = SegmentedGraph(model, [str(bottleneck.reading.name) for bottleneck in bottlenecks])
    return max(FEWEST_IMAGES, STATE_BYTES // graph.state_bytes())


def with_weights(model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[np.float32]]) -> onnx.ModelProto:
    """Return a copy of `model` with other values for some initializers, and shapes inferred anew."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    del changed.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(changed)
