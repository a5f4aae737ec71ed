"""How good the network is after an epoch: what `evaluate` measures, shared among the processes that train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from densenet_deploy.manifest import Manifest, Preprocessing
from densenet_deploy.model import Model
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.preprocess import PreparedImage, prepare
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from densenet_deploy.workflows.evaluate import kept_outputs
from densenet_deploy.workflows.evaluation.tasks import task_of
from densenet_deploy.workflows.stages import ignore

if TYPE_CHECKING:
    import torch

    from densenet_deploy.training.data import Example
    from densenet_deploy.training.processes import Processes

_BATCH: Final = 64


def validated(
    network: torch.nn.Module, manifest: Manifest, examples: Sequence[Example], processes: Processes
) -> dict[str, Any]:
    """Return the figures of `evaluate` (`top1`, `top5`, `calibration_error`, ...) for a float32 network.

    Every process runs every `count`-th batch, so that batches, and with them the bits of their outputs, are the same
    for any number of processes. Each returns the figures of all.
    """
    import torch

    batches = [examples[start : start + _BATCH] for start in range(0, len(examples), _BATCH)]
    own = processes.share(batches)
    options = RunnerOptions(threads=torch.get_num_threads())
    with open_runner(Model("network", manifest, network), "torch", str(processes.device), options) as runner:
        classifier = Classifier(runner)
        task = task_of(classifier, "network", manifest)
        flat = [example for batch in own for example in batch]
        _, kept = kept_outputs(classifier, task, _prepared(flat, manifest.preprocessing), len(flat), ignore)
        ends = np.cumsum([len(batch) for batch in own])[:-1]
        parts = processes.gathered([np.split(rows, ends) for rows in kept])
        whole = [parts[number % processes.count] for number in range(len(batches))]
        joined = [
            np.concatenate([part[place][number // processes.count] for number, part in enumerate(whole)])
            for place in range(len(parts[0]))  # the first process has the first batch
        ]
        return task.figures(task.answers(np.array([example.index for example in examples]), joined))


def _prepared(examples: Sequence[Example], preprocessing: Preprocessing) -> Iterator[list[tuple[Path, PreparedImage]]]:
    def one(example: Example) -> PreparedImage:
        return PreparedImage(prepare(example.loaded(preprocessing.shape[0]), preprocessing))

    with ThreadPoolExecutor(usable_cpus(), "decode") as pool:
        for start in range(0, len(examples), _BATCH):
            part = examples[start : start + _BATCH]
            yield [(Path(str(start)), image) for image in pool.map(one, part)]
