"""What the float model gives for the first calibration samples: computed once, for all that INT8 is compared with."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from densenet_deploy.parity.compare import compare_outputs, worst
from densenet_deploy.runtime.batching import run_each, shared_cpus
from densenet_deploy.runtime.feeds import Feeds
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, RunnerOptions

if TYPE_CHECKING:
    from densenet_deploy.model import Model
    from densenet_deploy.quantization.calibration_data import CalibrationData

MOST_BYTES: Final = 64 * 2**20
_CHECKED: Final = 4
_SAME_DB: Final = 60.0  # float32 sums in another order are above 100 dB

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
