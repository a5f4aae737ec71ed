"""Fine-tune the INT8 file that a recipe wrote on calibration images, and keep the result where held-out images say so.

A seeded quarter of the images is held out. Both files are run on it by the backend that the recipe writes for, not in
PyTorch: only a file that comes closer to the float model there takes the place of the recipe's.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from densenet_deploy.errors import DataError
from densenet_deploy.model import Model
from densenet_deploy.parity.compare import compare_outputs, worst
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, RunnerOptions
from densenet_deploy.workflows.finetuning import Finetuning
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import Int8Preparation
from densenet_deploy.workflows.stages import Stages

if TYPE_CHECKING:
    from densenet_deploy.quantization.int8_writer import Int8File
    from densenet_deploy.training.int8_finetuning import Finetuned, Samples

FEWEST_IMAGES: Final = 48
_HELD_OUT: Final = 4  # one image of so many
_MOST_HELD_OUT: Final = 64
_MOST_BYTES: Final = 256 * 2**20  # of inputs in memory: 446 images of 224x224


def require_trainable(ready: Int8Preparation, options: QuantizeOptions) -> None:
    """Check what can be known before layers are chosen and timed.

    Raises:
        DataError: if there are fewer than 48 images.
        ModelFileError: if the graph holds an operator that PyTorch does not run here.
    """
    import onnx

    from densenet_deploy.training.graph_module import GraphModule

    if ready.count < FEWEST_IMAGES:
        why = f"holds {ready.count} images, and fine-tuning learns from some and is judged on others"
        raise DataError(ready.data.origin, why, f"give {FEWEST_IMAGES} images at least, or go without --finetune")
    GraphModule(ready.writer.float_graph)
    GraphModule(onnx.load_from_string(ready.writer.write(options.float_layers).data))


def finetuned(
    file: Int8File,
    ready: Int8Preparation,
    options: QuantizeOptions,
    stages: Stages,
    is_acceptable: Callable[[Int8File], str | None],
) -> tuple[Int8File, Finetuning]:
    """Return the fine-tuned form of `file`, or `file` itself where that is not better, and what was found out.

    Args:
        file: as the recipe wrote it.
        ready: what it was written from.
        options: of the quantization.
        stages: gets a stage `fine-tune`.
        is_acceptable: says why another demand, which `file` meets, speaks against a form; None if nothing does.
    """
    import onnx

    from densenet_deploy.training.int8_finetuning import FinetuneOptions, batch_size, finetune

    cost = f"up to {options.finetune_seconds:g} s and a tenth, --no-finetune skips it"
    with stages("fine-tune", cost) as step:
        began = time.monotonic()
        learnt, held_out = _samples(ready, options.finetune_seed)
        batch, seconds = batch_size(learnt.shape), options.finetune_seconds
        how = FinetuneOptions(batch=batch, seconds=seconds, seed=options.finetune_seed)
        found = finetune(onnx.load_from_string(file.data), ready.writer.float_graph, learnt, held_out, how, step)
        new = dataclasses.replace(file, data=found.model.SerializeToString())
        backend = ready.writer.backend or REFERENCE_BACKEND
        before = _sqnr_db(file, held_out, backend)
        after = _sqnr_db(new, held_out, backend) if found.best else before
        why_not = _why_not(found, before, after) or is_acceptable(new)
        report = Finetuning(
            images=len(learnt),
            held_out=len(held_out),
            steps=found.steps,
            seconds=time.monotonic() - began,
            sqnr_before_db=before,
            sqnr_after_db=after,
            seed=options.finetune_seed,
            kept=why_not is None,
            stopped="; ".join(filter(None, (found.stopped, why_not))),
        )
    return (file if why_not else new), report


def _why_not(found: Finetuned, before: float, after: float) -> str | None:
    if not found.best:
        return "no values were better on held-out images than those of the recipe"
    return None if after > before else "the file is not better on held-out images where it is run"


def _samples(ready: Int8Preparation, seed: int) -> tuple[Array, Samples]:
    """Return images to learn from, and those that are held out with the outputs of the float model."""
    from densenet_deploy.training.int8_finetuning import Samples

    inputs: list[Array] = []
    for sample in ready.data:
        inputs.append(sample)
        if (len(inputs) + 1) * sample.nbytes > _MOST_BYTES:
            break
    count = min(_MOST_HELD_OUT, len(inputs) // _HELD_OUT)
    order = np.random.default_rng(seed).permutation(len(inputs)).tolist()
    places, others = sorted(order[:count]), sorted(order[count:])
    floats = [found for place, found in enumerate(ready.floats.first(places[-1] + 1)) if place in places]
    outputs = {name: np.concatenate([found[name] for found in floats]) for name in floats[0]}
    held_out = Samples(np.concatenate([inputs[place] for place in places]), outputs)
    return np.concatenate([inputs[place] for place in others]), held_out


def _sqnr_db(file: Int8File, samples: Samples, backend: str) -> float:
    """Return the SQNR of the worst output of `file` in dB; minus infinity for NaN or Inf."""
    calls, threads = shared_cpus(backend)
    images = np.split(samples.inputs, len(samples))
    expected: list[Feeds] = [
        {name: array[place : place + 1] for name, array in samples.outputs.items()} for place in range(len(samples))
    ]
    with Model.from_bytes("trial", file.data).runner(backend, "cpu", RunnerOptions(threads=threads)) as runner:
        outputs = (found for _, found in run_each(runner, images, calls))
        parity = worst(compare_outputs(expected, outputs))[1]
    return -float("inf") if parity.nonfinite else parity.sqnr_db
