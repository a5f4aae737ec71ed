"""The line of NVIDIA's own tool that builds the same engine: `trtexec`, or `tensorrt_rtx` for TensorRT-RTX."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from densenet_deploy.engines.options import BuildOptions

_TOOLS: Final = {"tensorrt": "trtexec", "rtx": "tensorrt_rtx"}
_HARDWARE: Final = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}
_VERBOSITY: Final = {"detailed": "detailed", "names": "layer_names_only", "none": "none"}


def equivalent_command(
    options: BuildOptions, onnx: Path, engine: Path, input_name: str, sizes: tuple[int, ...], fixed_batch: int | None
) -> str:
    """Return the command, quoted for a shell.

    Args:
        options: of the build.
        onnx: the file with the precision inside.
        engine: where the plan would go.
        input_name: of the graph.
        sizes: of its input, without the batch.
        fixed_batch: the batch that the file is fixed to, or None.
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
        "--hardwareCompatibilityLevel": _HARDWARE.get(options.hardware),
        "--useDLACore": options.dla,
        "--maxAuxStreams": options.aux_streams,
        "--computeCapabilities": ",".join(target.replace(".", "") for target in options.targets) or None,
        "--profilingVerbosity": _VERBOSITY[options.verbosity],
    }
    yield from (f"{flag}={value}" for flag, value in valued.items() if value is not None)
    flags = {
        "--versionCompatible": options.version_compatible,
        "--refit": options.refit or options.strip_weights,
        "--stripWeights": options.strip_weights,
        "--allowGPUFallback": options.dla is not None,
    }
    yield from (flag for flag, asked in flags.items() if asked)
