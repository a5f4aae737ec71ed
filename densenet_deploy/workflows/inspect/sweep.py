"""Sweep: what one number of a DenseNet does to parameters, MACs, memory and measured latency, beside two ResNets.

Every network of a sweep is measured the same way: as a PyTorch module with random weights in a process of its own, all
of them taking turns (`bench.rounds`). Speed does not depend on the weights, so none are needed.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.analysis.cost import ModelCost, model_cost
from densenet_deploy.analysis.memory import activation_memory
from densenet_deploy.analysis.published import PUBLISHED, Published
from densenet_deploy.artifacts import write_file
from densenet_deploy.bench.candidate import Candidate
from densenet_deploy.bench.rounds import Interval, RoundResults, compare_speed
from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.options import require_range
from densenet_deploy.packages import require_packages
from densenet_deploy.variants import find_variant, variant_for
from densenet_deploy.variants.spec import DenseNetSpec

if TYPE_CHECKING:
    import torch

_MIB: Final = 2**20
_MOST_POINTS: Final = 12
_PUBLISHED_SIZE: Final = 224
_PROGRAM: Final = "densenet_deploy.workflows.inspect.sweep_contender"
RESNETS: Final = ("resnet50", "resnet101")


@dataclass(frozen=True)
class Sweep:
    """Which number takes which values, as written."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Sweep:
        """Read `growth-rate=12,24,32,48`.

        Raises:
            UnknownNameError: if the number is none that a sweep can change.
            UsageError: if there are no values, or too many.
        """
        name, _, words = text.partition("=")
        if name not in _CHANGES:
            raise UnknownNameError.among("sweep", name, _CHANGES)
        values = tuple(word.strip() for word in words.split(",") if word.strip())
        if not 1 <= len(values) <= _MOST_POINTS:
            fix = f"write 1 to {_MOST_POINTS}, such as --sweep growth-rate=12,24,32,48"
            raise UsageError(f"--sweep {text}", f"has {len(values)} values", fix)
        return cls(name, values)

    def specs(self, base: DenseNetSpec) -> dict[str, DenseNetSpec]:
        """Return value → `base` with that value.

        Raises:
            UsageError: if a value is no number or out of range.
        """
        return {value: self._changed(base, value) for value in self.values}

    def _changed(self, base: DenseNetSpec, value: str) -> DenseNetSpec:
        try:
            return _CHANGES[self.name](base, value)
        except ValueError as exc:
            raise UsageError(f"--sweep {self.name}={value}", "is no number", "write numbers, by commas") from exc


def _replacing(field: str, read: Callable[[str], object]) -> Callable[[DenseNetSpec, str], DenseNetSpec]:
    def change(base: DenseNetSpec, value: str) -> DenseNetSpec:
        replaced: dict[str, Any] = {field: read(value)}
        return dataclasses.replace(base, **replaced)

    return change


def _deepened(base: DenseNetSpec, value: str) -> DenseNetSpec:
    factor = require_range("depth", float(value), 0.01, 16.0)
    return dataclasses.replace(base, blocks=tuple(max(1, round(layers * factor)) for layers in base.blocks))


def _variant(base: DenseNetSpec, value: str) -> DenseNetSpec:
    return dataclasses.replace(find_variant(value).spec, num_classes=base.num_classes, head=base.head)


_CHANGES: Final[Mapping[str, Callable[[DenseNetSpec, str], DenseNetSpec]]] = {
    "growth-rate": _replacing("growth_rate", int),
    "compression": _replacing("compression", float),
    "bn-size": _replacing("bn_size", int),
    "init-features": _replacing("init_features", int),
    "depth": _deepened,
    "variant": _variant,
}


@dataclass(frozen=True)
class Latency:
    """The median call with the 95 % interval of the rounds' medians, and the most memory its process held."""

    ms: Interval
    peak_memory_bytes: int
    placement: str


@dataclass(frozen=True)
class SweepPoint:
    """One network of the sweep.

    Attributes:
        value: what the swept number is; None for a ResNet.
        activation_bytes: peak of an inference as PyTorch runs it, seen on the meta device, in float32.
        bus_bytes: the same with a dense block's features in one buffer; None for a ResNet, which has none.
        training_bytes: peak of a training step, gradients of the weights included; None where the batch is too small.
        latency: measured; None where it was not asked for.
        published: accuracies that others published for this architecture, if it is one of theirs.
    """

    name: str
    value: str | None
    parameters: int
    macs: int
    activation_bytes: int
    bus_bytes: int | None
    training_bytes: int | None
    published: Published | None
    latency: Latency | None = None

    def to_json(self) -> dict[str, object]:
        """Return the point with plain types."""
        latency = self.latency
        return asdict(self) | {
            "latency": None,
            "latency_ms": None if latency is None else latency.ms.median,
            "latency_interval_ms": None if latency is None else [latency.ms.low, latency.ms.high],
            "peak_memory_bytes": None if latency is None else latency.peak_memory_bytes,
            "placement": None if latency is None else latency.placement,
        }


@dataclass(frozen=True)
class SweepReport:
    """The points in the order of the values, the ResNets last; `base` is the network whose number was swept."""

    sweep: Sweep
    image_size: int
    batch: int
    base: ModelCost
    points: tuple[SweepPoint, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "sweep": self.sweep.name,
            "image_size": self.image_size,
            "batch": self.batch,
            **self.base.to_json(),
            "points": [point.to_json() for point in self.points],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return a table for people."""
        head = f"{self.sweep.name:>14} {'parameters':>12} {'GMACs':>7} {'act. MiB':>9} {'bus MiB':>8} {'train MiB':>10}"
        head += f" {'ms':>8} {'95 % interval':>15} {'published top-1/top-5':>22}"
        lines = [f"batch {self.batch}, {self.image_size}x{self.image_size}, fp32", "", head]
        lines += map(_row, self.points)
        where = {point.latency.placement for point in self.points if point.latency is not None}
        if where:
            lines += ["", f"ms: median call, {', '.join(sorted(where))}, each network in a process of its own"]
        sources = {point.published.source for point in self.points if point.published is not None}
        if sources:
            lines.append(f"published, not measured here: {', '.join(sorted(sources))}")
        return "\n".join(lines)


def _row(point: SweepPoint) -> str:
    bus, training = _mib(point.bus_bytes), _mib(point.training_bytes)
    ms = interval = accuracy = "-"
    if point.latency is not None:
        ms, interval = f"{point.latency.ms.median:.2f}", f"{point.latency.ms.low:.2f}-{point.latency.ms.high:.2f}"
    if point.published is not None:
        top5 = "-" if point.published.top5 is None else f"{point.published.top5:.2%}"
        accuracy = f"{point.published.top1:.2%} / {top5}"
    return (
        f"{point.value or point.name:>14} {point.parameters:12,} {point.macs / 1e9:7.3f}"
        f" {_mib(point.activation_bytes):>9} {bus:>8} {training:>10}"
        f" {ms:>8} {interval:>15} {accuracy:>22}"
    )


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / _MIB:.2f}"


@dataclass(frozen=True)
class SweepOptions:
    """How to measure; `image_size` None means the variant's, `measure` False leaves latency out."""

    image_size: int | None = None
    batch: int = 1
    measure: bool = True
    rounds: int = 5
    threads: int | None = None

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 65536)
        require_range("rounds", self.rounds, 1, 10_000)


def run_sweep(sweep: Sweep, base: DenseNetSpec, options: SweepOptions | None = None) -> SweepReport:
    """Put the networks of `sweep` beside each other and, with an ImageNet stem, beside ResNet-50 and ResNet-101.

    Raises:
        UsageError: if a value cannot be meant.
        MissingPackageError: if PyTorch is not installed.
    """
    options = options or SweepOptions()
    require_packages("export", "torch", "torchvision")
    specs = sweep.specs(base)
    size = options.image_size or variant_for(base).preprocessing.image_size
    for spec in (base, *specs.values()):
        require_range("image-size", size, spec.smallest_image_size, 8192)
    points = {value: _densenet_point(value, spec, size, options.batch) for value, spec in specs.items()}
    resnets = RESNETS if base.stem == "imagenet" else ()
    points |= {name: _resnet_point(name, size, options.batch) for name in resnets}
    if options.measure:
        result = _measured({**specs, **{name: name for name in resnets}}, size, options)
        points = {name: dataclasses.replace(point, latency=_latency(result, name)) for name, point in points.items()}
    return SweepReport(sweep, size, options.batch, model_cost(base, size), tuple(points.values()))


def _densenet_point(value: str, spec: DenseNetSpec, image_size: int, batch: int) -> SweepPoint:
    from densenet_deploy.models.build import empty_model
    from densenet_deploy.models.live_memory import inference_memory

    cost, module, name = model_cost(spec, image_size), empty_model(spec), variant_for(spec).artifact_name
    return SweepPoint(
        name=name,
        value=value,
        parameters=cost.parameters,
        macs=cost.macs,
        activation_bytes=inference_memory(module, image_size, batch).peak_bytes,
        bus_bytes=activation_memory(spec, image_size, batch).bus_bytes,
        training_bytes=_training_bytes(module, image_size, batch),
        published=_published(name, image_size, spec.num_classes),
    )


def _resnet_point(name: str, image_size: int, batch: int) -> SweepPoint:
    import torch

    from densenet_deploy.models.live_memory import inference_memory
    from densenet_deploy.models.taps import counted_cost

    with torch.device("meta"):
        module = resnet(name)
    parameters, macs = counted_cost(module, image_size)
    return SweepPoint(
        name=name,
        value=None,
        parameters=parameters,
        macs=macs,
        activation_bytes=inference_memory(module, image_size, batch).peak_bytes,
        bus_bytes=None,
        training_bytes=_training_bytes(module, image_size, batch),
        published=_published(name, image_size, 1000),
    )


def resnet(name: str) -> torch.nn.Module:
    """Return torchvision's `resnet50` or `resnet101` with random weights."""
    import torchvision

    module: torch.nn.Module = torchvision.models.get_model(name, weights=None)
    return module.eval()


def _training_bytes(module: torch.nn.Module, image_size: int, batch: int) -> int | None:
    from densenet_deploy.models.live_memory import training_memory_of

    try:
        return training_memory_of(module, image_size, batch).peak_bytes
    except UsageError:
        return None


def _published(name: str, image_size: int, classes: int) -> Published | None:
    return PUBLISHED.get(name) if (image_size, classes) == (_PUBLISHED_SIZE, 1000) else None


def _measured(networks: Mapping[str, DenseNetSpec | str], image_size: int, options: SweepOptions) -> RoundResults:
    """Time the networks; each is handed to its process as a small file that says which it is."""
    with tempfile.TemporaryDirectory() as folder:
        candidates = {}
        for number, (name, network) in enumerate(networks.items()):
            path = Path(folder) / f"{number}.json"
            spec = network.to_facts() if isinstance(network, DenseNetSpec) else None
            facts = {"spec": spec, "torchvision": None if spec else network, "image_size": image_size}
            write_file(path, json.dumps(facts).encode())
            candidates[name] = Candidate(path, "torch", options.batch, threads=options.threads, program=_PROGRAM)
        return compare_speed(candidates, rounds=options.rounds)


def _latency(result: RoundResults, name: str) -> Latency:
    turns = result.timings[name]
    peak = max(turn.peak_memory_bytes for turn in turns)
    return Latency(Interval.of([turn.median * 1e3 for turn in turns]), peak, result.placements[name])
