"""The options of a build, for every TensorRT alike, and the command of NVIDIA's own tool that builds the same.

What an installed TensorRT cannot do is checked in `tensorrt.py`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.nvidia import Gpu, find_gpus
from densenet_deploy.runtime.sidecar import HARDWARE_LEVELS, PRECISIONS
from densenet_deploy.runtime.trt import FLAVOURS, MODULES

AUTO: Final = "auto"
VERBOSITIES: Final = ("detailed", "names", "none")

_LARGEST_BATCH: Final = 65536
_TOOLS: Final = {"tensorrt": "trtexec", "rtx": "tensorrt_rtx"}
_TOOL_HARDWARE: Final = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}
_TOOL_VERBOSITY: Final = {"detailed": "detailed", "names": "layer_names_only", "none": "none"}


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    >>> from densenet_deploy.engines.options import batch_profiles
    >>> BuildOptions("rtx", "int8", profiles=batch_profiles([], [], [8])).profiles
    (BatchProfile(min=1, opt=8, max=8),)

    Attributes:
        flavour: `tensorrt`, `rtx`, or `auto`: `tensorrt` where it is installed and a GPU answers, else `rtx`.
        precision: of the graph: `fp32`, `fp16`, `bf16` or `int8`.
        profiles: ranges of batch sizes; empty means batch 1, or the batch that the graph is fixed to.
        targets: compute capabilities (`8.6`) to build for; empty means the default of the flavour: the GPU at hand for
            full TensorRT, all but Turing for TensorRT-RTX.
        tf32: whether FP32 layers may compute with 10 fraction bits.
        workspace_bytes: memory that a layer may use while it runs; None is TensorRT's default.
        optimization_level: 0 to 5; None is TensorRT's default.
        timing_cache: a file that keeps how fast kernels were.
        hardware: `none`, `ampere-plus` (GPUs from 8.0 on) or `same-compute-capability`.
        version_compatible: whether later versions may load the engine.
        refit: whether weights can be replaced later.
        strip_weights: leave the weights out of the engine; it is refitted before it runs.
        dla: the deep-learning accelerator to run on; layers that it does not support run on the GPU.
        aux_streams: streams that layers may be spread over besides the caller's.
        verbosity: what the engine tells the inspector: `detailed`, `names` or `none`.

    Raises:
        UsageError: if a value is unknown, out of range or of no use with another.
    """

    flavour: str = AUTO
    precision: str = "fp16"
    profiles: tuple[BatchProfile, ...] = ()
    targets: tuple[str, ...] = ()
    tf32: bool = False
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    hardware: str = "none"
    version_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    dla: int | None = None
    aux_streams: int | None = None
    verbosity: str = "detailed"

    def __post_init__(self) -> None:
        require_choice("flavour", self.flavour, (AUTO, *FLAVOURS))
        require_choice("precision", self.precision, PRECISIONS)
        require_choice("hardware-compatibility", self.hardware, HARDWARE_LEVELS)
        require_choice("verbosity", self.verbosity, VERBOSITIES)
        for profile in self.profiles:
            _check_profile(profile)
        for target in self.targets:
            if re.fullmatch(r"\d{1,2}\.\d", target) is None:
                raise UsageError(f"--target={target}", "is not a compute capability", "write it like --target 8.6")
        for name, value, low, high in (
            ("workspace", self.workspace_bytes, 1, 2**50),
            ("optimization-level", self.optimization_level, 0, 5),
            ("dla", self.dla, 0, 15),
            ("aux-streams", self.aux_streams, 0, 64),
        ):
            if value is not None:
                require_range(name, value, low, high)
        if self.tf32 and self.precision != "fp32":
            raise UsageError("--tf32", f"applies to FP32 layers, and the precision is {self.precision}", "use --fp32")
        if self.dla is not None and self.precision not in ("fp16", "int8"):
            raise UsageError(f"--dla={self.dla}", f"a DLA does not compute in {self.precision}", "use --fp16 or --int8")


def choose_flavour(word: str, gpus: Collection[Gpu] | None = None) -> str:
    """Return the flavour: `auto` is `tensorrt` where that is installed and a GPU answers, else `rtx`.

    Args:
        word: `auto`, `tensorrt` or `rtx`.
        gpus: of this machine; None looks for them.

    Raises:
        UnknownNameError: if the flavour is unknown.
    """
    require_choice("flavour", word, (AUTO, *FLAVOURS))
    if word != AUTO:
        return word
    is_full = is_installed(MODULES["tensorrt"]) and bool(find_gpus() if gpus is None else gpus)
    return "tensorrt" if is_full else "rtx"


def batch_profiles(low: list[int], opt: list[int], high: list[int]) -> tuple[BatchProfile, ...]:
    """Combine the numbers given for each profile, in order; numbers that are not given follow from the others.

    >>> batch_profiles([], [], [8])
    (BatchProfile(min=1, opt=8, max=8),)

    Raises:
        UsageError: if they are given for different numbers of profiles, or out of order.
    """
    count = max(len(low), len(opt), len(high))
    if any(len(numbers) not in (0, count) for numbers in (low, opt, high)):
        why = f"were given {len(low)}, {len(opt)} and {len(high)} times"
        raise UsageError("--min-batch, --opt-batch, --max-batch", why, "give each once per profile, or leave it out")
    profiles = []
    for index in range(count):
        largest = high[index] if high else (opt or low)[index]
        smallest = low[index] if low else 1
        profiles.append(BatchProfile(smallest, opt[index] if opt else largest, largest))
        _check_profile(profiles[-1])
    return tuple(profiles)


def _check_profile(profile: BatchProfile) -> None:
    for name, value in (("min", profile.min), ("opt", profile.opt), ("max", profile.max)):
        require_range(f"{name}-batch", value, 1, _LARGEST_BATCH)
    if not profile.min <= profile.opt <= profile.max:
        order = f"is out of order: min {profile.min}, opt {profile.opt}, max {profile.max}"
        raise UsageError("batch", order, "give min ≤ opt ≤ max")


def equivalent_command(
    options: BuildOptions, onnx: Path, engine: Path, input_name: str, sizes: tuple[int, ...], fixed_batch: int | None
) -> str:
    """Return the command of `trtexec`, or `tensorrt_rtx` for TensorRT-RTX, quoted for a shell.

    Args:
        options: of the build, with a definite flavour.
        onnx: the file that holds the precision.
        engine: where the engine would go.
        input_name: of the graph.
        sizes: of its input, without the batch.
        fixed_batch: the batch that the graph is fixed to, or None.
    """
    shapes = () if fixed_batch is not None else _shapes(options, input_name, sizes)
    words = (_TOOLS[options.flavour], f"--onnx={onnx}", f"--saveEngine={engine}", *_typing(options), *shapes)
    return shlex.join((*words, *_choices(options), "--skipInference"))


def _typing(options: BuildOptions) -> Iterator[str]:
    if options.flavour == "tensorrt":
        yield "--stronglyTyped"
    if not options.tf32:
        yield "--noTF32"


def _shapes(options: BuildOptions, name: str, sizes: tuple[int, ...]) -> Iterator[str]:
    batches = [(profile.min, profile.opt, profile.max) for profile in options.profiles] or [(1, 1, 1)]
    for index, profile in enumerate(batches):
        if len(batches) > 1:
            yield f"--profile={index}"
        for word, batch in zip(("min", "opt", "max"), profile, strict=True):
            yield f"--{word}Shapes={name}:{'x'.join(map(str, (batch, *sizes)))}"


def _choices(options: BuildOptions) -> Iterator[str]:
    valued = {
        "--memPoolSize": None if options.workspace_bytes is None else f"workspace:{options.workspace_bytes / 2**20:g}",
        "--builderOptimizationLevel": options.optimization_level,
        "--timingCacheFile": options.timing_cache,
        "--hardwareCompatibilityLevel": _TOOL_HARDWARE.get(options.hardware),
        "--useDLACore": options.dla,
        "--maxAuxStreams": options.aux_streams,
        "--computeCapabilities": ",".join(target.replace(".", "") for target in options.targets) or None,
        "--profilingVerbosity": _TOOL_VERBOSITY[options.verbosity],
    }
    yield from (f"{flag}={value}" for flag, value in valued.items() if value is not None)
    flags = {
        "--versionCompatible": options.version_compatible,
        "--refit": options.refit or options.strip_weights,
        "--stripWeights": options.strip_weights,
        "--allowGPUFallback": options.dla is not None,
    }
    yield from (flag for flag, is_asked in flags.items() if is_asked)
