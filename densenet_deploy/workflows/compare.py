"""Compare: run a reference and a candidate, on any backends, over the same images, and measure how they differ."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Unpack

import numpy as np

from densenet_deploy.errors import GateError, ModelFileError
from densenet_deploy.manifest import ImageShape, Preprocessing
from densenet_deploy.model import Model, untrained_note
from densenet_deploy.options import or_default, require_range
from densenet_deploy.packages import imported
from densenet_deploy.parity.compare import (
    ComparisonMeter,
    LayerComparison,
    Parity,
    compare_outputs,
    matched_outputs,
    other_labels,
    outputs_of,
    parity_of,
    shared_classes,
    worst,
    worst_first,
)
from densenet_deploy.parity.gates import DEFAULT_GATES, Gate, failed_gates, first_divergence
from densenet_deploy.reports import Report, line, table
from densenet_deploy.runtime.batching import image_shape, run_each, shared_cpus
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.meaning import class_outputs
from densenet_deploy.runtime.runner import REFERENCE_BACKEND, Runner, RunnerOptions, open_runner
from densenet_deploy.workflows.inner_tensors import compare_layers
from densenet_deploy.workflows.load import LoadOptions, load
from densenet_deploy.workflows.samples import samples_of, seeded_samples

DEFAULT_SAMPLES: Final = 16
WORST_LAYERS: Final = 10
_NAMED: Final = 3  # layers of a line about skipped ones
SINGLE_THREAD: Final = RunnerOptions(threads=1)
"""Waiting threads spin: on cores that are busy with other work two took 36 s for what one does in 1 s."""

_SEEDED_INT8: Final = (
    "measured on noise and seeded images, most of which leave the ranges that INT8 was calibrated for: "
    "give --data DIR with images like those that the model will meet"
)


@dataclass(frozen=True)
class CompareOptions:
    """How to compare.

    >>> CompareOptions(gates=(Gate("sqnr_db", 40.0),)).gates
    (Gate(metric='sqnr_db', limit=40.0),)

    Attributes:
        samples: number of inputs, at most.
        per_layer: compare inner tensors too (ONNX graphs and PyTorch modules).
        gates: limits; None means those of the candidate's precision (FP32's where it is unknown, none of INT8).
        reference_backend, candidate_backend: None means each model's own.
    """

    samples: int = DEFAULT_SAMPLES
    per_layer: bool = False
    gates: tuple[Gate, ...] | None = None
    reference_backend: str | None = None
    candidate_backend: str | None = None

    def __post_init__(self) -> None:
        require_range("samples", self.samples, 1, 1_000_000)


class ParityOfOutputs:
    """What reports with the parity of each output, by name, have in common."""

    outputs: Mapping[str, Parity]

    @property
    def parity(self) -> Parity:
        """That of the worst output."""
        return worst(self.outputs)[1]

    def parity_lines(self) -> list[str]:
        """Return lines for people: the worst output, then every output if there are several."""
        name, parity = worst(self.outputs)
        if len(self.outputs) == 1:
            return [line("parity", parity)]
        each = [f"  {name}: {parity}" for name, parity in self.outputs.items()]
        return [line("parity", f"{parity} (worst output: {name})"), *each]


@dataclass(frozen=True)
class LayerParity:
    """The parity of an inner tensor."""

    name: str
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        """Return the name and the metrics side by side."""
        return {"name": self.name, **self.parity.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> LayerParity:
        """Read what `to_json` returned.

        Raises:
            ValueError: if it is something else.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise ValueError("has no name")
        return cls(data["name"], Parity.from_json(data))


@dataclass(frozen=True, kw_only=True)
class ComparisonReport(Report, ParityOfOutputs):
    """How far a candidate model is from a reference.

    Attributes:
        reference, candidate: each model and what ran it.
        outputs: the parity of each output, by the reference's name.
        passed: whether every output keeps the gates; None if there are none and all values are finite.
        failed: a sentence for each gate that an output misses.
        first_divergence: the first layer, in execution order, that misses the gates.
        worst_layers: at most ten inner tensors, the worst first, if these were compared.
        skipped: why other inner tensors could not be compared, by name.
        layers: all inner tensors in execution order; not in the JSON.
    """

    kind: ClassVar[str] = "validate"
    derived: ClassVar[tuple[str, ...]] = ("parity",)

    reference: str
    candidate: str
    outputs: Mapping[str, Parity]
    passed: bool | None
    failed: tuple[str, ...] = ()
    first_divergence: str | None = None
    worst_layers: tuple[LayerParity, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, Parity] = field(default_factory=dict, metadata={"json": False})

    @classmethod
    def of(
        cls,
        models: tuple[str, str],
        outputs: Mapping[str, Parity],
        gates: Sequence[Gate],
        layers: LayerComparison | None = None,
        notes: tuple[str, ...] = (),
    ) -> ComparisonReport:
        """Judge a comparison: `models` describes reference and candidate, `gates` limit every output."""
        failed = missed_gates(outputs, gates)
        compared = layers.layers if layers is not None else {}
        worst_layers = itertools.islice(worst_first(compared).items(), WORST_LAYERS)
        return cls(
            reference=models[0],
            candidate=models[1],
            outputs=outputs,
            passed=False if failed else True if gates else None,
            failed=failed,
            first_divergence=first_divergence(compared, gates or DEFAULT_GATES["fp32"]),
            worst_layers=tuple(itertools.starmap(LayerParity, worst_layers)),
            skipped=layers.skipped if layers is not None else {},
            layers=compared,
            notes=notes,
        )

    def to_text(self) -> str:
        """Return lines for people."""
        verdict = "passed" if self.passed else "no gate"
        lines = [line("reference", self.reference), line("candidate", self.candidate), *self.parity_lines()]
        lines += [line("failed", sentence) for sentence in self.failed] or [verdict]
        if self.first_divergence is not None:
            lines.append(line("diverges", f"first at {self.first_divergence}"))
        return "\n".join([*lines, *self._layer_table(), *self._skipped_lines()])

    def _layer_table(self) -> list[str]:
        if not self.worst_layers:
            return []
        rows = (
            (one.name, "NaN or Inf", "–", "–")
            if one.parity.nonfinite
            else (one.name, f"{one.parity.sqnr_db:.1f}", f"{one.parity.cosine:.6f}", f"{one.parity.max_abs:.3g}")
            for one in self.worst_layers
        )
        return table(("worst layer", "SQNR dB", "cosine", "max |Δ|"), rows, (1, 2, 3))

    def _skipped_lines(self) -> list[str]:
        """One line per reason: how many layers, and the first of them."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        return [
            line("skipped", f"{len(names)} {reason}: {', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''}")
            for reason, names in by_reason.items()
        ]


def compare(
    reference: Any,
    candidate: Any,
    data: Any = None,
    options: CompareOptions | None = None,
    **stated: Unpack[LoadOptions],
) -> ComparisonReport:
    """Measure how far a candidate's outputs are from a reference's; a missed gate is reported, not raised.

    >>> compare("densenet_digits.safetensors", "digits.onnx", "held_out").parity.top1_agreement
    1.0

    Args:
        reference: the model to compare with: whatever `load` takes.
        candidate: the model that is compared.
        data: images to compare on: a folder, an `.npy` or `.npz` file, an array or any iterable of images or batches;
            None takes seeded noise and images with the spectrum of natural scenes.
        options: see `CompareOptions`.
        **stated: facts about both models, which have to fit both; see `load`.

    Raises:
        InputError: if a model or an image cannot be used, or the models take different inputs.
        BackendError: if a backend is not available.
    """
    options = or_default(options, CompareOptions)
    if options.per_layer and isinstance(data, Iterator):  # which is read twice
        data = list(itertools.islice(data, options.samples))
    models = load(reference, **stated), load(candidate, **stated)
    with models[0].runner(options.reference_backend) as ours, models[1].runner(options.candidate_backend) as theirs:
        preprocessing = _shared_preprocessing(ours, theirs)
        facts = (ours.manifest, theirs.manifest)
        check_values = all(manifest is not None and manifest.states_normalization for manifest in facts)
        samples = functools.partial(samples_of, data, preprocessing, options.samples, check_values=check_values)
        outputs = parity_of(ours, theirs, samples())
        known = DEFAULT_GATES.get(theirs.placement.precision, DEFAULT_GATES["fp32"])
        gates = known if options.gates is None else options.gates
        described = (
            f"{_described(reference, models[0])}: {ours.placement}",
            f"{_described(candidate, models[1])}: {theirs.placement}",
        )
        is_outside = theirs.placement.precision == "int8" and data is None
        notes = (
            *untrained_note(ours.manifest),
            *((_SEEDED_INT8,) if is_outside else ()),
            *_preprocessing_note(ours, theirs, preprocessing),
            *_pixel_note(ours, theirs, data),
            *_output_notes(ours, theirs),
            *_meaning_notes(ours, theirs),
        )
    layers = None
    if options.per_layer:
        layers = compare_layers(models, (options.reference_backend, options.candidate_backend), samples())
    return ComparisonReport.of(described, outputs, gates, layers, notes)


def seeded_parity(
    reference: Model, candidate: Model, preprocessing: Preprocessing, samples: int, *, finite_only: bool = False
) -> dict[str, Parity]:
    """Return the parity of each output on seeded inputs, on the CPU with one thread each.

    With `finite_only`, values are not compared where the reference's are NaN or infinite: backends differ in whether a
    ReLU lets NaN through.
    """
    with (
        _torch_threads_restored(),
        open_runner(reference, None, "cpu", SINGLE_THREAD) as ours,
        open_runner(candidate, None, "cpu", SINGLE_THREAD) as theirs,
    ):
        inputs = list(seeded_samples(samples, preprocessing))
        expected, found = list(outputs_of(ours, inputs)), list(outputs_of(theirs, inputs))
        classes = shared_classes(ours, theirs)
    return _compared(expected, found, classes, finite_only=finite_only)


def numpy_parity(
    reference: Model, candidate: Model, preprocessing: Preprocessing, samples: int, *, finite_only: bool = False
) -> dict[str, Parity]:
    """Return the parity of the output with that of the spec and weights of `reference` in NumPy; see `seeded_parity`.

    The reference computes in float64, so that what differs is the rounding of the candidate.
    """
    from densenet_deploy.parity.reference import numpy_outputs

    spec, weights = reference.spec, reference.weights
    assert spec is not None
    assert weights is not None
    inputs = list(seeded_samples(samples, preprocessing))
    with open_runner(candidate, None, "cpu", SINGLE_THREAD) as theirs:
        found, classes = list(outputs_of(theirs, inputs)), class_outputs(theirs)
    expected = [{spec.output_name: numpy_outputs(spec, weights, images)} for images in inputs]
    return _compared(expected, found, classes, finite_only=finite_only)


def _compared(
    expected: Sequence[Feeds], found: Sequence[Feeds], classes: frozenset[str], *, finite_only: bool
) -> dict[str, Parity]:
    if finite_only:
        found = [_where_finite(*pair) for pair in zip(expected, found, strict=True)]
        expected = [_where_finite(feeds, feeds) for feeds in expected]
    return compare_outputs(expected, found, classes)


def _where_finite(expected: Feeds, found: Feeds) -> dict[str, Array]:
    """Return `found` with zeros where `expected` is NaN or infinite."""
    return {name: np.where(np.isfinite(expected[name]), array, 0) for name, array in found.items()}


def measured_parity(
    reference: Model, candidate: Model, samples: Iterable[Array], backend: str | None = REFERENCE_BACKEND
) -> dict[str, Parity]:
    """Return the parity of each output on `samples`, both models on `backend` on the CPU."""
    return measured_parities(reference, {"": candidate}, samples, backend)[""]


def measured_parities(
    reference: Model, candidates: Mapping[str, Model], samples: Iterable[Array], backend: str | None = REFERENCE_BACKEND
) -> dict[str, dict[str, Parity]]:
    """Return what `measured_parity` does for each of the candidates, by their names; the reference is run once."""
    calls, threads = shared_cpus(backend)
    options = RunnerOptions(threads=threads, calls=calls)
    with contextlib.ExitStack() as opened:
        runners = [
            opened.enter_context(open_runner(model, backend, "cpu", options))
            for model in (reference, *candidates.values())
        ]
        meters = {
            name: ComparisonMeter(shared_classes(runners[0], runner))
            for name, runner in zip(candidates, runners[1:], strict=True)
        }
        runs = [
            run_each(runner, own, calls)
            for runner, own in zip(runners, itertools.tee(samples, len(runners)), strict=True)
        ]
        for (_, expected), *found in zip(*runs, strict=True):
            for meter, (_, outputs) in zip(meters.values(), found, strict=True):
                meter.update(expected, outputs)
    return {name: meter.result() for name, meter in meters.items()}


def require_parity(
    outputs: Mapping[str, Parity],
    precision: str,
    subject: object,
    why: str,
    fix: str,
    gates: Sequence[Gate] | None = None,
) -> None:
    """Check every output against `gates`, or the default ones of `precision`.

    Raises:
        GateError: about `subject`, with every miss after `why`.
    """
    misses = missed_gates(outputs, DEFAULT_GATES[precision] if gates is None else gates)
    if misses:
        raise GateError(subject, f"{why}: {'; '.join(misses)}", fix)


def missed_gates(outputs: Mapping[str, Parity], gates: Sequence[Gate]) -> tuple[str, ...]:
    """Return a sentence for each gate that an output misses; it names the output if there are several.

    A metric without meaning for an output fails only if it has none for any: of scores and features, a gate on top-1
    agreement judges the scores.
    """
    several = len(outputs) > 1
    nowhere = {gate for gate in gates if not any(map(gate.is_defined, outputs.values()))}
    return tuple(
        f"{name}: {sentence}" if several else sentence
        for name, parity in outputs.items()
        for sentence in failed_gates(parity, [gate for gate in gates if gate in nowhere or gate.is_defined(parity)])
    )


def require_sqnr(outputs: Mapping[str, Parity], lowest_db: float | None, subject: object, fix: str) -> None:
    """Check that all values of all outputs are finite, and that none has an SQNR below `lowest_db`, if it is given.

    Raises:
        GateError: about `subject`.
    """
    for name, parity in outputs.items():
        if parity.nonfinite:
            why = f"the output {name} holds {parity.nonfinite} NaN or infinite values"
            raise GateError(subject, why, "report this model")
    found = worst(outputs)[1].sqnr_db
    if lowest_db is not None and found < lowest_db:
        raise GateError(subject, f"reaches {found:.2f} dB in the end, below the {lowest_db:g} dB asked for", fix)


def _described(source: Any, model: Model) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else str(model.path or model.name)


def _preprocessing_note(reference: Runner, candidate: Runner, shared: Preprocessing) -> tuple[str, ...]:
    """Say it if one of the models asks for other images than those that both got."""
    ours, theirs = reference.manifest, candidate.manifest
    if ours is None or theirs is None:
        return ()
    if dataclasses.replace(theirs.preprocessing, dtype=shared.dtype) != shared:
        return (f"images were prepared as the reference says; the candidate says {theirs.preprocessing}",)
    if dataclasses.replace(ours.preprocessing, dtype=shared.dtype) != shared:
        return (f"images were prepared as the candidate says; the reference says {ours.preprocessing}",)
    return ()


def _pixel_note(reference: Runner, candidate: Runner, data: Any) -> tuple[str, ...]:
    """Say it if one model takes pixels and the other what they are normalized to, or values were rounded to pixels."""
    kinds = {str(runner.inputs[0].dtype) for runner in (reference, candidate)}
    if "uint8" not in kinds:
        return ()
    is_folder = isinstance(data, (str, os.PathLike)) and not str(data).endswith((".npy", ".npz"))
    rounded = () if is_folder else ("inputs were rounded to the nearest pixels, 0 to 255",)
    both = ("pixels were normalized for the model that takes float32, as its manifest says",) if len(kinds) > 1 else ()
    return (*both, *rounded)


def _output_notes(reference: Runner, candidate: Runner) -> Iterator[str]:
    ours, theirs = ([spec.name for spec in runner.outputs] for runner in (reference, candidate))
    pairs = matched_outputs(ours, theirs)
    for name, other in pairs:
        if name != other:
            yield f"output {name} was compared with the candidate's {other}, by position"
    extra = [name for name in theirs if name not in {other for _, other in pairs}]
    if extra:
        yield f"not compared, only the candidate has them: {', '.join(extra)}"


def _meaning_notes(reference: Runner, candidate: Runner) -> Iterator[str]:
    """Say it if equal numbers do not mean the same."""
    tasks = [None if runner.manifest is None else runner.manifest.task for runner in (reference, candidate)]
    if None not in tasks and tasks[0] != tasks[1]:
        yield f"the reference is a {tasks[0]} model, the candidate a {tasks[1]} model: only their numbers were compared"
    if other_labels(reference, candidate):
        yield "the candidate has other labels, or in another order: outputs were compared by place, not by label"


def _shared_preprocessing(reference: Runner, candidate: Runner) -> Preprocessing:
    """Return how images are prepared for both."""
    ours, theirs = image_shape(reference), image_shape(candidate)
    if not _agree(ours, theirs):
        why = f"takes images of {_sizes(theirs)}, the reference of {_sizes(ours)}"
        raise ModelFileError("candidate", why, "compare models with the same input")
    known = [runner.manifest for runner in (reference, candidate) if runner.manifest is not None]
    manifest = min(known, key=lambda manifest: len(manifest.assumed), default=None)
    shape = ours[0] or theirs[0], ours[1] or theirs[1], ours[2] or theirs[2]
    taken = {str(runner.inputs[0].dtype) for runner in (reference, candidate)}
    dtype = "uint8" if "uint8" in taken else "float32"  # pixels are exact for both
    if manifest is not None and _agree(shape, manifest.preprocessing.shape):
        return dataclasses.replace(manifest.preprocessing, dtype=dtype)
    return dataclasses.replace(Preprocessing.for_shape(shape), dtype=dtype)


def _agree(a: ImageShape, b: ImageShape) -> bool:
    return all(None in pair or pair[0] == pair[1] for pair in zip(a, b, strict=True))


def _sizes(shape: ImageShape) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


@contextlib.contextmanager
def _torch_threads_restored() -> Iterator[None]:
    """PyTorch has one thread count per process, and its runner sets it: restore the caller's."""
    torch = imported("torch")
    threads = torch.get_num_threads() if torch is not None else None
    try:
        yield
    finally:
        if torch is not None and threads is not None:
            torch.set_num_threads(threads)
