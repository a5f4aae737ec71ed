"""One adapter for `tensorrt` 10.x, `tensorrt` 11.x and `tensorrt_rtx`: an ONNX file becomes an engine.

Networks are strongly typed: the graph determines every type, and no flag changes it. `_Work` holds all objects that
TensorRT returns until the plan exists, because the bindings do not keep all of them alive: a parser that outlives its
network crashes.

A 10.x that cannot build the graph strongly typed (the flag exists since 10.0 and is complete since 10.12), or that has
no strong typing, builds it weakly typed with the flags FP16 and INT8. Types are then permissions, and what became of
them is read back as always.

What an installed TensorRT cannot do is read off its classes, and reported before anything is built. TensorRT-RTX, known
by its list of compute capabilities, has the setters of full TensorRT but ignores some of them; `require_supported`
refuses those too.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from densenet_deploy.artifacts import os_errors_about, write_file
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.errors import (
    BackendError,
    DensenetDeployError,
    DeviceError,
    ModelFileError,
    ResourceError,
    UsageError,
)
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.nvidia import Gpu
from densenet_deploy.runtime.sidecar import TensorFacts
from densenet_deploy.runtime.trt import TensorRT

_DTYPES: Final = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32"}
_PRECISIONS: Final = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8"}
_VERBOSITY: Final = {"detailed": "DETAILED", "names": "LAYER_NAMES_ONLY", "none": "NONE"}
_HARDWARE: Final = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
_MEMORY_WORDS: Final = (
    *("out of memory", "outofmemory", "bad_alloc"),
    *("insufficient memory", "failed to allocate", "cannot allocate memory"),
    "resource temporarily unavailable",  # no memory for the stack of another thread
)
_WEAK_FLAGS: Final = {"fp32": (), "fp16": ("FP16",), "bf16": ("BF16",), "int8": ("FP16", "INT8")}
_WEAK_NOTE: Final = "this TensorRT could not build the graph strongly typed; it was built with precision flags instead"


def require_supported(trt: TensorRT, options: BuildOptions, gpus: Collection[Gpu]) -> None:
    """Check that `trt`, on a machine with `gpus`, can build with `options`.

    Raises:
        DeviceError: if it needs a GPU or a DLA that is not there.
        BackendError: if this TensorRT cannot do it at all.
    """
    if trt.features.compute_capabilities:
        _require_rtx(trt, options, gpus)
    else:
        _require_full(trt, options, gpus)
    for flag in _builder_flags(options):
        if not hasattr(trt.module.BuilderFlag, flag):
            raise BackendError(f"BuilderFlag.{flag}", f"does not exist in {_named(trt)}", "leave it out")


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, and what TensorRT read in the graph.

    Attributes:
        plan: a buffer with the bytes.
        inputs, outputs: of the network; a dimension of None is the profile's.
        profiles: ranges of batch sizes, at least one.
        asked: the precision that the graph asks for, by the name of the convolution.
    """

    plan: Any
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    profiles: tuple[BatchProfile, ...]
    asked: dict[str, str]
    notes: tuple[str, ...]
    parse_seconds: float
    build_seconds: float


def engine_from_onnx(trt: TensorRT, path: Path, options: BuildOptions) -> BuiltEngine:
    """Build an engine from the ONNX file at `path`.

    Raises:
        ModelFileError: if TensorRT's parser refuses the graph, or finds nothing in it.
        UsageError: if the profiles are not for this graph.
        ResourceError: if memory, or the workspace, is too small.
        BackendError: if the build fails.
    """
    strong = trt.features.strong_typing
    try:
        return _built(trt, path, options, strong=strong)
    except BackendError:
        if not (strong and trt.features.weak_typing):
            raise
        return _built(trt, path, options, strong=False)


@dataclass
class _Work:
    """The objects that must stay alive until the plan exists."""

    builder: Any
    network: Any
    parser: Any
    config: Any


def _built(trt: TensorRT, path: Path, options: BuildOptions, *, strong: bool) -> BuiltEngine:
    start = time.perf_counter()
    work = _parsed(trt, path, strong=strong)
    _set_flags(trt, work.config, options, strong=strong)
    _set_choices(trt, work.config, options)
    cache_notes = _set_timing_cache(work.config, options)
    profiles = _add_profiles(trt, work, options)
    parsed = time.perf_counter()
    plan = work.builder.build_serialized_network(work.network, work.config)
    if plan is None:
        raise _failure(trt, path)
    _keep_timing_cache(work.config, options)
    notes = () if strong else (_WEAK_NOTE,)
    return BuiltEngine(
        plan,
        tuple(_facts(work.network.get_input(index)) for index in range(work.network.num_inputs)),
        tuple(_facts(work.network.get_output(index)) for index in range(work.network.num_outputs)),
        profiles,
        _asked(trt, work.network),
        (*notes, *cache_notes),
        parsed - start,
        time.perf_counter() - parsed,
    )


def _parsed(trt: TensorRT, path: Path, *, strong: bool) -> _Work:
    """Parse the file into a network."""
    with os_errors_about(path):
        data = path.read_bytes()
    trt.log.take_errors()
    builder = trt.module.Builder(trt.log.native)
    network = builder.create_network(_creation_flags(trt, strong=strong))
    parser = trt.module.OnnxParser(network, trt.log.native)
    if not parser.parse(data, *_folder_hint(path)):
        raise ModelFileError(path, f"TensorRT's parser refuses it: {_parser_error(parser)}", "export it again")
    if network.num_layers == 0 or network.num_outputs == 0:  # bytes that are not a model parse as an empty network
        raise ModelFileError(path, "holds no graph for TensorRT's parser", "export it again")
    return _Work(builder, network, parser, builder.create_builder_config())


def _folder_hint(path: Path) -> tuple[str, ...]:
    """The path, beside which the parser looks for external data; nothing if it is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return ()
    return (str(path),)


def _creation_flags(trt: TensorRT, *, strong: bool) -> int:
    name = "STRONGLY_TYPED" if strong else "EXPLICIT_BATCH"  # their values differ between releases
    flag = getattr(trt.module.NetworkDefinitionCreationFlag, name, None)
    return 0 if flag is None else 1 << int(flag)


def _parser_error(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return "it gives no reason"
    first = errors[0]
    where = f"at {first.node_name() or first.node_operator()}: " if first.node_operator() else ""
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}{' '.join(first.desc().split())}{more}"


def _set_flags(trt: TensorRT, config: Any, options: BuildOptions, *, strong: bool) -> None:
    flags = trt.module.BuilderFlag
    (config.set_flag if options.tf32 else config.clear_flag)(flags.TF32)
    for name in (*_builder_flags(options), *(() if strong else _WEAK_FLAGS[options.precision])):
        config.set_flag(getattr(flags, name))


def _set_choices(trt: TensorRT, config: Any, options: BuildOptions) -> None:
    module = trt.module
    config.profiling_verbosity = getattr(module.ProfilingVerbosity, _VERBOSITY[options.verbosity])
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.hardware != "none":
        config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, _HARDWARE[options.hardware])
    if options.dla is not None:
        config.default_device_type, config.DLA_core = module.DeviceType.DLA, options.dla
    _set_targets(trt, config, options)


def _set_targets(trt: TensorRT, config: Any, options: BuildOptions) -> None:
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
    for index, target in enumerate(options.targets):
        capability = getattr(trt.module.ComputeCapability, "SM" + target.replace(".", ""))
        if not config.set_compute_capability(capability, index):
            raise BackendError(f"--target={target}", trt.log.last_error(), "leave this target out")


def _add_profiles(trt: TensorRT, work: _Work, options: BuildOptions) -> tuple[BatchProfile, ...]:
    """Add an optimization profile for each range of batches, and return the ranges."""
    name, fixed, sizes = _image_input(work.network)
    profiles = options.profiles or (BatchProfile(*[fixed or 1] * 3),)
    if fixed is not None and set(profiles) != {BatchProfile(fixed, fixed, fixed)}:
        why = f"the graph is fixed to batch {fixed}"
        raise UsageError(
            "--min-batch, --opt-batch, --max-batch", why, "export it with --batch dynamic, or leave them out"
        )
    if fixed is not None:
        return profiles
    for batches in profiles:
        profile = work.builder.create_optimization_profile()
        profile.set_shape(name, *((batch, *sizes) for batch in (batches.min, batches.opt, batches.max)))
        if work.config.add_optimization_profile(profile) < 0:
            raise BackendError(batches, f"TensorRT refuses the profile: {trt.log.last_error()}", "give other batches")
    return profiles


def _image_input(network: Any) -> tuple[str, int | None, tuple[int, ...]]:
    """Return name, batch (None: dynamic) and other sizes of the only input."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(tensors) != 1 or len(shapes[0]) != 4 or min(shapes[0][1:]) < 1:
        found = ", ".join(f"{tensor.name} {shape}" for tensor, shape in zip(tensors, shapes, strict=True)) or "nothing"
        raise ModelFileError(
            "graph",
            f"takes {found}, expected one (N, C, H, W) input",
            "give a classifier of images, and state --image-size if it takes any",
        )
    batch, *sizes = shapes[0]
    return str(tensors[0].name), None if batch < 0 else batch, tuple(sizes)


def _facts(tensor: Any) -> TensorFacts:
    shape = tuple(None if size < 0 else int(size) for size in tensor.shape)
    return TensorFacts(str(tensor.name), _DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()), shape)


def _asked(trt: TensorRT, network: Any) -> dict[str, str]:
    """Return the precision of each convolution in the graph: INT8 where data and weights come from a Dequantize."""
    types = trt.module.LayerType
    dequantized: set[str] = set()
    asked: dict[str, str] = {}
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == types.DEQUANTIZE:
            dequantized.add(layer.get_output(0).name)
        elif layer.type in (types.CONVOLUTION, types.DECONVOLUTION):
            inputs = [layer.get_input(index) for index in range(min(layer.num_inputs, 2))]
            is_int8 = len(inputs) == 2 and all(tensor.name in dequantized for tensor in inputs)
            asked[layer.name] = "int8" if is_int8 else _PRECISIONS.get(inputs[0].dtype.name, "unknown")
    return asked


def _set_timing_cache(config: Any, options: BuildOptions) -> tuple[str, ...]:
    """Start from the timing cache on disk; one that TensorRT refuses is replaced."""
    if options.timing_cache is None:
        return ()
    path = Path(options.timing_cache)
    with os_errors_about(path):
        known = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(known)
    if cache is not None and config.set_timing_cache(cache, False):
        return ()
    empty = config.create_timing_cache(b"")
    if empty is None or not config.set_timing_cache(empty, False):
        raise BackendError(path, "TensorRT refuses a timing cache", "build without --timing-cache")
    return (f"timing cache {path.name}: written by another TensorRT or GPU, started anew",)


def _keep_timing_cache(config: Any, options: BuildOptions) -> None:
    if options.timing_cache is not None:
        write_file(Path(options.timing_cache), bytes(config.get_timing_cache().serialize()))


def _failure(trt: TensorRT, path: Path) -> DensenetDeployError:
    """Return the error for a build without a plan, with the last line of TensorRT's log."""
    lines = trt.log.take_errors()
    reason = lines[-1] if lines else "TensorRT gave no reason"
    text = " ".join(lines).lower()
    if "workspace" in text:
        return ResourceError(
            path, f"the workspace is too small: {reason}", "give more with --workspace; the ONNX is kept"
        )
    if any(words in text for words in _MEMORY_WORDS):
        fix = "close other programs or build a smaller batch; the ONNX is kept"
        return ResourceError(path, f"memory ran out while building: {reason}", fix)
    return BackendError(path, f"TensorRT cannot build it: {reason}", "build with -v to see its log")


def _builder_flags(options: BuildOptions) -> Iterator[str]:
    """Yield the names of the builder flags for `options`, except TF32."""
    if options.version_compatible:
        yield "VERSION_COMPATIBLE"
    if options.refit or options.strip_weights:
        yield "REFIT"
    if options.strip_weights:
        yield "STRIP_PLAN"
    if options.dla is not None:
        yield "GPU_FALLBACK"


def _require_rtx(trt: TensorRT, options: BuildOptions, gpus: Collection[Gpu]) -> None:
    unsupported = {
        "--hardware-compatibility": options.hardware != "none",
        "--version-compatible": options.version_compatible,
        "--timing-cache": options.timing_cache is not None,
        "--dla": options.dla is not None,
    }
    for option, is_asked in unsupported.items():
        if is_asked:
            fix = "leave it out (--target widens an RTX engine), or build with --flavour tensorrt"
            raise BackendError(option, f"is not supported by {_named(trt)}", fix)
    if (options.refit or options.strip_weights) and not gpus:
        why = f"{_named(trt)} builds refittable engines on a GPU only, and none was found"
        raise DeviceError("--strip-weights" if options.strip_weights else "--refit", why, "leave it out")
    known = _known_targets(trt)
    for target in options.targets:
        if target not in known:
            fix = f"use {', '.join(known)}; for other GPUs build on them with --flavour tensorrt"
            raise BackendError(f"--target={target}", f"is not a target of {_named(trt)}", fix)


def _require_full(trt: TensorRT, options: BuildOptions, gpus: Collection[Gpu]) -> None:
    if options.targets:
        fix = "leave it out, use --hardware-compatibility, or build with --flavour rtx"
        raise BackendError("--target", f"{_named(trt)} builds for the GPU of this machine only", fix)
    if not gpus:
        fix = "build on the device, or with --flavour rtx, which builds without one"
        raise DeviceError("GPU", f"{_named(trt)} measures kernels on a GPU, and none was found", fix)
    if options.hardware == "same-compute-capability" and not trt.features.same_compute_capability:
        fix = "use ampere-plus, or a later TensorRT"
        raise BackendError("--hardware-compatibility", f"{_named(trt)} does not have this level", fix)
    cores = 0 if options.dla is None else int(trt.module.Builder(trt.log.native).num_DLA_cores)
    if options.dla is not None and options.dla >= cores:
        raise DeviceError(f"--dla={options.dla}", f"{_named(trt)} finds {cores} DLA cores", "leave it out")


def _known_targets(trt: TensorRT) -> tuple[str, ...]:
    names = sorted(trt.module.ComputeCapability.__members__.values(), key=int)
    return tuple(f"{name.name[2:-1]}.{name.name[-1]}" for name in names if name.name.startswith("SM"))


def _named(trt: TensorRT) -> str:
    return f"TensorRT-RTX {trt.version}" if trt.flavour == "rtx" else f"TensorRT {trt.version}"
