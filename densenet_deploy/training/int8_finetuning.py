"""Fine-tune the quantized values of an INT8 file so that its outputs come closer to those of the float network.

The file that a recipe wrote is run in PyTorch (`graph_module.py`), rounding as the file does, and the gradient passes
straight through the rounding. What is trained is what the file holds, on the grid on which it holds it:

* the quantized weights of convolutions, none larger than the largest that the recipe wrote (127, or 63 for CPUs whose
  kernels saturate),
* biases, in steps of 128 times the integer step s_x·s_w: as far as one step of a weight reaches at half of the input's
  range,
* bounds of clips, in quantized values,
* the float weights and the bias of the classifier, and of a norm that stayed float.

Scales, zero points and nodes stay, and with them everything that was checked about the file. Training through rounding
is that of Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), without labels and with the float network's outputs as
the target, as in Nagel et al. 2020 (AdaRound, https://arxiv.org/abs/2004.10568) and Li et al. 2021 (BRECQ,
https://arxiv.org/abs/2102.05426). The loss is the noise that SQNR measures: the squared error of an output over the
square of that output, summed over the outputs.

**Where a weight starts.** From a whole number, Adam, whose steps have one size for all, moves every weight across the
next half at the same time, which ruins the network first (from 40 to 22 dB on the digits model). So a weight starts
anywhere in the cell that rounds to its stored value, drawn from a seed: the file is the same, and weights flip one
after the other.

**Few images.** The float network says what is right for any image, so each one is mixed with another of its batch
(Zhang et al. 2018, mixup, https://arxiv.org/abs/1710.09412), anew each time: a hundred images alone are learnt by heart
(47.7 dB on them, 44.3 on others).

**Never worse.** A part of the images is held out. The values with the best SQNR on those are the result, and they are
the stored ones where nothing was better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from densenet_deploy.training.graph_module import GraphModule, with_initializers
from densenet_deploy.training.onnx_operators import RANGES
from densenet_deploy.training.rounding import rounded

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

CHECKS: Final = 8
"""How often held-out images are looked at."""

_CELL: Final = 0.45  # a weight starts within so much of its stored value: half of a step is where it rounds to the next
_BIAS_STEP: Final = 128.0  # of the integers that a bias is stored in
_FLOAT_STEP: Final = 1 / 256  # of the largest weight of a row
_TRIED_STEPS: Final = 3  # before the rest is planned; the first is slower
_LARGEST_BIAS: Final = 2**31 - 129  # in int32, as checks demand
_EVALUATED: Final = 32
_WEIGHT_AXES: Final = 4
_BATCH: Final = 16
_SMALLEST_BATCH: Final = 2  # of which one is mixed with the other
_PIXELS: Final = _BATCH * 100 * 100


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune.

    Attributes:
        steps: how many batches are learnt from, at most.
        batch: images in each.
        lr: learning rate of Adam in steps of the grid; it falls to zero as half a cosine. None: see `learning_rate`.
        seconds: how long that may take; with fewer steps where they do not fit in.
        seed: of where weights start, and of the order of images.
    """

    steps: int = 300
    batch: int = _BATCH
    lr: float | None = None
    seconds: float = 300.0
    seed: int = 0


def batch_size(shape: Sequence[int]) -> int:
    """Return how many images (C, H, W) or (N, C, H, W) a step takes: 16, and fewer of large ones, for memory.

    A step of DenseNet-121 keeps about 1 GiB for 16 images of 64x64.

    >>> batch_size((3, 64, 64)), batch_size((3, 128, 128)), batch_size((3, 224, 224)), batch_size((3, 512, 512))
    (16, 9, 3, 2)
    """
    return max(_SMALLEST_BATCH, min(_BATCH, _PIXELS // (shape[-2] * shape[-1])))


@dataclass(frozen=True)
class Samples:
    """Inputs (N, C, H, W), and what the float network gives for them, (N, …) by name."""

    inputs: Array
    outputs: Outputs

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Finetuned:
    """The file with the best values, how many steps were made, the SQNR in dB after each check, and why it ended.

    `best` is the index in `held_out_db`; 0 is that before the first step, when `model` is the file as it was.
    """

    model: onnx.ModelProto
    steps: int
    held_out_db: tuple[float, ...]
    best: int
    stopped: str


@dataclass(frozen=True)
class Trained:
    """A trained initializer: a parameter, the value that it stands for, and the array that the file gets."""

    parameter: Tensor
    value: Callable[[], Tensor]
    stored: Callable[[], Array]


def finetune(
    model: onnx.ModelProto,
    target: onnx.ModelProto,
    learnt: Array,
    held_out: Samples,
    options: FinetuneOptions,
    step: Callable[[int, int | None], None] | None = None,
    trained: Mapping[str, Trained] | None = None,
) -> Finetuned:
    """Return `model`, an INT8 file, with the quantized values that are best on `held_out` after learning from `learnt`.

    The same arguments give the same bytes, as long as all steps fit into the time.

    Args:
        model: as a recipe wrote it.
        target: the float network, with the same input and outputs.
        learnt: images to learn from, (N, C, H, W).
        held_out: images to choose the best values on.
        options: see there.
        step: called after each step.
        trained: what is trained; None: the quantized values, as `trained_initializers` finds them.

    Raises:
        ModelFileError: if it holds an operator that PyTorch does not run here.
    """
    module, teacher, generator = GraphModule(model), GraphModule(target), np.random.default_rng(options.seed)
    trained = trained_initializers(model, generator) if trained is None else trained
    batches = _batches(len(learnt), options.batch, generator)
    parameters = [one.parameter for one in trained.values()]
    lr = learning_rate(sum(one.ndim == _WEIGHT_AXES for one in parameters)) if options.lr is None else options.lr
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))
    schedule = _Schedule(options, time.monotonic())
    best, found, stopped = _kept(trained), [_sqnr_db(module, trained, held_out)], None
    place = 0
    while schedule.done < schedule.planned:
        inputs = _laid_out(mixed(learnt[next(batches)], generator))
        with torch.no_grad():
            wanted = teacher(inputs)
        outputs = module(inputs, {name: one.value() for name, one in trained.items()})
        loss = torch.stack([_noise(outputs[name], wanted[name]) for name in module.names]).sum()
        if not math.isfinite(loss.item()):
            stopped = "the loss is not finite"
            break
        _descend(optimizer, loss, lr * schedule.share)
        if schedule.is_check_after_step(time.monotonic()):
            found.append(_sqnr_db(module, trained, held_out))
            if found[-1] > found[place]:
                best, place = _kept(trained), len(found) - 1
        if step is not None:
            step(schedule.done, schedule.planned)
    with torch.no_grad():
        for one, kept in zip(trained.values(), best, strict=True):
            one.parameter.copy_(kept)
    written = with_initializers(model, {name: one.stored() for name, one in trained.items()}) if place else model
    return Finetuned(written, schedule.done, tuple(found), place, stopped or schedule.end)


def learning_rate(convolutions: int) -> float:
    """Return the learning rate for a network of so many convolutions, which all move the outputs at the same time.

    Measured: 0.02 is best for the 39 of the digits model and too much for the 120 of a DenseNet-121, which learns with
    0.005.

    >>> learning_rate(39), round(learning_rate(120), 4)
    (0.02, 0.0067)
    """
    return min(_LARGEST_RATE, _LARGEST_RATE * _CONVOLUTIONS / max(1, convolutions))


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    """Make one step down the slope of `loss`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


class _Schedule:
    """How many steps are made, and how large: all that were asked for, or as many as the first ones say that fit."""

    def __init__(self, options: FinetuneOptions, began: float) -> None:
        self._options, self._began, self._first = options, began, began
        self.planned, self.done = options.steps, 0

    @property
    def share(self) -> float:
        """Of the learning rate for the next step."""
        return 0.5 * (1 + math.cos(math.pi * self.done / self.planned))

    @property
    def end(self) -> str:
        """Why there are no more steps."""
        is_all = self.planned == self._options.steps
        return "all steps were made" if is_all else f"that is what fits into {self._options.seconds:g} s"

    def is_check_after_step(self, now: float) -> bool:
        """Count a step, plan the rest after the first three, and say whether held-out images are looked at now."""
        self.done += 1
        if self.done == 1:
            self._first = now
        if self.done == _TRIED_STEPS:
            per_step = (now - self._first) / (_TRIED_STEPS - 1)
            left = self._options.seconds - (now - self._began)
            affordable = self.done + int(left / (per_step * (1 + _CHECK_COST)))
            self.planned = min(self.planned, max(self.done, affordable))
        if now - self._began > self._options.seconds:  # slower than at first: what was learnt until now counts
            self.planned = self.done
        every = max(1, -(-self.planned // CHECKS))
        return self.done % every == 0 or self.done == self.planned


_LARGEST_RATE: Final = 0.02
_CONVOLUTIONS: Final = 40
_CHECK_COST: Final = 0.1  # of all steps, for a forward pass over the held-out images now and then


# -- what is trained


def trained_initializers(model: onnx.ModelProto, generator: np.random.Generator) -> dict[str, Trained]:
    """Return the initializers of an INT8 file that are trained, by name, in the order of nodes."""
    found = _Finder(model, generator)
    for node in model.graph.node:
        found.add(node)
    return found.trained


class _Finder:
    """Finds what is trained, node by node; an initializer that several nodes read is found once."""

    def __init__(self, model: onnx.ModelProto, generator: np.random.Generator) -> None:
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._generator = generator
        integers = [name for name, tensor in self._stored.items() if tensor.data_type == onnx.TensorProto.INT8]
        weights = [self._numbers(name) for name in integers if len(self._stored[name].dims) == _WEIGHT_AXES]
        self._limit = int(max((np.abs(numbers).max() for numbers in weights), default=0))
        self.trained: dict[str, Trained] = {}

    def add(self, node: onnx.NodeProto) -> None:
        """Add what `node` reads."""
        if node.op_type == "QLinearConv":
            self._integer_conv(node)
        elif node.op_type == "Conv":
            self._quantized_conv(node)
        elif node.op_type in ("Max", "Min"):
            self._bound(node)
        elif node.op_type == "Gemm":
            cast = self._makers.get(node.input[1])  # of weights that are stored as FP16
            self._float(node.input[1] if cast is None else cast.input[0], _FLOAT_STEP)
            self._float(node.input[2] if len(node.input) > 2 else "", 8 * _FLOAT_STEP)
        elif node.op_type == "BatchNormalization":
            self._float(node.input[1], _FLOAT_STEP)
            self._float(node.input[2], _FLOAT_STEP)

    def _integer_conv(self, node: onnx.NodeProto) -> None:
        weight = self._stored.get(node.input[3])
        if weight is None:
            return
        if (
            weight.dims[1] > 1
        ):  # one input channel: a norm, a pool or a requantization, whose weights stand for a factor
            self._grid(node.input[3], -self._limit, self._limit)
        if len(node.input) > 8 and self._numbers(node.input[8]).any():
            self._bias(node.input[8], np.float64(_BIAS_STEP))

    def _quantized_conv(self, node: onnx.NodeProto) -> None:
        """Add the weights that a Conv reads through a DequantizeLinear, and its bias."""
        data, weight = self._makers.get(node.input[0]), self._makers.get(node.input[1])
        if weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] not in self._stored:
            return
        self._grid(weight.input[0], -self._limit, self._limit)
        if len(node.input) > 2 and data is not None and data.op_type == "DequantizeLinear":
            steps = self._numbers(data.input[1]) * self._numbers(weight.input[1])
            self._bias(node.input[2], _BIAS_STEP * steps)

    def _bound(self, node: onnx.NodeProto) -> None:
        tensor = self._stored.get(node.input[1])
        if tensor is not None and tensor.data_type in RANGES:
            self._grid(node.input[1], *RANGES[tensor.data_type])

    def _numbers(self, name: str) -> npt.NDArray[np.float64]:
        return numpy_helper.to_array(self._stored[name]).astype(np.float64)

    def _grid(self, name: str, low: int, high: int) -> None:
        """Train whole numbers from `low` to `high`."""
        if name in self.trained:
            return
        start = self._numbers(name)
        start = np.clip(start + self._generator.uniform(-_CELL, _CELL, start.shape), low, high)
        parameter = torch.tensor(start, dtype=torch.float32, requires_grad=True)

        def value() -> Tensor:
            return rounded(parameter, low, high)

        self.trained[name] = Trained(parameter, value, lambda: value().detach().numpy())

    def _bias(self, name: str, step: npt.NDArray[np.float64] | np.float64) -> None:
        """Train a bias as what is added to it, in units of `step`, for each channel or for all."""
        if name not in self._stored or name in self.trained:
            return
        start = self._numbers(name)
        limit = _LARGEST_BIAS if self._stored[name].data_type == onnx.TensorProto.INT32 else math.inf
        steps = np.broadcast_to(step, start.shape)
        parameter = torch.zeros(start.shape, requires_grad=True)
        plain, unit = torch.tensor(start, dtype=torch.float32), torch.tensor(steps, dtype=torch.float32)

        def stored() -> Array:
            return np.asarray(np.clip(start + steps * parameter.detach().numpy(), -limit, limit))

        self.trained[name] = Trained(parameter, lambda: plain + unit * parameter, stored)

    def _float(self, name: str, share: float) -> None:
        """Train float numbers in steps of a share of the largest of them."""
        if name in self._stored and self._numbers(name).any():
            self._bias(name, np.float64(share * np.abs(self._numbers(name)).max()))


# -- batches and noise


def _batches(count: int, size: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield indices of images: all of them in a new order, again and again; a batch may reach over the end."""
    order = np.empty(0, np.int64)
    while True:
        while len(order) < size:
            order = np.concatenate([order, generator.permutation(count)])
        yield order[:size]
        order = order[size:]


def mixed(images: Array, generator: np.random.Generator) -> Array:
    """Return each of `images` (N, C, H, W) mixed with another one of them: a share of 0.5 to 1 is its own."""
    share = generator.uniform(0.5, 1, (len(images), 1, 1, 1)).astype(images.dtype)
    return np.asarray(share * images + (1 - share) * images[generator.permutation(len(images))])


def _laid_out(inputs: Array) -> Tensor:
    """Return a batch with its channels last in memory, as PyTorch's convolutions on CPUs are fastest."""
    tensor = torch.from_numpy(inputs)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _noise(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the noise power relative to that of the signal."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-20)


def _sqnr_db(module: GraphModule, trained: Mapping[str, Trained], samples: Samples) -> float:
    """Return the SQNR of the worst output in dB; minus infinity for NaN or Inf."""
    noise = dict.fromkeys(module.names, 0.0)
    with torch.no_grad():
        values = {name: one.value() for name, one in trained.items()}
        for start in range(0, len(samples), _EVALUATED):
            part = slice(start, start + _EVALUATED)
            outputs = module(_laid_out(samples.inputs[part]), values)
            for name in noise:
                noise[name] += float(
                    (outputs[name].double() - torch.from_numpy(samples.outputs[name][part])).square().sum()
                )
    powers = {name: float(np.square(samples.outputs[name], dtype=np.float64).sum()) for name in noise}
    ratio = max(noise[name] / max(powers[name], 1e-20) for name in noise)
    return -10 * math.log10(max(ratio, 1e-20)) if math.isfinite(ratio) else -math.inf


def _kept(trained: Mapping[str, Trained]) -> Sequence[Tensor]:
    return [one.parameter.detach().clone() for one in trained.values()]
