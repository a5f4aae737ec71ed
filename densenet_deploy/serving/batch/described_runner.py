"""What a worker says about the runner that it has open, and a `Runner` that has these facts and no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from densenet_deploy.errors import RunnerStateError
from densenet_deploy.manifest import Manifest
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.runner import Device, Placement, Runner, RunnerOptions, RunnerSource
from densenet_deploy.runtime.sidecar import TensorFacts


@dataclass(frozen=True)
class RunnerFacts:
    """What the attributes of a runner hold, with the manifest as it stands in a file."""

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    manifest: Mapping[str, str]
    activations: Mapping[str, str] | None

    @classmethod
    def of(cls, runner: Runner, classifier: Classifier) -> Self:
        """Return the facts of a runner; the number of classes, which `classifier` knows, is there even if unstated."""
        answer = classifier.meaning.output
        counted = TensorSpec(answer.name, (*answer.shape[:1], classifier.classes, *answer.shape[2:]), answer.dtype)
        outputs = (counted if spec.name == answer.name else spec for spec in runner.outputs)
        manifest = {} if runner.manifest is None else runner.manifest.to_strings()
        return cls(_facts(runner.inputs), _facts(outputs), manifest, runner.activations)


def _facts(specs: Iterable[TensorSpec]) -> tuple[TensorFacts, ...]:
    return tuple(TensorFacts(spec.name, str(spec.dtype), spec.shape) for spec in specs)


class DescribedRunner(Runner):
    """A runner that others have open: `Classifier` finds in it what the model means, and nothing runs it."""

    name = "described"

    def __init__(self, facts: RunnerFacts, placement: Placement) -> None:
        inputs, outputs = (tuple(one.spec() for one in specs) for specs in (facts.inputs, facts.outputs))
        super().__init__(None, inputs, outputs, placement, Manifest.from_strings(facts.manifest))
        self.activations = facts.activations

    @classmethod
    def open(cls, source: RunnerSource, device: Device | None, options: RunnerOptions) -> Runner:  # noqa: ARG003
        raise RunnerStateError(cls.name, "has no model", "open another backend")

    @classmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        return "", ()

    def _run(self, handle: Any, feeds: dict[str, Array]) -> dict[str, Array]:  # noqa: ARG002
        raise RunnerStateError(self.name, "has no model", "ask the worker that has it open")
