"""What a TensorRT at hand cannot give, said before anything is built.

Most of it is read off the module's classes. TensorRT-RTX, told by its list of compute capabilities, has the setters of
full TensorRT and ignores what they set; that is known from trying, and said here too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.errors import BackendError, DeviceError
from densenet_deploy.options import require_choice
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.nvidia import Gpu, find_gpus
from densenet_deploy.runtime.trt import FLAVOURS, MODULES, TensorRT


def choose_flavour(word: str) -> str:
    """Return the flavour that `word` means; `auto` is `tensorrt` where it is installed and a GPU answers, else `rtx`.

    Raises:
        UnknownNameError: if there is no such flavour.
    """
    require_choice("flavour", word, ("auto", *FLAVOURS))
    if word != "auto":
        return word
    return "tensorrt" if is_installed(MODULES["tensorrt"]) and find_gpus() else "rtx"


def require_supported(trt: TensorRT, options: BuildOptions, gpus: Collection[Gpu]) -> None:
    """Check that `trt`, on a machine with `gpus`, can build as asked.

    Raises:
        DeviceError: if it takes a GPU, or a DLA, that is not there.
        BackendError: if this TensorRT cannot do it at all.
    """
    if trt.features.compute_capabilities:
        _require_rtx(trt, options, gpus)
    else:
        _require_full(trt, options, gpus)
    for flag in builder_flags(options):
        if not hasattr(trt.module.BuilderFlag, flag):
            raise BackendError(f"BuilderFlag.{flag}", f"is not in {trt.flavour} {trt.version}", "leave it out")


def builder_flags(options: BuildOptions) -> Iterator[str]:
    """Yield the names of the builder flags that `options` ask for, TF32 apart."""
    if options.version_compatible:
        yield "VERSION_COMPATIBLE"
    if options.refit or options.strip_weights:
        yield "REFIT"
    if options.strip_weights:
        yield "STRIP_PLAN"
    if options.dla is not None:
        yield "GPU_FALLBACK"


def target_names(targets: Collection[str]) -> tuple[str, ...]:
    """Return compute capabilities as TensorRT-RTX calls them: `8.6` is SM86."""
    return tuple("SM" + target.replace(".", "") for target in targets)


def _require_rtx(trt: TensorRT, options: BuildOptions, gpus: Collection[Gpu]) -> None:
    refused = {
        "--hardware-compatibility": options.hardware != "none",
        "--version-compatible": options.version_compatible,
        "--timing-cache": options.timing_cache is not None,
        "--dla": options.dla is not None,
    }
    for option, asked in refused.items():
        if asked:
            fix = "leave it out (--target widens an RTX engine), or build with --flavour tensorrt"
            raise BackendError(option, f"is nothing that {_named(trt)} does", fix)
    if (options.refit or options.strip_weights) and not gpus:
        why = f"{_named(trt)} builds refittable plans only where a GPU is, and none is here"
        raise DeviceError("--strip-weights" if options.strip_weights else "--refit", why, "leave it out")
    known = _known_targets(trt)
    for target in options.targets:
        if target not in known:
            fix = f"use {', '.join(known)}; for other GPUs build on them with --flavour tensorrt"
            raise BackendError(f"--target={target}", f"is none of the GPUs that {_named(trt)} builds for", fix)


def _require_full(trt: TensorRT, options: BuildOptions, gpus: Collection[Gpu]) -> None:
    if options.targets:
        fix = "leave it out, widen the plan with --hardware-compatibility, or build with --flavour rtx"
        raise BackendError("--target", f"{_named(trt)} builds for the GPU at hand", fix)
    if not gpus:
        fix = "build on the device, or with --flavour rtx, which needs no GPU"
        raise DeviceError("GPU", f"{_named(trt)} times kernels on one, and the driver shows none", fix)
    if options.hardware == "same-compute-capability" and not trt.features.same_compute_capability:
        fix = "use ampere-plus, or a later TensorRT"
        raise BackendError("--hardware-compatibility", f"{_named(trt)} has no such level", fix)
    cores = 0 if options.dla is None else int(trt.module.Builder(trt.log.native).num_DLA_cores)
    if options.dla is not None and options.dla >= cores:
        raise DeviceError(f"--dla={options.dla}", f"{_named(trt)} finds {cores} DLA cores here", "leave it out")


def _known_targets(trt: TensorRT) -> tuple[str, ...]:
    names = sorted(trt.module.ComputeCapability.__members__.values(), key=int)
    return tuple(f"{name.name[2:-1]}.{name.name[-1]}" for name in names if name.name.startswith("SM"))


def _named(trt: TensorRT) -> str:
    return f"TensorRT-RTX {trt.version}" if trt.flavour == "rtx" else f"TensorRT {trt.version}"
