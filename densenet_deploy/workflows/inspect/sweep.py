"""Sweep: what one number of a DenseNet changes in parameters, MACs, memory and measured latency, beside two ResNets.

Every network is measured the same way: as a PyTorch module with random weights in a process of its own, all of them in
turns (`bench.rounds`). Speed does not depend on the weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from densenet_deploy.analysis.accuracy import PUBLISHED, Published
from densenet_deploy.analysis.cost import BlockCost, ModelCost, model_cost
from densenet_deploy.analysis.memory import activation_memory
from densenet_deploy.artifacts import write_file
from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import Size, sides
from densenet_deploy.options import require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.reports import Report, table
from densenet_deploy.variants import variant_for
from densenet_deploy.variants.spec import DenseNetSpec
from densenet_deploy.variants.sweep import Sweep

if TYPE_CHECKING:
    import torch

    from densenet_deploy.runtime.runner import Runner, RunnerOptions

RESNETS: Final = ("resnet50", "resnet101")
_RESNET_CHANNELS: Final = 3
_PUBLISHED_SHAPE: Final = (3, 224, 224)


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One network of the sweep; fields are None where they do not apply or were not measured.

    Attributes:
        value: what the swept number is; None for a ResNet.
        activation_bytes: peak of an inference as PyTorch runs it, measured on the meta device, in float32.
        bus_bytes: the same with a dense block's features in one buffer.
        training_bytes: peak of a training step, gradients of the weights included; None where the batch is too small.
        published: accuracies that others published for this architecture.
        latency_ms, latency_interval_ms: the median call and the 95 % interval of the rounds' medians.
        peak_memory_bytes: of its process.
    """

    name: str
    value: str | None
    parameters: int
    macs: int
    activation_bytes: int
    bus_bytes: int | None = None
    training_bytes: int | None
    published: Published | None = None
    latency_ms: float | None = None
    latency_interval_ms: tuple[float, float] | None = None
    peak_memory_bytes: int | None = None
    placement: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepReport(Report):
    """The points in the order of the values, the ResNets last; `blocks` are those of the network that was changed."""

    kind: ClassVar[str] = "inspect"
    derived: ClassVar[tuple[str, ...]] = ("parameters", "macs")

    sweep: str
    image_size: Size
    batch: int
    blocks: tuple[BlockCost, ...]
    points: tuple[SweepPoint, ...]

    @property
    def parameters(self) -> int:
        return ModelCost(self.blocks).parameters

    @property
    def macs(self) -> int:
        return ModelCost(self.blocks).macs

    def to_text(self) -> str:
        header = (self.sweep, "parameters", "GMACs", "act. MiB", "bus MiB", "train MiB", "ms", "95 % interval",
                  "published top-1/top-5")  # fmt: skip
        lines = [f"batch {self.batch}, {'x'.join(map(str, sides(self.image_size)))}, fp32", ""]
        lines += table(header, map(_row, self.points), right=range(len(header)))
        if places := sorted({point.placement for point in self.points if point.placement is not None}):
            lines += ["", f"ms: median call, {', '.join(places)}, each network in a process of its own"]
        if sources := sorted({point.published.source for point in self.points if point.published is not None}):
            lines.append(f"published, not measured here: {', '.join(sources)}")
        return "\n".join(lines)


def _row(point: SweepPoint) -> list[str]:
    sizes = (point.activation_bytes, point.bus_bytes, point.training_bytes)
    interval, published = point.latency_interval_ms, point.published
    top5 = "-" if published is None or published.top5 is None else f"{published.top5:.2%}"
    return [
        point.value or point.name,
        f"{point.parameters:,}",
        f"{point.macs / 1e9:.3f}",
        *("-" if size is None else f"{size / 2**20:.2f}" for size in sizes),
        "-" if point.latency_ms is None else f"{point.latency_ms:.2f}",
        "-" if interval is None else f"{interval[0]:.2f}-{interval[1]:.2f}",
        "-" if published is None else f"{published.top1:.2%} / {top5}",
    ]


@dataclass(frozen=True)
class SweepOptions:
    """How to measure; `image_size` None means the variant's, `measure` False leaves latency out.

    Images have the channels of the network that is changed; the first convolution of a ResNet is given as many.
    """

    image_size: Size | None = None
    batch: int = 1
    measure: bool = True
    rounds: int = 5
    threads: int | None = None

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 65536)
        require_range("rounds", self.rounds, 1, 10_000)


def run_sweep(sweep: Sweep, base: DenseNetSpec, options: SweepOptions | None = None) -> SweepReport:
    """Compare the networks of `sweep` and, with an ImageNet stem, ResNet-50 and ResNet-101.

    Raises:
        UsageError: if a value is invalid.
        MissingPackageError: if PyTorch is not installed.
    """
    options = options or SweepOptions()
    require_packages("export", "torch", "torchvision")
    specs = sweep.specs(base)
    size = options.image_size or variant_for(base).preprocessing.image_size
    for spec, side in itertools.product((base, *specs.values()), sides(size)):
        require_range("image-size", side, spec.smallest_image_size, 8192)
    others = {name: name for name in RESNETS} if base.stem == "imagenet" else {}
    networks: dict[str, DenseNetSpec | str] = {**specs, **others}
    shape = (base.in_channels, *sides(size))
    points = {name: _point(name, network, shape, options.batch) for name, network in networks.items()}
    if options.measure:
        points = _measured(points, networks, shape, options)
    blocks = model_cost(base, size).blocks
    return SweepReport(
        sweep=sweep.name, image_size=size, batch=options.batch, blocks=blocks, points=tuple(points.values())
    )


def _point(value: str, network: DenseNetSpec | str, shape: tuple[int, int, int], batch: int) -> SweepPoint:
    import torch

    from densenet_deploy.models.build import empty_model
    from densenet_deploy.models.live_memory import inference_memory, training_memory_of
    from densenet_deploy.models.taps import counted_cost

    channels, image_size = shape[0], shape[1:]
    with torch.device("meta"):
        module = _resnet(network, channels) if isinstance(network, str) else empty_model(network)
    parameters, macs = counted_cost(module, image_size, channels)
    activation_bytes = inference_memory(module, image_size, batch, channels).peak_bytes
    try:
        training_bytes = training_memory_of(module, image_size, batch, channels).peak_bytes
    except UsageError:
        training_bytes = None
    spec = network if isinstance(network, DenseNetSpec) else None
    name = variant_for(spec).artifact_name if spec else value
    is_published = (shape, spec.num_classes if spec else 1000) == (_PUBLISHED_SHAPE, 1000)
    return SweepPoint(
        name=name,
        value=value if spec else None,
        parameters=parameters,
        macs=macs,
        activation_bytes=activation_bytes,
        bus_bytes=activation_memory(spec, image_size, batch).bus_bytes if spec else None,
        training_bytes=training_bytes,
        published=PUBLISHED.get(name) if is_published else None,
    )


def _resnet(name: str, channels: int) -> torch.nn.Module:
    import torchvision
    from torch import nn

    module: torch.nn.Module = torchvision.models.get_model(name, weights=None)
    if channels != _RESNET_CHANNELS:
        module.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return module.eval()


def _measured(
    points: Mapping[str, SweepPoint],
    networks: Mapping[str, DenseNetSpec | str],
    shape: tuple[int, int, int],
    options: SweepOptions,
) -> dict[str, SweepPoint]:
    """Time the networks; each is handed to its process as a small file that says which it is."""
    from densenet_deploy.bench.candidate import Candidate
    from densenet_deploy.bench.rounds import Interval, compare_speed

    with tempfile.TemporaryDirectory() as folder:
        candidates = {}
        for number, (name, network) in enumerate(networks.items()):
            path = Path(folder) / f"{number}.json"
            spec = network.to_facts() if isinstance(network, DenseNetSpec) else network
            write_file(path, json.dumps({"network": spec, "shape": shape}).encode())
            candidates[name] = Candidate(path, "torch", options.batch, threads=options.threads, program=__name__)
        result = compare_speed(candidates, rounds=options.rounds)
    measured = {}
    for name, point in points.items():
        timings = result.timings[name]
        latency = Interval.of([timing.median * 1e3 for timing in timings])
        measured[name] = dataclasses.replace(
            point,
            latency_ms=latency.median,
            latency_interval_ms=(latency.low, latency.high),
            peak_memory_bytes=max(timing.peak_memory_bytes for timing in timings),
            placement=result.placements[name],
        )
    return measured


def main(requests: Iterator[Any]) -> Iterator[Any]:
    """Serve a candidate that `_open` opens; see `bench.candidate`."""
    from densenet_deploy.bench.candidate import serve_candidate

    return serve_candidate(requests, _open)


def _open(path: Path, backend: str | None, device: str | None, options: RunnerOptions) -> Runner:
    from densenet_deploy.models.build import build_model
    from densenet_deploy.runtime.runner import ModuleSource, open_runner

    facts = json.loads(path.read_text())
    network, shape = facts["network"], facts["shape"]
    if isinstance(network, str):
        module = _resnet(network, shape[0])
    else:
        module = build_model(DenseNetSpec.from_facts(network | {"blocks": tuple(network["blocks"])}))
    runner = open_runner(ModuleSource(module, output_names=("logits",)), backend, device, options)
    runner.inputs = (dataclasses.replace(runner.inputs[0], shape=(None, *shape)),)
    return runner
