"""One way to run a model, whatever runs it.

>>> with open_runner("artifacts/densenet121.onnx") as runner:      # doctest: +SKIP
...     logits = runner.run({"input": batch})["logits"]            # (N, 1000) float32

A backend is one file in `backends/`: a subclass of `Runner` that opens a model and implements `_run`. What every
backend owes its callers lives here once: arrays are checked before they reach native code, a closed or forked runner
says so, results land in the caller's buffers when those are given.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import (
    BackendError,
    DeviceError,
    MissingPackageError,
    ModelFileError,
    RunnerStateError,
    UnknownNameError,
)
from densenet_deploy.manifest import Manifest
from densenet_deploy.options import require_range
from densenet_deploy.packages import is_installed, require_packages
from densenet_deploy.registry import Registry
from densenet_deploy.runtime.feeds import Array, Feeds, TensorSpec, checked_feeds, delivered, value_limit
from densenet_deploy.runtime.nvidia_options import NvidiaOptions
from densenet_deploy.runtime.operator_times import OperatorTime

if TYPE_CHECKING:
    import torch

DEVICE_WORDS: Final = ("cpu", "cuda", "gpu", "npu")

backends: Registry[type[Runner]] = Registry("backend", "densenet_deploy.runtime.backends")


class _Forks:
    """How many forks lie between this process and the one that imported this module: cheaper to ask than its id."""

    count = 0

    @classmethod
    def add(cls) -> None:
        cls.count += 1


_forks: Final = _Forks()
os.register_at_fork(after_in_child=_forks.add)


@dataclass(frozen=True)
class Device:
    """A kind of device and which one: `cuda:1` is Device("cuda", 1)."""

    word: str
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read `cpu`, `cuda`, `cuda:1`, `gpu`, `npu`.

        Raises:
            UnknownNameError: if the word is none of these.
        """
        match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", text)
        if match is None or match[1] not in DEVICE_WORDS:
            raise UnknownNameError.among("device", text, DEVICE_WORDS)
        return cls(match[1], int(match[2] or 0))

    def __str__(self) -> str:
        return self.word if self.word == "cpu" else f"{self.word}:{self.index}"


@dataclass(frozen=True)
class RunnerOptions:
    """How to run.

    Attributes:
        threads: CPU threads of one call; None means as many as this process may use (affinity and cgroup quota).
        precision: arithmetic of the float parts: `fp32`, or `bf16`/`fp16` where the backend offers it; None means what
            the file holds. A backend that cannot do it raises instead of doing something else.
        batch: the one batch size that will be fed. A model that takes any is prepared for this one alone, which spares
            OpenVINO some work in every call; other feeds are then refused. A model of a fixed batch keeps its own.
        check_values: refuse feeds with NaN, Inf, or values no normalized image has (0-255 pixels, say).
        spin: let the backend's threads wait for the next call on busy cores, as is its way. False: between two calls
            they leave the cores to others; ONNX Runtime's would do so only after tens of milliseconds.
        arena: let the backend keep the memory of one call for the next, as is its way. False: ONNX Runtime gives it
            back, so that a long run of large calls stays as small as it began; such calls take up to a third longer.
        trust_engine: load a TensorRT plan that no sidecar vouches for. A plan is native code: trust its author.
        nvidia: what only an NVIDIA GPU has.
    """

    threads: int | None = None
    precision: str | None = None
    batch: int | None = None
    check_values: bool = True
    spin: bool = True
    arena: bool = True
    trust_engine: bool = False
    nvidia: NvidiaOptions = field(default_factory=NvidiaOptions)

    def __post_init__(self) -> None:
        if self.threads is not None:
            require_range("threads", self.threads, 1, 1024)
        if self.batch is not None:
            require_range("batch", self.batch, 1, 65536)
        if self.precision not in (None, "fp32", "fp16", "bf16"):
            raise UnknownNameError.among("precision", str(self.precision), ("fp32", "fp16", "bf16"))


@dataclass(frozen=True)
class Placement:
    """What really runs the model, read back from the backend after loading: not what was asked for.

    `notes` say what else is worth knowing: CUDA graphs, nodes on other devices.
    """

    backend: str
    version: str
    device: str
    provider: str
    precision: str
    threads: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = (f"{self.backend} {self.version}", self.provider, self.device, self.precision)
        return ", ".join((*words, f"{self.threads} threads", *self.notes))


@dataclass(frozen=True)
class ProfileRequest:
    """What to profile, where a runner of it was found to run, on which batch.

    The median of `calls` calls is wanted, after `operator_times.WARM_UP_CALLS` that do not count.
    """

    source: Artifact | torch.nn.Module
    device: Device
    options: RunnerOptions
    feeds: Feeds
    calls: int


class Runner(ABC):
    """A loaded model. Safe to call from many threads; a context manager; not usable after `close` or in a forked child.

    Attributes:
        inputs, outputs: what the model takes and gives.
        manifest: the facts that travel with the model, or None for a stranger's file.
        placement: backend, provider, device and precision that really run.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[str]
    extra: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    manifest: Manifest | None
    placement: Placement

    def __init__(
        self,
        handle: object,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        placement: Placement,
        manifest: Manifest | None,
        *,
        check_values: bool = True,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.placement, self.manifest = placement, manifest
        self._value_limit = value_limit(manifest.preprocessing if manifest else None) if check_values else None
        self._fork = _forks.count
        self._handle: object | None = handle

    @classmethod
    def suits(cls, artifact: Artifact) -> bool:
        """Whether the file was made for this backend, which then comes first among those that read it."""
        return artifact.manifest is not None and artifact.manifest.recipe == cls.name

    @classmethod
    @abstractmethod
    def open(cls, source: Artifact | torch.nn.Module, device: Device | None, options: RunnerOptions) -> Runner:
        """Load `source`; `device` None means the best one that works.

        Raises:
            ModelFileError: if the file is not a model this backend can run.
            DeviceError: if the device is missing, or the backend would run elsewhere.
        """

    @classmethod
    @abstractmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        """Import the backend and return its version and the devices that answer."""

    @classmethod
    def profile(cls, request: ProfileRequest) -> tuple[OperatorTime, ...]:
        """Load the model once more with the backend's own profiler on, and return what its operators took.

        Raises:
            BackendError: if the backend tells no times by operator.
        """
        raise BackendError(cls.name, f"tells no times by operator on {request.device}", "profile on another backend")

    @abstractmethod
    def _run(self, handle: Any, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run checked, contiguous feeds on `handle`, the object that the constructor was given; return owned arrays."""

    def run(self, feeds: Feeds, outputs: Feeds | None = None) -> dict[str, Array]:
        """Run one batch.

        Args:
            feeds: an array for every input, by name; dtype and shape as in `inputs`.
            outputs: arrays to write results into, by output name; others are newly allocated.

        Returns:
            Output name → array, owned by the caller (the caller's own buffer where one was given).

        Raises:
            FeedError: if a feed or buffer has the wrong name, type, shape or values.
            RunnerStateError: after `close`, or in a child that forked after the runner was opened.
        """
        handle = self._open_handle()
        results = self._run(handle, checked_feeds(self.inputs, feeds, self._value_limit))
        return results if outputs is None else delivered(results, outputs)

    @property
    def is_usable(self) -> bool:
        """Whether it is neither closed nor another process's."""
        return self._handle is not None and _forks.count == self._fork

    def _open_handle(self) -> Any:
        """Return the handle: a local reference keeps it alive when another thread calls `close`."""
        handle = self._handle
        if handle is None:
            raise RunnerStateError(self.name, "was closed", "open it again with open_runner()")
        if _forks.count != self._fork:
            raise RunnerStateError(self.name, "was opened before this process forked", "open a runner in each process")
        return handle

    def close(self) -> None:
        """Let go of the model, which is freed when calls under way have ended. Calling it twice is harmless."""
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.placement}{', closed' if self._handle is None else ''}>"


def open_runner(
    source: str | os.PathLike[str] | torch.nn.Module,
    backend: str | None = None,
    device: str | None = None,
    options: RunnerOptions | None = None,
) -> Runner:
    """Load a model file or an `nn.Module` and return its runner.

    Args:
        source: an `.onnx`, OpenVINO `.xml` or TensorRT `.engine` file, or a module.
        backend: a name from `backends`; None takes the one the file was made for, else the first installed that reads
        it.
        device: `cpu`, `cuda`, `cuda:1`, `gpu`, `npu`; None takes the best that works. A named device is never replaced.
        options: see `RunnerOptions`.

    Raises:
        InputError: if the file cannot be used.
        MissingPackageError: if the backend is not installed.
        DeviceError: if the named device is missing or would not be used.
    """
    model = Artifact.open(Path(source)) if isinstance(source, (str, os.PathLike)) else source
    wanted_device = None if device in (None, "auto") else Device.parse(str(device))
    kind = choose_backend(model, backend)
    if wanted_device is not None and wanted_device.word not in kind.devices:
        raise DeviceError(wanted_device, f"is none of the devices of {kind.name}", f"use: {', '.join(kind.devices)}")
    options = options or RunnerOptions()
    runner = kind.open(model, wanted_device, options)
    if not runner.inputs or not runner.outputs:
        runner.close()
        raise ModelFileError(source, "has no input or no output", "export the model again")
    if options.batch is not None:
        runner.inputs = tuple(spec.of_batch(options.batch) for spec in runner.inputs)
    return runner


def backends_reading(suffix: str) -> list[type[Runner]]:
    """Return the backends that read files of `suffix`, installed or not, by name."""
    return [kind for _, kind in sorted(backends.items().items()) if suffix in kind.suffixes]


def first_installed(kinds: list[type[Runner]]) -> type[Runner]:
    """Return the first backend whose package is installed.

    Raises:
        MissingPackageError: if none is, naming the first's.
    """
    for kind in kinds:
        if is_installed(kind.requires):
            return kind
    raise MissingPackageError.of(kinds[0].requires, kinds[0].extra)


def choose_backend(source: Artifact | torch.nn.Module, name: str | None) -> type[Runner]:
    """Return the backend that `open_runner` takes.

    Raises:
        BackendError: if the one that was named does not read `source`, or none does.
        MissingPackageError: if it is not installed.
    """
    readers = _readers(source)
    if name in (None, "auto"):
        return first_installed(readers)
    kind = backends.get(str(name))
    if kind not in readers:
        what = f"{source.path.suffix} files" if isinstance(source, Artifact) else "an nn.Module"
        raise BackendError(name, f"cannot run {what}", f"use: {', '.join(k.name for k in readers)}")
    require_packages(kind.extra, kind.requires)
    return kind


def _readers(source: Artifact | torch.nn.Module) -> list[type[Runner]]:
    """Backends that read `source`; first the one it was made for, then by name."""
    if not isinstance(source, Artifact):
        return [backends.get("torch")]
    if source.kind == "checkpoint":
        raise ModelFileError(source.path, "is a checkpoint", "build its module first: open_runner(load_model(path))")
    readers = backends_reading(source.path.suffix.lower())
    if not readers:
        raise BackendError(
            source.path, f"no backend here reads {source.path.suffix} files", "export the model to .onnx"
        )
    return sorted(readers, key=lambda kind: not kind.suits(source))
