"""Fine-tune the INT8 file that a recipe wrote on calibration images, and keep the result where held-out images say so.

First weights are rounded anew, in closed form, for what each layer reads (`quantization/weight_rounding.py`); then all
quantized values learn from the float model, step by step, in the time that is left.

A seeded quarter of the images is held out. After each of the two, both files are run on it by the backend that the
recipe writes for, not in PyTorch: only a file that comes closer to the float model there takes the place of the other.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

import numpy as np

from densenet_deploy.errors import DataError
from densenet_deploy.model import Model
from densenet_deploy.parity.compare import compare_outputs
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, RunnerOptions
from densenet_deploy.workflows.compression import Finetuning, worst_sqnr_db
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import Int8Preparation
from densenet_deploy.workflows.stages import Stages

if TYPE_CHECKING:
    from densenet_deploy.quantization.int8_writer import Int8File
    from densenet_deploy.training.int8_finetuning import Samples

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
    float_layers: Collection[str],
    ready: Int8Preparation,
    options: QuantizeOptions,
    stages: Stages,
    why_unacceptable: Callable[[Int8File, Int8File], str | None],
) -> tuple[Int8File, Finetuning]:
    """Return the fine-tuned INT8 form, or that of the recipe where it is not better, and what was found out.

    Args:
        float_layers: stay float.
        ready: what is written.
        options: of the quantization.
        stages: gets the stages `round weights` and `fine-tune`.
        why_unacceptable: says why another demand, which the first form meets, speaks against the second; None if
            nothing does.
    """
    import onnx

    from densenet_deploy.training.int8_finetuning import FinetuneOptions, batch_size, finetune

    began, seed = time.monotonic(), options.finetune_seed
    file = ready.writer.write(float_layers)
    with stages("round weights"):
        learnt, held_out = _samples(ready, seed)
        best = _Best(file, held_out, ready.writer.backend or REFERENCE_BACKEND, why_unacceptable)
        before = best.sqnr_db
        rounded_db = best.offer(ready.writer.rounded(np.split(learnt, len(learnt)), float_layers, seed))
        said = [f"weights rounded anew were not kept: {best.why_not}"] if best.why_not else []
    steps, after = 0, best.sqnr_db
    cost = f"up to {options.finetune_seconds:g} s and a tenth, --no-finetune skips it"
    with stages("fine-tune", cost) as step:
        seconds = options.finetune_seconds - (time.monotonic() - began)
        if seconds > 0:
            how = FinetuneOptions(batch=batch_size(learnt.shape), seconds=round(seconds, 1), seed=seed)
            model = onnx.load_from_string(best.file.data)
            found = finetune(model, ready.writer.float_graph, learnt, held_out, how, step)
            steps = found.steps
            said.append(found.stopped)
            if found.best:
                after = best.offer(dataclasses.replace(file, data=found.model.SerializeToString()))
                said += [best.why_not] if best.why_not else []
            else:
                said.append("no step was better on held-out images than what it began with")
        else:
            said.append(f"rounding took the {options.finetune_seconds:g} s, and no step was made")
    is_kept = best.file is not file
    report = Finetuning(
        images=len(learnt),
        held_out=len(held_out),
        steps=steps,
        seconds=time.monotonic() - began,
        sqnr_before_db=before,
        sqnr_after_db=best.sqnr_db if is_kept else after,
        seed=seed,
        kept=is_kept,
        stopped="; ".join(said),
        sqnr_rounded_db=rounded_db,
    )
    return best.file, report


class _Best:
    """The best file so far.

    Attributes:
        file: that file.
        sqnr_db: its SQNR on held-out images, where it is run.
        why_not: why the file that was offered last is not the best; None if it is.
    """

    def __init__(
        self,
        file: Int8File,
        held_out: Samples,
        backend: str,
        why_unacceptable: Callable[[Int8File, Int8File], str | None],
    ) -> None:
        self._held_out, self._backend, self._why_unacceptable = held_out, backend, why_unacceptable
        self.file, self.sqnr_db = file, _sqnr_db(file, held_out, backend)
        self.why_not: str | None = None

    def offer(self, new: Int8File) -> float:
        """Take `new` if it is better, and return its SQNR."""
        found = _sqnr_db(new, self._held_out, self._backend)
        is_better = found > self.sqnr_db
        self.why_not = (
            self._why_unacceptable(self.file, new)
            if is_better
            else "the file is not better on held-out images where it is run"
        )
        if self.why_not is None:
            self.file, self.sqnr_db = new, found
        return found


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
    options = RunnerOptions(threads=threads, calls=calls)
    with Model.from_bytes("trial", file.data).runner(backend, "cpu", options) as runner:
        outputs = (found for _, found in run_each(runner, images, calls))
        return worst_sqnr_db(compare_outputs(expected, outputs))
