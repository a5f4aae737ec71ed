"""Validate: run a reference and a candidate, on any backends, over the same inputs, and measure how they differ."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.artifacts import Artifact, onnx_metadata, write_file
from densenet_deploy.errors import BackendError, ModelFileError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.options import require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.parity.compare import LayerComparison, LayerMeter, Parity, parity_of
from densenet_deploy.parity.gates import DEFAULT_GATES, Gate, first_divergence
from densenet_deploy.parity.report import ComparisonReport
from densenet_deploy.runtime.batching import input_size, run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.preprocess import default_preprocessing
from densenet_deploy.runtime.runner import Runner, open_runner
from densenet_deploy.workflows.load import is_checkpoint, load_model, open_model
from densenet_deploy.workflows.notes import untrained_note
from densenet_deploy.workflows.samples import image_samples, seeded_samples

if TYPE_CHECKING:
    from densenet_deploy.graph.tensor_changes import TensorChange

DEFAULT_SAMPLES: Final = 16
_SEEDED_INT8: Final = (
    "measured on noise and seeded images, most of which leave the ranges that INT8 was calibrated for: "
    "give --data DIR with images like those that the model will see"
)


@dataclass(frozen=True)
class ValidateOptions:
    """How to compare.

    Attributes:
        data: a folder of images; None means seeded noise and natural images.
        samples: how many inputs.
        per_layer: compare inner tensors too (ONNX files and checkpoints).
        gates: limits; None means those of the candidate's precision (FP32's where it is unknown).
        reference_backend, candidate_backend: None means each file's own.
    """

    data: Path | None = None
    samples: int = DEFAULT_SAMPLES
    per_layer: bool = False
    gates: tuple[Gate, ...] | None = None
    reference_backend: str | None = None
    candidate_backend: str | None = None

    def __post_init__(self) -> None:
        require_range("samples", self.samples, 1, 1_000_000)


def validate(reference: Path, candidate: Path, options: ValidateOptions | None = None) -> ComparisonReport:
    """Compare two models; the report says whether the gates hold, nothing is raised if they do not.

    Raises:
        InputError: if a model or an image cannot be used, or the models take different inputs.
        BackendError: if a backend cannot be had.
    """
    options = options or ValidateOptions()
    with (
        open_model(reference, options.reference_backend) as ours,
        open_model(candidate, options.candidate_backend) as theirs,
    ):
        preprocessing = _shared_preprocessing(ours, theirs)
        outputs = parity_of(ours, theirs, _samples(options, preprocessing))
        known = DEFAULT_GATES.get(theirs.placement.precision, DEFAULT_GATES["fp32"])
        gates = known if options.gates is None else options.gates
        report = ComparisonReport(
            reference=f"{reference}: {ours.placement}",
            candidate=f"{candidate}: {theirs.placement}",
            outputs=outputs,
            gates=gates,
            notes=(*untrained_note(ours.manifest), *_seeded_note(theirs, options)),
        )
    if not options.per_layer:
        return report
    layers = _compare_layers(reference, candidate, options, preprocessing)
    diverged = first_divergence(layers.layers, gates or DEFAULT_GATES["fp32"])
    return dataclasses.replace(report, layers=layers.layers, skipped=layers.skipped, first_divergence=diverged)


def _seeded_note(candidate: Runner, options: ValidateOptions) -> tuple[str, ...]:
    return (_SEEDED_INT8,) if candidate.placement.precision == "int8" and options.data is None else ()


def compare_files(reference: Path, candidate: bytes, samples: int = 4) -> Parity:
    """Compare an ONNX file with a serialized ONNX model that has not been given a name yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        write_file(path, candidate)
        options = ValidateOptions(samples=samples, gates=())
        return validate(reference, path, options).parity


def _shared_preprocessing(reference: Runner, candidate: Runner) -> Preprocessing:
    """How images are prepared for both.

    Raises:
        ModelFileError: if they take images of different sizes.
    """
    sizes = {size for size in map(input_size, (reference, candidate)) if size is not None}
    if len(sizes) > 1:
        why = f"takes {input_size(candidate)} pixels, the reference {input_size(reference)}"
        raise ModelFileError("candidate", why, "compare models of one input size")
    manifest = reference.manifest or candidate.manifest
    if manifest is not None and sizes <= {manifest.preprocessing.image_size}:
        return manifest.preprocessing
    return default_preprocessing(sizes.pop()) if sizes else default_preprocessing()


def _samples(options: ValidateOptions, preprocessing: Preprocessing) -> Iterator[Array]:
    if options.data is not None:
        return image_samples(options.data, options.samples, preprocessing)
    return seeded_samples(options.samples, preprocessing)


def _compare_layers(
    reference: Path, candidate: Path, options: ValidateOptions, preprocessing: Preprocessing
) -> LayerComparison:
    meter = LayerMeter()
    with (
        _tapped(reference, options.reference_backend) as ours,
        _tapped(candidate, options.candidate_backend) as theirs,
    ):
        for sample in _samples(options, preprocessing):
            meter.update(theirs.needed(ours.run(sample)), theirs.needed(theirs.run(sample)))
        moved = ours.moved | theirs.moved
    result = meter.result()
    skipped = {name: moved.get(name, reason) for name, reason in result.skipped.items()}
    return dataclasses.replace(result, skipped=skipped)


@dataclass(frozen=True)
class _Tapped:
    """A runner of inner tensors, and what rewrites made of them: each is given as the original model has it."""

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
        """Undo the changes of a tensor, one after the other: of codes first, then of what they are the codes of."""
        known = set()
        while (change := self.changes.get(name)) is not None and change.moved is None and name not in known:
            known.add(name)
            name, array = change.of, change.undone(array)
        return name, array


def _showing_backend(model: Path) -> str | None:
    """The backend that shows inner tensors as they are: OpenVINO gives those of a Q/DQ graph in scales of its own."""
    return "onnxruntime" if Artifact.open(model).precision == "int8" else None


@contextlib.contextmanager
def _tapped(model: Path, backend: str | None) -> Iterator[_Tapped]:
    """Open `model` with its inner tensors as outputs.

    Raises:
        BackendError: if the file shows no inner tensors.
    """
    if is_checkpoint(model):
        from densenet_deploy.models.taps import IntermediateOutputs

        module = load_model(model)
        with open_runner(IntermediateOutputs(module, str(module.output_name))) as runner:
            yield _Tapped(runner, {})
        return
    if model.suffix.lower() != ".onnx":
        raise BackendError(model, "shows no inner tensors", "compare ONNX files or checkpoints layer by layer")
    require_packages("export", "onnx")
    from densenet_deploy.graph.onnx_file import expose_values, load_onnx
    from densenet_deploy.graph.tensor_changes import read_tensor_changes

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tapped.onnx"
        write_file(path, expose_values(load_onnx(model)).SerializeToString())
        with open_runner(path, backend or _showing_backend(model)) as runner:
            yield _Tapped(runner, read_tensor_changes(onnx_metadata(model)))
