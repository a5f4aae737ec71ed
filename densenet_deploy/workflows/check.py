"""Check an export against inputs and outputs that its owner recorded: `export --check FILE.npz`.

Weights do not show everything that a network computes: a pool that was removed, another stride, a sigmoid. Whoever has
the original runs it on a few inputs and saves both::

    np.savez("recorded.npz", x=images.numpy(), y=module(images).detach().numpy())
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from densenet_deploy.artifacts import StrPath, os_errors_about, require_file
from densenet_deploy.errors import DataError, FeedError, GateError
from densenet_deploy.model import Model
from densenet_deploy.parity.compare import Parity, compare_outputs, worst
from densenet_deploy.parity.gates import DEFAULT_GATES, Gate
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.meaning import class_outputs
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.variants.stems import stems_like
from densenet_deploy.workflows.compare import missed_gates
from densenet_deploy.workflows.load import load

GATES: Final = (*DEFAULT_GATES["fp32"], Gate("sqnr_db", 45.0))
"""The limits of FP32, and the SQNR that belongs to them: a cosine does not see a factor."""

_INPUTS: Final = ("x", "inputs", "input")
_OUTPUTS: Final = ("y", "outputs", "output")
_FORM: Final = "save the inputs as x (N, C, H, W) and the outputs as y, or y0, y1, ...: np.savez(file, x=..., y=...)"
_BATCH: Final = 32


@dataclass(frozen=True)
class Recording:
    """Inputs (N, C, H, W) and the outputs that the original computed for them, float32, read from `path`."""

    path: Path
    inputs: Array
    outputs: tuple[Array, ...]

    @classmethod
    def read(cls, source: StrPath) -> Recording:
        """Read an `.npz` file.

        Raises:
            InputError: if the file does not exist.
            DataError: if it does not hold inputs and as many rows of outputs.
        """
        path = Path(source)
        require_file(path)
        try:
            with os_errors_about(path), np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (ValueError, zipfile.BadZipFile, AttributeError, TypeError) as exc:
            raise DataError(path, "is not an .npz file of arrays", _FORM) from exc
        inputs = next((arrays[name] for name in _INPUTS if name in arrays), None)
        outputs = tuple(_outputs_in(arrays))
        if inputs is None or not outputs:
            raise DataError(path, f"holds {', '.join(arrays) or 'nothing'}, not inputs and outputs", _FORM)
        if inputs.ndim != 4 or any(output.shape[:1] != inputs.shape[:1] for output in outputs) or not len(inputs):
            shapes = ", ".join(str(array.shape) for array in (inputs, *outputs))
            raise DataError(path, f"has inputs and outputs of shapes {shapes}", _FORM)
        return cls(path, inputs.astype(np.float32), tuple(map(_rows, outputs)))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the inputs."""
        height, width = self.inputs.shape[2:]
        return int(height), int(width)

    def batches(self) -> Iterator[Array]:
        """Yield the inputs in portions."""
        return (self.inputs[start : start + _BATCH] for start in range(0, len(self.inputs), _BATCH))


def sized_for(model: Model, recording: Recording) -> Model:
    """Return `model` for images of the recorded size, if nobody stated another."""
    if model.manifest is None or model.is_onnx or "image_size" not in model.manifest.assumed:
        return model
    height, width = recording.image_size
    return load(model, image_size=height if height == width else (height, width))


def require_recorded(model: Model, recording: Recording) -> tuple[dict[str, Parity], tuple[str, ...]]:
    """Return how close the outputs of the graph `model` are to those recorded, and notes.

    Raises:
        GateError: if they differ; it names the stem or the activation with which they agree, if there is one.
        DataError: if `model` has other outputs.
        FeedError: if it takes other inputs.
    """
    found, classes = _outputs_of(model, recording)
    plain = _parity(recording, found, classes)
    if not missed_gates(plain, GATES):
        return plain, ()
    activation = next((name for name in _ACTIVATIONS if _agrees(recording, _activated(found, name))), None)
    if activation is not None and model.manifest is not None and model.manifest.task in _TASKS[activation]:
        note = f"--check: the recorded outputs are what a {activation} makes of the logits, as the task says"
        return _parity(recording, _activated(found, activation), classes), (note,)
    name, parity = worst(plain)
    why = f"{name} differs from {recording.path.name}: SQNR {parity.sqnr_db:.1f} dB, cosine {parity.cosine:.5f}"
    raise GateError(model.name, why, _way_out(model, recording, activation))


def _outputs_in(arrays: Mapping[str, Array]) -> Iterator[Array]:
    single = next((arrays[name] for name in _OUTPUTS if name in arrays), None)
    if single is not None:
        yield single
    else:
        yield from (arrays[f"y{index}"] for index in range(len(arrays)) if f"y{index}" in arrays)


def _rows(output: Array) -> Array:
    """Make one number per image a row of one."""
    return output.astype(np.float32).reshape(len(output), *(output.shape[1:] or (1,)))


def _outputs_of(model: Model, recording: Recording) -> tuple[Feeds, list[str]]:
    """Return the outputs by the names that the report gives them, and which of them are scores of classes."""
    with open_runner(model, None, "cpu", RunnerOptions(check_values=False)) as runner:
        try:
            batches = [run_batched(runner, batch) for batch in recording.batches()]
        except FeedError as exc:
            fix = "record inputs of that shape, or state --image-size and --channels"
            raise FeedError(recording.path, f"its inputs: {exc.why}", fix) from exc
        classes = class_outputs(runner)
    outputs = [np.concatenate([batch[name] for batch in batches]) for name in batches[0]]
    if len(outputs) != len(recording.outputs):
        why = f"holds {len(recording.outputs)} outputs, and the model has {len(outputs)}"
        raise DataError(recording.path, why, _FORM)
    for theirs, ours in zip(recording.outputs, outputs, strict=True):
        if theirs.shape != ours.shape:
            raise DataError(recording.path, f"has outputs of shape {theirs.shape}, the model {ours.shape}", _FORM)
    names = ["logits"] if len(outputs) == 1 else [f"y{index}" for index in range(len(outputs))]
    called = zip(names, batches[0], strict=True)
    return dict(zip(names, outputs, strict=True)), [name for name, own in called if own in classes]


def _parity(recording: Recording, found: Feeds, classes: Collection[str] = ()) -> dict[str, Parity]:
    return compare_outputs([dict(zip(found, recording.outputs, strict=True))], [found], classes)


def _agrees(recording: Recording, found: Feeds) -> bool:
    return not missed_gates(_parity(recording, found), GATES)


def _sigmoid(values: Array) -> Array:
    halved: Array = np.tanh(values / 2)
    return (halved + 1) / 2


def _softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    scores: Array = powers / powers.sum(axis=-1, keepdims=True)
    return scores


_ACTIVATIONS: Final[Mapping[str, Callable[[Array], Array]]] = {"sigmoid": _sigmoid, "softmax": _softmax}
_TASKS: Final = {"sigmoid": ("multilabel",), "softmax": ("multiclass", None)}


def _activated(found: Feeds, activation: str) -> Feeds:
    return {name: _ACTIVATIONS[activation](output) for name, output in found.items()}


def _way_out(model: Model, recording: Recording, activation: str | None) -> str:
    if activation is not None:
        return f"the recorded outputs are the {activation} of the logits: give --task {_TASKS[activation][0]}"
    stem = _agreeing_stem(model, recording)
    if stem is not None:
        return f"give --stem {stem}, with which they agree"
    return "load the module itself, densenet_deploy.load(module), or give the .onnx file that torch.onnx.export writes"


def _agreeing_stem(model: Model, recording: Recording) -> str | None:
    """The other stem with the same parameters that computes what was recorded."""
    if model.spec is None or model.module is None:
        return None
    for stem in stems_like(model.spec.stem):
        spec = dataclasses.replace(model.spec, stem=stem)
        fits = min(recording.image_size) >= spec.smallest_image_size
        if fits and _agrees(recording, _computed(model, spec, recording)):
            return stem
    return None


def _computed(model: Model, spec: DenseNetSpec, recording: Recording) -> Feeds:
    import torch

    from densenet_deploy.models.build import loaded_model

    assert model.module is not None
    module = loaded_model(spec, model.module.state_dict())
    with torch.inference_mode():
        rows = [module(torch.from_numpy(batch)).numpy() for batch in recording.batches()]
    return {"logits": np.concatenate(rows)}
