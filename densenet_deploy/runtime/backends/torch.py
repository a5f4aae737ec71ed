"""Run an `nn.Module` with PyTorch, on CPU or CUDA.

The module is copied, set to eval mode and moved, so the caller's stays as it was. Set the number of threads only if you
mean it for the whole process: PyTorch has no number of threads per module.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from densenet_deploy.errors import BackendError, DeviceError, FeedError, ResourceError, from_memory_error
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.runner import (
    Device,
    ModuleSource,
    Placement,
    ProfileRequest,
    Runner,
    RunnerOptions,
    RunnerSource,
    backends,
)
from densenet_deploy.runtime.timing import WARM_UP_CALLS, OperatorTime, median_times

if TYPE_CHECKING:
    import torch

_INPUT: Final = "input"
_LABEL: Final = "densenet-deploy module "
_TRIAL_SIZE: Final = 224
_RETURN_FIX: Final = "return a tensor, a tuple or list of tensors, or a dict of them"


@backends.register("torch")
class TorchRunner(Runner):
    """Run a module that takes one (N, C, H, W) tensor and returns a tensor, a tuple or list of them, or a dict.

    Several outputs are named after the keys of a dict or the fields of a named tuple, else `output0`, `output1`, …
    A single one is `features` where the manifest says so, else `logits`; `ModuleSource.output_names` overrides both.
    """

    name = "torch"
    reads_modules = True
    requires = "torch"
    extra = "export"
    devices = ("cpu", "cuda")

    @classmethod
    def open(cls, source: RunnerSource, device: Device | None, options: RunnerOptions) -> Runner:
        import torch

        assert isinstance(source, ModuleSource)
        if options.precision not in (None, "fp32"):
            raise BackendError(options.precision, "the torch backend runs fp32", "export and convert the model")
        chosen = device or Device("cuda" if torch.cuda.is_available() else "cpu")
        if chosen.word == "cuda" and chosen.index >= torch.cuda.device_count():
            raise DeviceError(chosen, f"PyTorch finds {torch.cuda.device_count()} CUDA devices", "use --device cpu")
        threads = options.threads or usable_cpus()
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return cls(source, chosen, threads, options)

    @classmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        import torch

        return torch.__version__, ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))

    @classmethod
    def profile(cls, request: ProfileRequest) -> tuple[OperatorTime, ...]:
        """Read the events of torch's profiler, each under the module that it ran in; see `Runner.profile`."""
        import torch
        from torch.profiler import ProfilerActivity

        assert isinstance(request.source, ModuleSource)
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes to stderr, without a GPU even an error
        on_cuda = request.device.word == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        timed: list[list[OperatorTime]] = []
        labelled = dataclasses.replace(request.source, module=_labelled(request.source.module))
        with cls.open(labelled, request.device, request.options) as runner:
            for _ in range(WARM_UP_CALLS + request.calls):
                with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
                    runner.run(request.feeds)
                timed.append(list(_operators_timed(profiler.events() or (), on_cuda, runner.placement)))
        return median_times(timed[WARM_UP_CALLS:])

    def __init__(self, source: ModuleSource, device: Device, threads: int, options: RunnerOptions) -> None:
        import torch

        placement = Placement(
            backend=self.name,
            version=torch.__version__,
            device=str(device),
            provider="ATen" if device.word == "cpu" else torch.cuda.get_device_name(device.index),
            precision="fp32",
            threads=threads,
            notes=_notes(device),
        )
        module = _in_eval_mode(copy.deepcopy(source.module)).to(str(device))
        _require_float32(module)
        self._device = torch.device(str(device))
        self._names = source.output_names or _names_in(source)
        shape = exported_shape(source.module) or (None, _channels(source), None, None)
        super().__init__(
            module,
            (TensorSpec(_INPUT, shape, np.dtype(np.float32)),),
            self._output_specs(module, source, shape),
            placement,
            source.manifest,
            check_values=options.check_values,
        )

    def _run(self, handle: torch.nn.Module, feeds: dict[str, Array]) -> dict[str, Array]:
        return {name: tensor.cpu().numpy() for name, tensor in self._outputs_of(handle, feeds[_INPUT]).items()}

    def _outputs_of(self, module: torch.nn.Module, array: Array) -> dict[str, torch.Tensor]:
        import torch

        batch = torch.from_numpy(array if array.flags.writeable else array.copy())
        try:
            with torch.inference_mode():
                result = module(batch.to(self._device))
        except (RuntimeError, ValueError, AssertionError) as exc:
            raise _run_error(exc, array) from exc
        named = dict(named_tensors(result, self._names))
        if not named:
            raise BackendError(type(result).__name__, "is what the module returned, without a tensor", _RETURN_FIX)
        return named

    def _output_specs(
        self, module: torch.nn.Module, source: ModuleSource, shape: Sequence[int | None]
    ) -> tuple[TensorSpec, ...]:
        """Names and widths of the outputs; where they are not stated, the module runs once on zeros to find out."""
        if source.output_names or hasattr(module, "output_name"):
            width = getattr(module, "output_width", None)
            return tuple(_output_spec(name, (None, width)) for name in self._names)
        known = source.manifest.preprocessing if source.manifest else Preprocessing.default(_TRIAL_SIZE)
        trial = [size or usual for size, usual in zip(shape, (1, *known.shape), strict=True)]
        try:
            outputs = self._outputs_of(module, np.zeros(trial, np.float32))
        except FeedError:  # it takes images of another size, which only its callers know
            return tuple(_output_spec(name, (None, None)) for name in self._names)
        return tuple(
            _output_spec(name, (None, *tensor.shape[1:2], *(None for _ in tensor.shape[2:])))
            for name, tensor in outputs.items()
        )


def exported_shape(module: torch.nn.Module) -> tuple[int | None, ...] | None:
    """Return the shape (N, C, H, W) of the images that a program of `torch.export` takes, None for what may vary.

    Any other module gives None.
    """
    import torch

    if not isinstance(module, torch.fx.GraphModule):
        return None
    value = next((node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"), None)
    if not isinstance(value, torch.Tensor) or value.ndim != 4:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _notes(device: Device) -> tuple[str, ...]:
    """PyTorch's default on a GPU is not what the other backends compute FP32 in."""
    import torch

    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    in_tf32 = device.word == "cuda" and convolutions.fp32_precision == "tf32"
    return ("convolutions in TF32 where the GPU has it",) if in_tf32 else ()


def _in_eval_mode(module: torch.nn.Module) -> torch.nn.Module:
    """Return `module` in eval mode; a program of TorchScript or `torch.export` may have no modes."""
    return module.eval() if any(getattr(inner, "training", False) for inner in module.modules()) else module


def _names_in(source: ModuleSource) -> tuple[str, ...]:
    """The name of a single output, as the module or the manifest has it."""
    stated = getattr(source.module, "output_name", None)
    if isinstance(stated, str):
        return (stated,)
    head = source.manifest.spec.get("head") if source.manifest else None
    return ("features",) if head == "features" else ("logits",)


def _channels(source: ModuleSource) -> int | None:
    """The channels that the first convolution reads, or None without a convolution."""
    from torch import nn

    if source.channels is not None:
        return source.channels
    convolutions = (module for module in source.module.modules() if isinstance(module, nn.Conv2d))
    return next((convolution.in_channels for convolution in convolutions), None)


def _require_float32(module: torch.nn.Module) -> None:
    import torch

    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise BackendError(name, f"is {parameter.dtype}, the torch backend runs float32", "call module.float()")


def _output_spec(name: str, shape: tuple[int | None, ...]) -> TensorSpec:
    return TensorSpec(name, shape, np.dtype(np.float32))


def named_tensors(result: Any, names: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a module returned under their names; those of several outputs in one are nested.

    >>> import torch
    >>> [name for name, _ in named_tensors({"a": torch.zeros(1), "b": [torch.zeros(1)]}, ())]
    ['a', 'b.0']

    Args:
        result: a tensor, or tensors in dictionaries, tuples and lists.
        names: of the tensor, or of the entries of a tuple or list if they are as many; keys of a dictionary stay.
    """
    if not isinstance(result, (Mapping, tuple, list)):
        yield from _nested(names[0], result)
        return
    if isinstance(result, Mapping):
        entries = {str(key): value for key, value in result.items()}
    else:
        own = getattr(result, "_fields", None) or [f"output{index}" for index in range(len(result))]
        entries = dict(zip(names if len(names) == len(result) else own, result, strict=True))
    for name, value in entries.items():
        yield from _nested(name, value)


def _nested(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _nested(f"{name}.{key}", inner)
    elif isinstance(value, (tuple, list)):
        for index, inner in enumerate(value):
            yield from _nested(f"{name}.{index}", inner)


def _run_error(exc: Exception, array: Array) -> Exception:
    """Return the error for what PyTorch raised while it ran `array`."""
    import torch

    if isinstance(exc, torch.OutOfMemoryError):
        return ResourceError("GPU memory", "ran out", "use a smaller batch, or close other programs")
    reason = str(exc).strip().partition("\n")[0]
    fix = "feed the size that the module was made for"
    return from_memory_error(exc) or FeedError(_INPUT, f"the module rejects {array.shape}: {reason}", fix)


def _labelled(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of `module` in which inner modules put their names around what they do."""
    labelled = copy.deepcopy(module)
    for name, inner in labelled.named_modules():
        if name:
            open_labels: list[torch.profiler.record_function] = []
            inner.register_forward_pre_hook(_opener(name, open_labels))
            inner.register_forward_hook(_closer(open_labels))
    return labelled


def _opener(name: str, open_labels: list[torch.profiler.record_function]) -> Callable[..., None]:
    import torch

    def hook(*_: object) -> None:
        label = torch.profiler.record_function(_LABEL + name)
        label.__enter__()  # type: ignore[no-untyped-call]
        open_labels.append(label)

    return hook


def _closer(open_labels: list[torch.profiler.record_function]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        open_labels.pop().__exit__(None, None, None)

    return hook


def _operators_timed(events: Iterable[Any], on_cuda: bool, placement: Placement) -> Iterator[OperatorTime]:
    """The own time of every operator that took some, without that of the operators it called."""
    for event in events:
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if event.name.startswith("aten::") and microseconds > 0:
            name = _module_around(event) or event.name
            operator = event.name.removeprefix("aten::")
            yield OperatorTime(name, operator, placement.provider, placement.precision, microseconds / 1e3)


def _module_around(event: Any) -> str | None:
    while event is not None and not event.name.startswith(_LABEL):
        event = event.cpu_parent
    return None if event is None else event.name.removeprefix(_LABEL)
