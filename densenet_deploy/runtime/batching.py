"""Batches of any size for models that accept only some: which samples run together, and what fills them up.

NumPy is imported where it is used: a command that only looks at engine files does without it.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

from densenet_deploy.errors import ModelFileError
from densenet_deploy.records import Range
from densenet_deploy.runtime.cpus import usable_cpus

if TYPE_CHECKING:
    from densenet_deploy.manifest import ImageShape
    from densenet_deploy.runtime.feeds import Array, TensorSpec
    from densenet_deploy.runtime.runner import Runner

_MOST_CALLS: Final = 4  # each holds the activations of an image


IMAGE_CHANNELS: Final = (1, 3, 4)
"""What an axis holds that is one of channels, where nothing else says it."""


@dataclass(frozen=True)
class BatchProfile:
    """The batches that an engine accepts in one profile, from `min` to `max`, and the one it was tuned for."""

    min: Annotated[int, Range(1)] = 1
    opt: Annotated[int, Range(1)] = 1
    max: Annotated[int, Range(1)] = 1


@dataclass(frozen=True)
class Portion:
    """Samples `start` to `start + count`, run in `profile` as a batch of `batch`, the last sample repeated."""

    profile: int
    start: int
    count: int
    batch: int


@functools.lru_cache  # an application uses few batch sizes
def portions(total: int, profiles: tuple[BatchProfile, ...]) -> tuple[Portion, ...]:
    """Return the runs that `total` samples take.

    A batch that some profile accepts runs at once, in the profile tuned nearest to it. A larger one runs in portions of
    the largest that fits; a smaller one, or one between two profiles, is filled up to the next that fits.

    >>> portions(10, (BatchProfile(1, 4, 8),))
    (Portion(profile=0, start=0, count=8, batch=8), Portion(profile=0, start=8, count=2, batch=2))
    """
    largest = max(profile.max for profile in profiles)
    return tuple(_portion(start, min(total - start, largest), profiles) for start in range(0, total, largest))


def _portion(start: int, count: int, profiles: tuple[BatchProfile, ...]) -> Portion:
    fitting = ((max(p.min, count), abs(p.opt - count), index) for index, p in enumerate(profiles) if p.max >= count)
    batch, _, index = min(fitting)
    return Portion(index, start, count, batch)


def takes_any_batch(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> bool:
    """Whether every input and output has a first dimension of any size."""
    return all(spec.shape and spec.shape[0] is None for spec in (*inputs, *outputs))


def fixed_batch(runner: Runner) -> int | None:
    """Return the batch size of a model with a fixed one, or None if the model takes any."""
    return runner.inputs[0].shape[0]


def image_shape(runner: Runner) -> ImageShape:
    """Return (channels, height, width) of the images that the model takes; None for what may vary.

    Raises:
        ModelFileError: if the model does not take one input, float32 (N, C, H, W) or uint8 (N, H, W, C).
    """
    import numpy as np

    inputs = runner.inputs
    shapes = [spec.shape for spec in inputs]
    if len(inputs) == 1 and len(shapes[0]) == 4:
        first, second, third = shapes[0][1:]
        if inputs[0].dtype == np.float32 and not is_nhwc(shapes[0]):
            return first, second, third
        stated = runner.manifest.preprocessing.takes_pixels if runner.manifest is not None else is_nhwc(shapes[0])
        if inputs[0].dtype == np.uint8 and stated:
            return third, first, second
    why, fix = why_not_images(shapes)
    raise ModelFileError(", ".join(map(str, inputs)), f"is {why}", fix)


def is_nhwc(shape: Sequence[int | None]) -> bool:
    """Whether `shape` has its channels last: 1, 3 or 4 of them, behind two sides of more than 4 pixels or of any."""
    return len(shape) == 4 and shape[3] in IMAGE_CHANNELS and all(side is None or side > 4 for side in shape[1:3])


def why_not_images(shapes: Sequence[Sequence[int | None]]) -> tuple[str, str]:
    """Return what inputs of these shapes are, other than one that is taken, and what to do."""
    if len(shapes) == 1 and is_nhwc(shapes[0]):
        return "in the layout NHWC", "`densenet-deploy export` writes an ONNX file that takes NCHW"
    is_volume = len(shapes) == 1 and len(shapes[0]) == 5
    return (
        "3-D" if is_volume else "not one input, float32 NCHW or uint8 NHWC",
        "give a classifier of 2-D images in one of these layouts",
    )


def run_batched(runner: Runner, samples: Array) -> dict[str, Array]:
    """Run samples (M, …) and return the outputs of all M, by name.

    Pixels, uint8 (M, H, W, C), are normalized for a model that takes float32 (M, C, H, W), as its manifest says.

    A model with a fixed batch gets the samples in portions, the last one filled up with copies of its last sample.

    Raises:
        FeedError: as `Runner.run`, for example without samples.
    """
    import numpy as np

    name, size = runner.inputs[0].name, fixed_batch(runner)
    if samples.dtype == np.uint8 and runner.inputs[0].dtype == np.float32 and runner.manifest is not None:
        from densenet_deploy.runtime.preprocess import normalized

        samples = normalized(samples, runner.manifest.preprocessing)
    if size is None or len(samples) in (0, size):
        return runner.run({name: samples})
    results = []
    for portion in portions(len(samples), (BatchProfile(size, size, size),)):
        part = samples[portion.start : portion.start + portion.count]
        padding = np.repeat(part[-1:], portion.batch - portion.count, axis=0)
        outputs = runner.run({name: np.concatenate([part, padding])})
        results.append({output: array[: portion.count] for output, array in outputs.items()})
    return {output: np.concatenate([result[output] for result in results]) for output in results[0]}


class Sharing(NamedTuple):
    """How the CPUs are shared for many single images: `calls` at the same time, with `threads` each."""

    calls: int
    threads: int


def shared_cpus(backend: str | None) -> Sharing:
    """Return how `run_each` is fastest on `backend`, opened with both numbers: whole images side by side.

    The threads of one small call wait for each other: on two busy cores one thread per call took half the CPU time per
    image of a DenseNet-121 at 224x224 with ONNX Runtime, and in INT8 three quarters with OpenVINO.
    """
    cpus = usable_cpus()
    calls = min(cpus, _MOST_CALLS) if backend in ("onnxruntime", "openvino") else 1
    return Sharing(calls, cpus // calls)


def run_each(runner: Runner, samples: Iterable[Array], calls: int) -> Iterator[tuple[Array, dict[str, Array]]]:
    """Yield each of `samples`, (1, C, H, W), with its outputs by name, in order; `calls` run at the same time.

    Only so many samples, and one more, are held at a time.

    Raises:
        FeedError: as `Runner.run`.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    if calls == 1:
        yield from ((sample, run_batched(runner, sample)) for sample in samples)
        return
    running: collections.deque[tuple[Array, Future[dict[str, Array]]]] = collections.deque()
    pool = ThreadPoolExecutor(calls)
    try:
        for sample in samples:
            running.append((sample, pool.submit(run_batched, runner, sample)))
            if len(running) > calls:
                first, outputs = running.popleft()
                yield first, outputs.result()
        while running:
            first, outputs = running.popleft()
            yield first, outputs.result()
    finally:
        pool.shutdown(cancel_futures=True)
