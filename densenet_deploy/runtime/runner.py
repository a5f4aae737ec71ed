"""One interface to run a model with any backend.

>>> with open_runner("digits.onnx", device="cpu") as run:
...     run(np.zeros((4, 3, 32, 32), np.float32))["logits"].shape
(4, 10)

A backend is one file in `backends/`: a subclass of `Runner` that opens a model and implements `_run`. What all backends
have in common is here: arrays are checked before they reach native code, a closed or forked runner raises a typed
error, and results are written into the caller's buffers if there are any.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, TypeAlias

from densenet_deploy.artifacts import Artifact, StrPath
from densenet_deploy.errors import (
    BackendError,
    DeviceError,
    MissingPackageError,
    ModelFileError,
    RunnerStateError,
    UnknownNameError,
    UsageError,
    counted,
)
from densenet_deploy.manifest import Manifest
from densenet_deploy.options import or_default, require_range
from densenet_deploy.packages import imported, is_installed, require_packages
from densenet_deploy.registry import Registry
from densenet_deploy.runtime.feeds import Array, Feed, Feeds, TensorSpec, checked_feeds, delivered, value_limit
from densenet_deploy.runtime.nvidia import NvidiaOptions
from densenet_deploy.runtime.timing import OperatorTime

if TYPE_CHECKING:
    import torch

REFERENCE_BACKEND: Final = "onnxruntime"
"""The backend that others are compared with where one has to be chosen: it computes an ONNX file as it is written."""

backends: Registry[type[Runner]] = Registry("backend", "densenet_deploy.runtime.backends")


class _Process:
    """This process, as an object that every fork replaces in the child: cheaper to ask for than its number."""

    token = object()

    @classmethod
    def forked(cls) -> None:
        cls.token = object()


os.register_at_fork(after_in_child=_Process.forked)


@dataclass(frozen=True)
class Device:
    """A kind of device and which one: `cuda:1` is Device("cuda", 1)."""

    word: str
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read `cpu`, `cuda`, `cuda:1`, or any other word that a backend has among its devices.

        Raises:
            UnknownNameError: if no backend has such a device.
        """
        known = {word for kind in backends.items().values() for word in kind.devices}
        match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", text)
        if match is None or match[1] not in known:
            raise UnknownNameError.among("device", text, known)
        return cls(match[1], int(match[2] or 0))

    def __str__(self) -> str:
        return self.word if self.word == "cpu" else f"{self.word}:{self.index}"


@dataclass(frozen=True)
class RunnerOptions:
    """How to run.

    >>> RunnerOptions(threads=2, check_values=False).threads
    2

    >>> with open_runner("digits.onnx") as run:
    ...     print(run.placement.backend, run.inputs[0].name, run.outputs[0].name)
    onnxruntime input logits

    Attributes:
        threads: CPU threads per call; None takes as many as this process may use (affinity and cgroup quota).
        calls: how many calls run at the same time, with `threads` each: OpenVINO runs one after the other unless this
            says more; with other backends as many run as the caller makes.
        precision: arithmetic of the floating-point parts: `fp32`, or `bf16`/`fp16` where the backend offers it; None
            takes what the file holds. A backend that does not support it raises instead of doing something else.
        batch: the only batch size that will be fed. A model with a dynamic batch is prepared for it, which saves
            OpenVINO some work per call; other batches are then refused. A model with a fixed batch keeps its own.
        check_values: refuse feeds with NaN, Inf, or values that no normalized image has (raw 0-255 pixels, say).
        spin: let the backend's threads wait for the next call on busy cores, which is the default of most backends.
            False: they sleep, ONNX Runtime's after 20 microseconds: for programs that need the cores for more than the
            model. While a thread spins, the one that it waits for may lack a core.
        arena: let the backend keep the memory of one call for the next. False: ONNX Runtime releases it, so that memory
            does not grow over many large calls; such calls take up to a third longer.
        trust_engine: load a TensorRT engine without a sidecar. An engine is native code: load it only if you trust its
            author.
        nvidia: options of NVIDIA GPUs.
    """

    threads: int | None = None
    calls: int = 1
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
        require_range("calls", self.calls, 1, 1024)
        if self.batch is not None:
            require_range("batch", self.batch, 1, 65536)
        if self.precision not in (None, "fp32", "fp16", "bf16"):
            raise UnknownNameError.among("precision", str(self.precision), ("fp32", "fp16", "bf16"))


@dataclass(frozen=True)
class Placement:
    """What really runs the model, read back from the backend after loading rather than taken from the options.

    `notes` hold what else is worth knowing: CUDA graphs, nodes on other devices.
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
        return ", ".join((*words, counted(self.threads, "thread"), *self.notes))


@dataclass(frozen=True)
class ModuleSource:
    """An `nn.Module` together with its facts: what `open_runner` gives the torch backend.

    >>> open_runner(ModuleSource(module, output_names=("logits", "embedding")))      # doctest: +SKIP

    Attributes:
        module: takes one (N, C, H, W) tensor and returns a tensor, a tuple or list of tensors, or a dict of them.
        manifest: the facts of the model; None if nothing is known of it.
        output_names: names of the outputs, in order; empty leaves the naming to the backend.
        channels: of the input images; None takes those of the first convolution.
    """

    module: torch.nn.Module
    manifest: Manifest | None = None
    output_names: tuple[str, ...] = ()
    channels: int | None = None


RunnerSource = Artifact | ModuleSource
"""What a backend opens."""


class _HasRunnerSource(Protocol):
    def runner_source(self) -> Any: ...


class _Serializable(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


ModelSource: TypeAlias = (
    "StrPath | bytes | bytearray | memoryview | torch.nn.Module | RunnerSource | _HasRunnerSource | _Serializable"
)
"""What `open_runner` takes."""


@dataclass(frozen=True)
class ProfileRequest:
    """What to profile, on which device and batch.

    The result is the median of `calls` calls, after `timing.WARM_UP_CALLS` that do not count.
    """

    source: RunnerSource
    device: Device
    options: RunnerOptions
    feeds: Feeds
    calls: int


class Runner(ABC):
    """A loaded model: callable, safe to use from many threads, and a context manager.

    It cannot be used after `close`, nor in a child process that was forked after it was opened.

    Attributes:
        inputs, outputs: names, shapes and types of what the model takes and returns.
        manifest: the facts that travel with the model, or None where it carries none.
        placement: backend, provider, device and precision that really run.
        activations: outputs that are known to end in a `softmax` or `sigmoid`, by name, and those that are computed
            from such scores (`unknown`); None where it cannot be known.
        name, suffixes, devices: of the backend: its name, the files that it reads, the words of its devices.
        reads_modules: whether it runs an `nn.Module`.
        requires, extra: the package that it needs, and the extra of this one that installs it.
        shows_inner_tensors: whether inner tensors of a quantized ONNX file, made outputs, keep the values of the graph.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    reads_modules: ClassVar[bool] = False
    requires: ClassVar[str]
    extra: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    shows_inner_tensors: ClassVar[bool] = False

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    manifest: Manifest | None
    placement: Placement
    activations: Mapping[str, str] | None = None

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
        stated = None
        if manifest is not None and (manifest.states_normalization or not manifest.is_third_party):
            stated = manifest.preprocessing
        self._value_limit = value_limit(stated) if check_values else None
        self._process = _Process.token
        self._handle: object | None = handle

    @classmethod
    def suits(cls, artifact: Artifact) -> bool:
        """Whether the file was made for this backend, which is then the first choice among those that read it."""
        return artifact.manifest is not None and artifact.manifest.recipe == cls.name

    @classmethod
    @abstractmethod
    def open(cls, source: RunnerSource, device: Device | None, options: RunnerOptions) -> Runner:
        """Load a model.

        Args:
            source: what `suits` accepted.
            device: None takes the best one that works.
            options: how to run.

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
        """Load the model again with the backend's own profiler, and return the times of its operators.

        Raises:
            BackendError: if the backend does not report times per operator.
        """
        why = f"does not report times per operator on {request.device}"
        raise BackendError(cls.name, why, "profile on another backend")

    @abstractmethod
    def _run(self, handle: Any, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run checked, contiguous feeds on the `handle` that the constructor was given; return arrays of their own."""

    def run(self, feeds: Feeds | Feed, outputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run one batch.

        >>> with open_runner("digits.onnx") as runner:
        ...     runner.run(np.zeros((1, 3, 32, 32), np.float32))["logits"].shape
        (1, 10)

        Args:
            feeds: an array for every input, by name, or the array itself if the model has one input. NumPy arrays,
                torch tensors, and whatever has `__array__`; dtype and shape as in `inputs`.
            outputs: arrays to write results into, by output name; others are newly allocated.

        Returns:
            Output name → array, owned by the caller (the caller's own buffer where one was given).

        Raises:
            FeedError: if a feed or buffer has the wrong name, type, shape or values.
            RunnerStateError: after `close`, or in a child that forked after the runner was opened.
        """
        handle = self._open_handle()
        results = self._run(handle, self.checked(feeds))
        return results if outputs is None else delivered(results, outputs)

    def checked(self, feeds: Feeds | Feed, inputs: tuple[TensorSpec, ...] | None = None) -> dict[str, Array]:
        """Return feeds as `run` takes them: contiguous NumPy arrays by name, without running the model.

        Args:
            feeds: see `run`.
            inputs: what they are checked against; None takes the model's.

        Raises:
            FeedError: if one has the wrong name, type, shape or values.
        """
        return checked_feeds(self.inputs if inputs is None else inputs, feeds, self._value_limit)

    def __call__(self, feeds: Feeds | Feed, outputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run one batch; see `run`."""
        return self.run(feeds, outputs)

    @property
    def is_usable(self) -> bool:
        """Whether it is open, and was opened by this process."""
        return self._handle is not None and self._process is _Process.token

    def _open_handle(self) -> Any:
        """Return the handle: a local reference keeps it alive when another thread calls `close`."""
        handle = self._handle
        if handle is None:
            raise RunnerStateError(self.name, "was closed", "open it again with open_runner()")
        if self._process is not _Process.token:
            raise RunnerStateError(self.name, "was opened before this process forked", "open a runner in each process")
        return handle

    def close(self) -> None:
        """Release the model, which is freed when calls in progress have ended. Closing twice is harmless."""
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.placement}{', closed' if self._handle is None else ''}>"


def open_runner(
    source: ModelSource, backend: str | None = None, device: str | None = None, options: RunnerOptions | None = None
) -> Runner:
    """Load a model and return its runner.

    >>> with open_runner("digits.onnx", device="cpu") as run:
    ...     run(np.zeros((4, 3, 32, 32), np.float32))["logits"].shape
    (4, 10)

    Args:
        source: an `.onnx`, OpenVINO `.xml` or TensorRT `.engine` file; the bytes of an ONNX file, or an
            `onnx.ModelProto`; an `nn.Module` or a `ModuleSource`; or an object with a method `runner_source()` that
            returns one of these.
        backend: a name from `backends`; None takes the one that the file was made for, else the first that is
            installed and reads it.
        device: `cpu`, `cuda`, `cuda:1`, `gpu`, `npu`; None takes the best that works. A device that is named is never
            replaced by another.
        options: see `RunnerOptions`.

    Raises:
        UsageError: if `source` is none of these.
        InputError: if the model cannot be used.
        MissingPackageError: if the backend is not installed.
        DeviceError: if the named device is missing or would not be used.
    """
    model = runner_source(source)
    requested = None if device in (None, "auto") else Device.parse(str(device))
    return open_with(choose_backend(model, backend), model, requested, or_default(options, RunnerOptions))


def open_with(kind: type[Runner], model: RunnerSource, device: Device | None, options: RunnerOptions) -> Runner:
    """Load a model with the backend `kind`, which reads it; `device` None takes the best that works.

    Raises:
        InputError: if the model cannot be used.
        DeviceError: if the device is missing or would not be used.
    """
    if device is not None and device.word not in kind.devices:
        raise DeviceError(device, f"is not a device of {kind.name}", f"use: {', '.join(kind.devices)}")
    runner = kind.open(model, device, options)
    try:
        if not runner.inputs or not runner.outputs:
            raise ModelFileError(_name_of(model), "has no input or no output", "export the model again")
        runner.activations = _activations(model, runner.manifest)
    except BaseException:
        runner.close()
        raise
    if options.batch is not None:
        runner.inputs = tuple(spec.of_batch(options.batch) for spec in runner.inputs)
    return runner


def _activations(model: RunnerSource, manifest: Manifest | None) -> Mapping[str, str] | None:
    """What the graph shows, else what the facts that came with it say."""
    if isinstance(model, Artifact) and model.kind == "onnx":
        return model.activations()
    return None if manifest is None or (manifest.is_third_party and not manifest.activations) else manifest.activations


def runner_source(source: ModelSource) -> RunnerSource:
    """Return whatever `open_runner` takes in the form that backends open.

    Raises:
        UsageError: if it is nothing of the kind.
        InputError: if the file cannot be used.
    """
    if isinstance(source, (Artifact, ModuleSource)):
        return source
    if isinstance(source, (str, os.PathLike)):
        return Artifact.open(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Artifact.open(bytes(source))
    torch = imported("torch")  # no module exists before torch is imported
    if torch is not None and isinstance(source, torch.nn.Module):
        return ModuleSource(source)
    if (inner := getattr(source, "runner_source", None)) is not None:
        return runner_source(inner())
    if (serialize := getattr(source, "SerializeToString", None)) is not None:
        return Artifact.open(serialize())
    raise UsageError(type(source).__name__, "is not a model", "give a path, the bytes of an ONNX file or an nn.Module")


def backends_reading(suffix: str) -> list[type[Runner]]:
    """Return the backends that read files of `suffix`, installed or not, by name."""
    return [kind for kind in backends.items().values() if suffix in kind.suffixes]


def first_installed(kinds: list[type[Runner]]) -> type[Runner]:
    """Return the first backend with an installed package.

    Raises:
        MissingPackageError: if none is, naming the first one's.
    """
    for kind in kinds:
        if is_installed(kind.requires):
            return kind
    raise MissingPackageError.of(kinds[0].requires, kinds[0].extra)


def choose_backend(source: RunnerSource, name: str | None) -> type[Runner]:
    """Return the backend that `open_runner` takes.

    Raises:
        BackendError: if the named one does not read `source`, or none does.
        MissingPackageError: if it is not installed.
    """
    readers = _readers(source)
    if name in (None, "auto"):
        return first_installed(readers)
    kind = backends.get(str(name))
    if kind not in readers:
        what = f"{_suffix_of(source)} files" if isinstance(source, Artifact) else "an nn.Module"
        raise BackendError(name, f"cannot run {what}", f"use: {', '.join(k.name for k in readers)}")
    require_packages(kind.extra, kind.requires)
    return kind


def _readers(source: RunnerSource) -> list[type[Runner]]:
    """Backends that read `source`; first the one it was made for, then by name."""
    if isinstance(source, ModuleSource):
        return [kind for kind in backends.items().values() if kind.reads_modules]
    if source.kind == "checkpoint":
        raise ModelFileError(source.path, "is a checkpoint", "load it first: densenet_deploy.load(path).runner()")
    readers = backends_reading(_suffix_of(source))
    if not readers:
        why = f"no backend here reads {_suffix_of(source)} files"
        raise BackendError(source.path, why, "export the model to .onnx")
    return sorted(readers, key=lambda kind: not kind.suits(source))


def _suffix_of(artifact: Artifact) -> str:
    return artifact.path.suffix.lower() if artifact.data is None else ".onnx"


def _name_of(source: RunnerSource) -> object:
    return source.path if isinstance(source, Artifact) else type(source.module).__name__
