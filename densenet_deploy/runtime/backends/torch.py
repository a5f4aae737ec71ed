"""Run an `nn.Module` with PyTorch, on CPU or CUDA.

The module is copied, put in eval mode and moved, so the caller's stays as it was. Set the thread count only if you mean
it for the whole process: PyTorch has no thread count per module.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import BackendError, DeviceError
from densenet_deploy.manifest import Manifest
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.operator_times import WARM_UP_CALLS, OperatorTime, median_times
from densenet_deploy.runtime.runner import Device, Placement, ProfileRequest, Runner, RunnerOptions, backends

if TYPE_CHECKING:
    import torch

_INPUT: Final = "input"
_LABEL: Final = "densenet-deploy module "


@backends.register("torch")
class TorchRunner(Runner):
    """Run a module that takes one (N, 3, H, W) float32 tensor and returns a tensor or a dict of named tensors."""

    name = "torch"
    requires = "torch"
    extra = "export"
    devices = ("cpu", "cuda")

    @classmethod
    def open(cls, source: Artifact | torch.nn.Module, device: Device | None, options: RunnerOptions) -> Runner:
        """Copy the module to its device; see `Runner.open`."""
        import torch

        assert not isinstance(source, Artifact)
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
        """Ask for version and devices; see `Runner.probe`."""
        import torch

        return torch.__version__, ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))

    @classmethod
    def profile(cls, request: ProfileRequest) -> tuple[OperatorTime, ...]:
        """Read the events of torch's profiler, each under the module that it ran in; see `Runner.profile`."""
        import torch
        from torch.profiler import ProfilerActivity

        assert not isinstance(request.source, Artifact)
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes to stderr, without a GPU even an error
        on_cuda = request.device.word == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        timed: list[list[OperatorTime]] = []
        with cls.open(_labelled(request.source), request.device, request.options) as runner:
            for _ in range(WARM_UP_CALLS + request.calls):
                with torch.profiler.profile(activities=activities) as profiler:
                    runner.run(request.feeds)
                timed.append(list(_operators_timed(profiler.events() or (), on_cuda, runner.placement)))
        return median_times(timed[WARM_UP_CALLS:])

    def __init__(self, module: torch.nn.Module, device: Device, threads: int, options: RunnerOptions) -> None:
        import torch

        manifest = getattr(module, "manifest", None)
        output = getattr(module, "output_name", "logits")
        placement = Placement(
            backend=self.name,
            version=torch.__version__,
            device=str(device),
            provider="ATen" if device.word == "cpu" else torch.cuda.get_device_name(device.index),
            precision="fp32",
            threads=threads,
        )
        super().__init__(
            copy.deepcopy(module).eval().to(str(device)),
            (TensorSpec(_INPUT, (None, 3, None, None), np.dtype(np.float32)),),
            (TensorSpec(output, (None, getattr(module, "output_width", None)), np.dtype(np.float32)),),
            placement,
            manifest if isinstance(manifest, Manifest) else None,
            check_values=options.check_values,
        )
        self._device = torch.device(str(device))

    def _run(self, handle: torch.nn.Module, feeds: dict[str, Array]) -> dict[str, Array]:
        import torch

        array = feeds[_INPUT]
        batch = torch.from_numpy(array if array.flags.writeable else array.copy())
        with torch.inference_mode():
            result = handle(batch.to(self._device))
        named = result if isinstance(result, dict) else {self.outputs[0].name: result}
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def _labelled(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of `module` whose inner modules put their names around what they do."""
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
