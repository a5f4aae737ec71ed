"""Round the weights of a convolution so that its outputs stay, not the weights.

Of a row w of weights, nearest rounding minimizes |w − q|². What counts is the error of the output, over the inputs x
that the layer reads,

    E[(w − q)ᵀx]² = (w − q)ᵀ H (w − q),   H = E[x xᵀ],

and where inputs correlate, an error of one weight can be taken back by others. Weights are rounded one after the other,
and each is first moved to where it takes back most of what was done before: with the Cholesky factor H = R Rᵀ, R upper
triangular, and the errors e = w − q,

    q_j = round(w_j + Σ_{i<j} e_i R_ij / R_jj),   (w − q)ᵀ H (w − q) = Σ_j R_jj² r_j²,

r_j being the residual of that rounding. Moving all weights that are not yet rounded to where they are best is the
Optimal Brain Surgeon for rounding (OBQ, Frantar & Alistarh 2022, https://arxiv.org/abs/2208.11580); in one order for
all rows it is GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323), and in this form, which needs no inverse of
H, LDLQ (Chee et al. 2023, https://arxiv.org/abs/2307.13304). The error of a weight can be taken back by those that come
later, so the strongest inputs come first.

**Inputs** are what the layer reads in the quantized file, clips, pools and 8 bits, on the activations of the float
network, as in `output_correction.py`. As that takes back the mean of every output channel afterwards, only what varies
around the mean has to be right, and H is the covariance of the inputs. There are few of them: a hundredth of the mean
of diag(H) is added to its diagonal, as in GPTQ.

**The grid stays.** No weight becomes larger than the largest quantized value of its row, and weights that have it keep
it. So a recipe that rounds the result to nearest finds the same scales, and these quantized values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from densenet_deploy.graph.nodes import Double, Float, is_operator, set_weight_and_bias, weight_and_bias
from densenet_deploy.graph.windows import Window
from densenet_deploy.quantization.output_correction import quantized_inputs
from densenet_deploy.quantization.scales import Int8, smallest_scales
from densenet_deploy.runtime.feeds import Array

DAMPING: Final = 0.01
"""What is added to the diagonal of H, as a share of its mean."""

_BLOCK: Final = 64  # columns whose errors are handed on by one product of matrices
_PIXELS: Final = 8192  # of all images
_FEWEST_PIXELS: Final = 64  # of an image
_BUFFERED: Final = 512  # patches for one product
_MOST_BYTES: Final = 512 * 2**20

log = logging.getLogger(__name__)


# -- rows of weights


def rounded_rows(weights: Double, scales: Float, moments: Double, damping: float = DAMPING) -> Int8:
    """Return the quantized values (M, K) of `weights` (M, K) that change the outputs least.

    A row that nearest rounding leaves closer to its outputs is rounded to nearest.

    Two inputs that are always alike: what one weight gains by rounding the other one loses.

    >>> rounded_rows(np.array([[3.0, 0.4, 0.4]]), np.float32([1]), np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1.0]]))
    array([[3, 0, 1]], dtype=int8)

    Args:
        weights: float.
        scales: of the quantized values, (M,), or () for all rows.
        moments: H, (K, K).
        damping: see `DAMPING`.

    Raises:
        ValueError: if a weight or a moment is NaN or infinite.
    """
    if not (np.isfinite(weights).all() and np.isfinite(moments).all()):
        raise ValueError("weights and moments must be finite")
    exact = weights / np.asarray(scales, np.float64).reshape(-1, 1)
    nearest = np.rint(exact)
    limits = np.abs(nearest).max(axis=1 if np.ndim(scales) else None, keepdims=True)
    power = float(np.mean(np.diagonal(moments)))
    if power <= 0:  # nothing but zeros is read
        return nearest.astype(np.int8)
    order = np.argsort(-np.diagonal(moments), kind="stable")
    factor = _upper_factor(moments[np.ix_(order, order)] / power, damping)
    found = np.empty_like(exact)
    found[:, order] = _with_feedback(exact[:, order].T, np.broadcast_to(limits[:, 0], len(exact)), factor).T
    is_better = _noise(exact - found, moments) < _noise(exact - nearest, moments)
    return np.where(is_better[:, None], found, nearest).astype(np.int8)


def _upper_factor(moments: Double, damping: float) -> Double:
    """Return R, upper triangular, with R Rᵀ = `moments` + `damping`·I."""
    damped = moments + damping * np.eye(len(moments))
    return np.asarray(np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1], np.float64)


def _with_feedback(exact: Double, limits: Double, factor: Double) -> Double:
    """Return whole numbers for `exact` (K, M), one input after the other; `limits` (M,) are the largest of each row."""
    feedback = factor / np.diagonal(factor)
    found, errors = np.empty_like(exact), np.empty_like(exact)
    for start in range(0, len(exact), _BLOCK):
        block = slice(start, start + _BLOCK)
        wanted = exact[block] + feedback[:start, block].T @ errors[:start]
        for place, target in enumerate(wanted, start=start):
            nearest = np.rint(exact[place])
            moved = np.rint(target + feedback[start:place, place] @ errors[start:place])
            is_kept = np.abs(nearest) == limits
            found[place] = np.where(is_kept, nearest, np.clip(moved, -limits, limits))
            errors[place] = exact[place] - found[place]
    return found


def _noise(errors: Double, moments: Double) -> Double:
    """Return eᵀ H e for each row e of `errors`, (M,)."""
    return np.asarray(np.einsum("ij,ij->i", errors @ moments, errors))


# -- what a convolution reads


class InputMoments:
    """The covariance of what a convolution reads, patches (K,)."""

    def __init__(self, columns: int) -> None:
        self._sum, self._products = np.zeros(columns), np.zeros((columns, columns), np.float32)
        self._waiting: list[Float] = []
        self._count = 0

    def update(self, patches: Float) -> None:
        """Add patches (N, K)."""
        self._waiting.append(patches)
        self._count += len(patches)
        if sum(map(len, self._waiting)) >= _BUFFERED:
            self._add()

    def _add(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._sum += rows.sum(axis=0, dtype=np.float64)
            self._products += rows.T @ rows
            self._waiting.clear()

    def covariance(self) -> Double:
        """Return the mean over all patches of (x − E[x]) (x − E[x])ᵀ, (K, K)."""
        self._add()
        mean = self._sum / self._count
        return self._products.astype(np.float64) / self._count - np.outer(mean, mean)


# -- a graph


@dataclass(frozen=True, eq=False)
class _Layer:
    """A Conv whose weights are rounded: scales as the recipe chose them, and which rows have them."""

    conv: ir.Node
    window: Window
    weight: Double
    bias: Double
    scales: Float
    is_on_grid: npt.NDArray[np.bool_]

    @property
    def name(self) -> str:
        return str(self.conv.name)

    @property
    def columns(self) -> int:
        return int(np.prod(self.weight.shape[1:]))

    def rounded(self, moments: Double) -> Double:
        """Return the weights on the grid."""
        rows = self.weight.reshape(len(self.weight), -1)
        moved = rounded_rows(rows, self.scales, moments) * self.scales.astype(np.float64).reshape(-1, 1)
        return np.where(self.is_on_grid[:, None], moved, rows).reshape(self.weight.shape)


def round_weights(
    model: ir.Model, quantized: onnx.ModelProto, samples: Sequence[Array], *, seed: int = 0
) -> tuple[str, ...]:
    """Round the weights of Convs of `model`, in place, so that a recipe which rounds to nearest writes the result.

    The means of outputs have to be corrected afterwards, see `conv_corrections`.

    A Conv stays as it is where it is float in `quantized`, has groups, pads by itself or is not 2-D. So does a row
    whose scale is raised for its bias: it is a constant.

    Args:
        model: the float graph as it will be quantized.
        quantized: its Q/DQ form, in which the outputs of Convs have the same names.
        samples: inputs (1, C, H, W) float32.
        seed: of the pixels that are looked at.

    Returns:
        The names of the Convs whose weights were rounded.
    """
    layers = list(_layers(model, quantized))
    original = ir.to_proto(model)
    count = max(_FEWEST_PIXELS, -(-_PIXELS // len(samples)))
    for part in _parts(layers):
        generator = np.random.default_rng(seed)
        moments = {layer.name: InputMoments(layer.columns) for layer in part}
        outputs = {str(layer.conv.outputs[0].name): layer for layer in part}
        for read in quantized_inputs(original, quantized, tuple(outputs), samples):
            for name, layer in outputs.items():
                moments[layer.name].update(_drawn(layer.window, read[name], count, generator))
        for layer in part:
            weight = layer.rounded(moments.pop(layer.name).covariance())
            set_weight_and_bias(model.graph, layer.conv, weight, layer.bias, "rounded")
    return tuple(layer.name for layer in layers)


def _layers(model: ir.Model, quantized: onnx.ModelProto) -> Iterator[_Layer]:
    makers = {name: node for node in quantized.graph.node for name in node.output}
    numbers = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for conv in [node for node in model.graph if is_operator(node, "Conv")]:
        written = makers[str(conv.outputs[0].name)]
        why = _why_not(conv, written, makers)
        if why is not None:
            log.info("%s keeps weights that are rounded to nearest: %s", conv.name, why)
            continue
        known = weight_and_bias(conv)
        assert known is not None
        weight, bias = known
        input_scale, scales = (
            onnx.numpy_helper.to_array(numbers[makers[written.input[index]].input[1]]) for index in (0, 1)
        )
        is_on_grid = np.broadcast_to(smallest_scales(bias, float(input_scale)) <= scales, bias.shape)
        yield _Layer(conv, Window.of(conv), weight, bias, scales, is_on_grid)


def _why_not(conv: ir.Node, written: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """Say why the weights of `conv`, in the quantized form `written`, are not rounded here; None if they are."""
    read = [makers.get(name) for name in written.input[:2]]
    if written.op_type != "Conv" or any(node is None or node.op_type != "DequantizeLinear" for node in read):
        return "it is not INT8"
    known = weight_and_bias(conv)
    if known is None or known[0].ndim != 4:
        return "it is not 2-D with constant weights"
    if conv.attributes.get_int("group", 1) != 1 or known[0].shape[1] == 1:
        return "it has groups, or one input channel"
    if conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "it pads by itself (auto_pad)"
    return None


def _parts(layers: Iterable[_Layer]) -> Iterator[list[_Layer]]:
    """Yield layers of which the moments fit into 512 MiB together: each part is a pass over the samples."""
    part: list[_Layer] = []
    held = 0
    for layer in layers:
        size = 4 * layer.columns * (layer.columns + _BUFFERED)
        if part and held + size > _MOST_BYTES:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


def _drawn(window: Window, maps: Array, count: int, generator: np.random.Generator) -> Array:
    """Return what is read for `count` pixels of the output, or all where there are fewer, of `maps` (1, C, H, W)."""
    height, width = window.output_size(*maps.shape[2:])
    places = generator.choice(height * width, min(count, height * width), replace=False)
    return window.patches(maps, (np.zeros_like(places), *np.divmod(places, width)))
