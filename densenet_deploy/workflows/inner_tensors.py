"""Inner tensors of two models, compared layer by layer: each as the original model has it, whatever was rewritten."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densenet_deploy.errors import BackendError
from densenet_deploy.model import Model
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import LayerComparison, LayerMeter
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, ModuleSource, Runner, open_runner

if TYPE_CHECKING:
    from densenet_deploy.graph.tensor_changes import TensorChange


def compare_layers(
    models: tuple[Model, Model], backends: tuple[str | None, str | None], samples: Iterable[Array]
) -> LayerComparison:
    """Run both models on `samples`, and return the parity of the inner tensors that both have.

    Raises:
        BackendError: if a model shows no inner tensors.
    """
    meter = LayerMeter()
    with _inner_tensors(models[0], backends[0]) as ours, _inner_tensors(models[1], backends[1]) as theirs:
        for sample in samples:
            meter.update(theirs.needed(ours.run(sample)), theirs.needed(theirs.run(sample)))
        moved = ours.moved | theirs.moved
    result = meter.result()
    skipped = {name: moved.get(name, reason) for name, reason in result.skipped.items()}
    return dataclasses.replace(result, skipped=skipped)


@dataclass(frozen=True)
class _InnerTensors:
    """A runner of inner tensors, and what rewrites did to them: each is returned as the original model has it."""

    runner: Runner
    changes: Mapping[str, TensorChange]

    @property
    def moved(self) -> dict[str, str]:
        """Why a tensor of the original model cannot be compared, by its name."""
        return {change.of: change.moved for change in self.changes.values() if change.moved is not None}

    def needed(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return `tensors` of the original model without values that nothing needs, which this one may cut off."""
        limits = {change.of: change for change in self.changes.values() if change.low is not None}
        return {name: limits[name].needed(array) if name in limits else array for name, array in tensors.items()}

    def run(self, sample: Array) -> dict[str, Array]:
        outputs = run_batched(self.runner, sample)
        return dict(itertools.starmap(self._original, outputs.items()))

    def _original(self, name: str, array: Array) -> tuple[str, Array]:
        """Undo the changes of a tensor one by one: first of quantized values, then of what they quantize."""
        known = set()
        while (change := self.changes.get(name)) is not None and change.moved is None and name not in known:
            known.add(name)
            name, array = change.of, change.undone(array)
        return name, array


@contextlib.contextmanager
def _inner_tensors(model: Model, backend: str | None) -> Iterator[_InnerTensors]:
    """Open `model` with its inner tensors as outputs."""
    if not model.is_onnx and model.module is not None:
        from densenet_deploy.models.taps import IntermediateOutputs

        outputs = model.output_names[0] if model.output_names else "logits"
        with open_runner(ModuleSource(IntermediateOutputs(model.module, outputs), model.manifest)) as runner:
            yield _InnerTensors(runner, {})
        return
    if not model.is_onnx:
        raise BackendError(model.name, "shows no inner tensors", "compare ONNX files or checkpoints layer by layer")
    require_packages("export", "onnx")
    from densenet_deploy.graph.onnx_file import expose_values
    from densenet_deploy.graph.tensor_changes import read_tensor_changes

    exposed = expose_values(model.onnx)
    changes = read_tensor_changes({entry.key: entry.value for entry in model.onnx.metadata_props})
    shown = REFERENCE_BACKEND if model.precision == "int8" else None  # OpenVINO rescales those of a Q/DQ graph
    with open_runner(exposed, backend or shown) as runner:
        yield _InnerTensors(runner, changes)
