"""Train a pruned graph for the outputs of the original, and keep the result only where it is better."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from densenet_deploy.model import Model
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, RunnerOptions
from densenet_deploy.workflows.compare import measured_parities
from densenet_deploy.workflows.compression import Finetuning, worst_sqnr_db
from densenet_deploy.workflows.prune.choice import Choice, held_out_accuracy
from densenet_deploy.workflows.prune.options import PruneOptions
from densenet_deploy.workflows.prune.preparation import Preparation
from densenet_deploy.workflows.stages import Stages

if TYPE_CHECKING:
    from densenet_deploy.pruning.reconstruction import PrunedGraph
    from densenet_deploy.runtime.feeds import Array
    from densenet_deploy.training.int8_finetuning import Samples


def unused_images(ready: Preparation, choice: Choice) -> tuple[Array, ...]:
    """Return the images that had no part in the result: of those held out, fine-tuning uses every other to stop by."""
    return ready.images.judging if choice.finetuning is None else ready.images.judging[1::2]


def finetuned(ready: Preparation, choice: Choice, options: PruneOptions, stages: Stages) -> Choice:
    """Return `choice` after training, or what it was where that is not better on images that had no part in it.

    With `max_drop`, the accuracy is judged again, and a lower one than before is not better.

    Raises:
        ModelFileError: if the graph holds an operator that PyTorch does not run here.
    """
    cost = f"up to {options.finetune_seconds:g} s and a tenth, --no-finetune skips it"
    with stages("fine-tune", cost) as step:
        began = time.monotonic()
        from onnx import numpy_helper

        from densenet_deploy.training.float_finetuning import finetune_float, float_weights

        learnt, held_out = np.concatenate(ready.images.choosing), _samples(ready.model, ready.images.judging[::2])
        pruned, seconds, seed = choice.pruned, options.finetune_seconds, options.finetune_seed
        found = finetune_float(pruned.proto, ready.proto, learnt, held_out, seconds, seed=seed, step=step)
        names = set(float_weights(pruned.proto))
        stored = {tensor.name: tensor for tensor in found.model.graph.initializer if tensor.name in names}
        trained = {name: numpy_helper.to_array(tensor) for name, tensor in stored.items()}
        after = dataclasses.replace(pruned, proto=found.model, weights={**pruned.weights, **trained}, is_finetuned=True)
        unused, every = ready.images.judging[1::2], ready.images.judging
        before_db, after_db = _sqnr_db(ready, (pruned, after), unused)
        refit_db, trained_db = _sqnr_db(ready, (pruned, after), every)
        accuracy = choice.accuracy
        if accuracy is not None:
            accuracy = dataclasses.replace(accuracy, after=held_out_accuracy(ready, after))
    why_not = None
    if not found.best or after_db <= before_db or trained_db < refit_db:
        why_not = "it is not closer on the images held out"
    elif choice.accuracy is not None and accuracy is not None and accuracy.after < choice.accuracy.after:
        lost = f"from {choice.accuracy.after:.2%} to {accuracy.after:.2%}"
        why_not = f"it is closer, but the accuracy on the images held out would fall {lost}"
    stopped = "; ".join(filter(None, (found.stopped, why_not)))
    told = Finetuning(
        images=len(learnt),
        held_out=len(unused),
        steps=found.steps,
        seconds=time.monotonic() - began,
        sqnr_before_db=before_db,
        sqnr_after_db=after_db,
        seed=seed,
        kept=why_not is None,
        stopped=stopped,
    )
    if why_not is not None:
        return dataclasses.replace(choice, finetuning=told)
    return dataclasses.replace(choice, pruned=after, accuracy=accuracy, finetuning=told)


def _samples(model: Model, images: Sequence[Array]) -> Samples:
    """The images as one array, and what the original gives for them."""
    from densenet_deploy.training.int8_finetuning import Samples

    calls, threads = shared_cpus(REFERENCE_BACKEND)
    with model.runner(REFERENCE_BACKEND, "cpu", RunnerOptions(threads=threads, check_values=False)) as runner:
        found = [outputs for _, outputs in run_each(runner, images, calls)]
    targets = {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}
    return Samples(np.concatenate(images), targets)


def _sqnr_db(ready: Preparation, graphs: Sequence[PrunedGraph], images: Sequence[Array]) -> list[float]:
    """The SQNR of the worst output of each graph; minus infinity with NaN or Inf."""
    candidates = {
        str(place): Model.from_onnx("trial", graph.proto, ready.model.manifest) for place, graph in enumerate(graphs)
    }
    return [worst_sqnr_db(outputs) for outputs in measured_parities(ready.model, candidates, images).values()]
