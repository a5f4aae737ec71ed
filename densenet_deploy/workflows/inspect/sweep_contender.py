"""A candidate that is a network of a sweep, built from the file that names it, with random weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from densenet_deploy.bench.candidate import serve_candidate
from densenet_deploy.runtime.runner import ModuleSource, Runner, RunnerOptions, open_runner
from densenet_deploy.variants.spec import DenseNetSpec


def open_network(path: Path, backend: str | None, device: str | None, options: RunnerOptions) -> Runner:
    """Build the network that the JSON file `path` names: a `spec`, or one of `torchvision`, for `image_size` pixels."""
    from densenet_deploy.models.build import build_model
    from densenet_deploy.workflows.inspect.sweep import resnet

    facts = json.loads(path.read_text())
    spec = facts["spec"]
    if spec is None:
        module = resnet(facts["torchvision"])
    else:
        module = build_model(DenseNetSpec.from_facts(spec | {"blocks": tuple(spec["blocks"])}))
    source = ModuleSource(module, output_names=("logits",))
    runner = open_runner(source, backend, device, options)
    size = facts["image_size"]
    runner.inputs = (dataclasses.replace(runner.inputs[0], shape=(None, 3, size, size)),)
    return runner


def main() -> None:
    """Serve a candidate that `open_network` opens."""
    serve_candidate(open_network)
