"""The torch backend runs any module of one image input, whatever it returns, and names its outputs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from densenet_deploy.errors import BackendError, DeviceError, FeedError, ResourceError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.backends.torch import TorchRunner, exported_shape, named_tensors
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.runner import Device, ModuleSource, Placement, ProfileRequest, RunnerOptions, open_runner
from densenet_deploy.runtime.timing import OperatorTime

MANIFEST = Manifest("121", {"head": "classifier"}, WeightsOrigin("none", "0" * 64, 0), Preprocessing(16, 16))
FEATURES = Manifest("121", {"head": "features"}, WeightsOrigin("none", "0" * 64, 0), Preprocessing(16, 16))


class Pair(NamedTuple):
    main: Tensor
    aux: Tensor


class Head(nn.Module):
    """A convolution whose result leaves in the form that `form` makes of logits and feature map."""

    def __init__(self, form=lambda logits, features: logits, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.form = form

    def forward(self, images: Tensor) -> object:
        features = self.conv(images)
        return self.form(features.mean((2, 3)), features)


def _images(channels: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, channels, size, size), np.float32)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda logits, features: logits, ["logits"]),
        (lambda logits, features: (logits,), ["logits"]),
        (lambda logits, features: (logits, features), ["output0", "output1"]),
        (lambda logits, features: [logits, features], ["output0", "output1"]),
        (lambda logits, features: {"logits": logits, "map": features, "none": None}, ["logits", "map"]),
        (Pair, ["main", "aux"]),
        (lambda logits, features: {"a": (logits, {"b": features})}, ["a.0", "a.1.b"]),
    ],
)
def test_outputs_are_named_by_what_the_module_returns(form, names):
    with open_runner(Head(form), device="cpu") as runner:
        assert [spec.name for spec in runner.outputs] == names
        results = runner(_images())
        assert list(results) == names
    assert runner.outputs[0].shape == (None, 4)
    for spec in runner.outputs[1:]:
        assert spec.shape == (None, 4, None, None)
    np.testing.assert_array_equal(results[names[0]].shape, (2, 4))


def test_names_can_be_given():
    source = ModuleSource(Head(lambda logits, features: (features, logits)), output_names=("map", "logits"))
    with open_runner(source, device="cpu") as runner:
        assert [spec.name for spec in runner.outputs] == ["map", "logits"]
        assert runner(_images())["logits"].shape == (2, 4)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_channels_are_those_of_the_first_convolution(channels):
    with open_runner(Head(channels=channels), device="cpu") as runner:
        assert runner.inputs[0].shape == (None, channels, None, None)
        assert runner.outputs[0].shape == (None, 4), "it ran once on as many channels"
        assert runner(_images(channels))["logits"].shape == (2, 4)
        with pytest.raises(FeedError) as caught:
            runner(_images(channels + 1))
    assert caught.value.subject == "input"


def test_channels_can_be_given_and_are_unknown_without_a_convolution():
    class Gray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Head()

        def forward(self, images: Tensor) -> object:
            return self.inner(images.repeat(1, 3, 1, 1))

    with open_runner(ModuleSource(Gray(), channels=1), device="cpu") as runner:
        assert runner(_images(1))["logits"].shape == (2, 4)
    with open_runner(nn.Flatten(), device="cpu") as runner:
        assert runner.inputs[0].shape == (None, None, None, None)
        assert runner(_images(5))["logits"].shape == (2, 5 * 16 * 16)


def test_a_module_for_another_size_opens_and_refuses_what_does_not_fit():
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 16 * 16, 5))
    with open_runner(module, device="cpu") as runner:
        assert [str(spec) for spec in runner.outputs] == ["logits (N, N) float32"]
        assert runner(_images())["logits"].shape == (2, 5)
        with pytest.raises(FeedError) as caught:
            runner(_images(size=20))
    assert caught.value.subject == "input"


def test_the_module_of_the_caller_is_unchanged():
    module = Head().train()
    with open_runner(module, device="cpu") as runner:
        runner(_images())
    assert module.training
    assert not hasattr(module, "manifest")


@pytest.mark.parametrize("result", [None, "text", {}, ()])
def test_a_module_without_a_tensor_is_refused(result):
    with pytest.raises(BackendError) as caught:
        open_runner(Head(lambda logits, features: result), device="cpu")
    assert caught.value.subject == type(result).__name__


def test_reduced_precision_parameters_are_refused():
    with pytest.raises(BackendError) as caught:
        open_runner(Head().to(torch.float16), device="cpu")
    assert caught.value.subject == "conv.weight"


# What runs


ON_CPU = Device("cpu")


def opened(module: nn.Module | ModuleSource, device: Device | None = ON_CPU, **options: Any) -> TorchRunner:
    source = module if isinstance(module, ModuleSource) else ModuleSource(module)
    runner = TorchRunner.open(source, device, RunnerOptions(**options))
    assert isinstance(runner, TorchRunner)
    return runner


def test_the_backend_and_what_it_needs():
    kind = TorchRunner
    assert (kind.name, kind.requires, kind.extra) == ("torch", "torch", "export")
    assert (kind.suffixes, kind.reads_modules, kind.devices) == ((), True, ("cpu", "cuda"))


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that were set, after 1."""
    numbers = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


def test_the_number_of_threads_is_set_where_it_is_another(threads: list[int]):
    assert opened(Head(), threads=1).placement.threads == 1
    assert threads == [1]
    assert opened(Head(), threads=3).placement == Placement("torch", torch.__version__, "cpu", "ATen", "fp32", 3, ())
    assert threads == [1, 3]
    assert opened(Head()).placement.threads == usable_cpus()
    assert threads[-1] == usable_cpus()


def test_the_arithmetic_is_float32(threads: list[int]):
    assert opened(Head(), precision="fp32").placement.precision == "fp32"
    with pytest.raises(BackendError) as caught:
        opened(Head(), precision="bf16")
    assert caught.value.subject == "bf16"


def test_whole_numbers_among_the_parameters_are_left_alone():
    module = Head()
    module.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
    assert opened(module)(_images())["logits"].shape == (2, 4)


@pytest.mark.parametrize("check_values", [True, False])
def test_values_are_checked_unless_that_is_switched_off(check_values: bool):
    runner = opened(ModuleSource(Head(), MANIFEST), check_values=check_values)
    assert runner.manifest == MANIFEST
    with contextlib.nullcontext() if not check_values else pytest.raises(FeedError) as caught:
        runner(_images() + 1e6)
    assert not check_values or caught.value.subject == "input"


def test_results_are_those_of_the_module():
    module = Head(lambda logits, features: (logits, features)).eval()
    images = _images()
    with torch.inference_mode():
        expected = module(torch.from_numpy(images))
    results = opened(module)(images)
    np.testing.assert_array_equal(results["output0"], expected[0].numpy())
    np.testing.assert_array_equal(results["output1"], expected[1].numpy())


def test_a_read_only_feed_is_copied_and_the_callers_is_not_changed():
    images = _images()
    kept = images.copy()
    images.flags.writeable = False
    runner = opened(Doubling())
    np.testing.assert_array_equal(runner(images)["logits"], 2 * kept)
    np.testing.assert_array_equal(images, kept)


class Doubling(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mul_(2)


# Outputs, found out by a run on zeros


def test_a_module_is_tried_on_one_image_of_the_size_that_is_known():
    seen: list[tuple[int, ...]] = []

    class Seeing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            return images.flatten(1).sum(1)

    runner = opened(Seeing())
    assert [str(spec) for spec in runner.outputs] == ["logits (N) float32"]
    opened(ModuleSource(Seeing(), MANIFEST, channels=1))
    assert seen == [(1, 3, 224, 224), (1, 1, 16, 16)]


class Named(nn.Module):
    """States its output, and fails if it is run."""

    output_width = 7

    def __init__(self, output_name: object) -> None:
        super().__init__()
        self.output_name = output_name

    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("it need not be run")


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (ModuleSource(Named("embedding")), "embedding (N, 7) float32"),
        (ModuleSource(Named(5), FEATURES), "features (N, 7) float32"),
        (ModuleSource(Named("embedding"), output_names=("given",)), "given (N, 7) float32"),
        (ModuleSource(Head(), output_names=("given",)), "given (N, N) float32"),
        (ModuleSource(Head(), FEATURES), "features (N, 4) float32"),
        (ModuleSource(Head(), MANIFEST), "logits (N, 4) float32"),
        (ModuleSource(Head()), "logits (N, 4) float32"),
    ],
)
def test_the_output_is_what_module_manifest_or_caller_say(source: ModuleSource, output: str):
    assert [str(spec) for spec in opened(source).outputs] == [output]


@pytest.mark.parametrize(
    ("result", "names", "expected"),
    [
        (torch.zeros(1), ("a", "b"), ["a"]),
        ((torch.zeros(1), torch.zeros(1)), ("a", "b"), ["a", "b"]),
        ([torch.zeros(1), torch.zeros(1)], ("a",), ["output0", "output1"]),
        ((torch.zeros(1),), ("a",), ["a"]),
        (Pair(torch.zeros(1), torch.zeros(1)), ("a",), ["main", "aux"]),
        (Pair(torch.zeros(1), torch.zeros(1)), ("a", "b"), ["a", "b"]),
        ({3: torch.zeros(1), "x": {"y": [None, torch.zeros(1)]}}, ("a", "b"), ["3", "x.y.1"]),
        (None, ("a",), []),
        ((), ("a",), []),
    ],
)
def test_tensors_are_named_by_where_they_are(result: object, names: tuple[str, ...], expected: list[str]):
    assert [name for name, _ in named_tensors(result, names)] == expected


@pytest.mark.parametrize(
    ("error", "kind", "subject", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ResourceError, "GPU memory", "ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ResourceError, "memory", "ran out"),
        (ValueError("too small\nmore"), FeedError, "input", "the module rejects (2, 3, 16, 16): too small"),
    ],
)
def test_what_a_module_raises_is_about_memory_or_the_feed(
    error: Exception, kind: type[Exception], subject: str, why: str
):
    def fail(*_: object) -> Tensor:
        raise error

    runner = opened(ModuleSource(Head(fail), output_names=("logits",)))
    with pytest.raises(kind) as caught:
        runner(_images())
    assert (caught.value.subject, caught.value.why) == (subject, why)


# Devices


def test_without_a_gpu_the_cpu_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert opened(Head(), None).placement.device == "cpu"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, which are the CPU."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch, "device", lambda _: cpu)
    monkeypatch.setattr(nn.Module, "to", lambda self, _: self)


@pytest.mark.usefixtures("two_gpus")
class TestOnGpu:
    def test_all_devices_answer(self):
        assert TorchRunner.probe() == (torch.__version__, ("cpu", "cuda:0", "cuda:1"))

    @pytest.mark.parametrize(
        ("device", "placed", "provider"),
        [
            (None, "cuda:0", "GPU 0"),
            (Device("cuda", 1), "cuda:1", "GPU 1"),
            (Device("cpu"), "cpu", "ATen"),
        ],
    )
    def test_the_first_gpu_is_taken_unless_a_device_is_named(self, device: Device | None, placed: str, provider: str):
        placement = opened(Head(), device).placement
        assert (placement.device, placement.provider) == (placed, provider)

    @pytest.mark.parametrize(
        ("device", "precision", "notes"),
        [
            (Device("cuda"), "tf32", ("convolutions in TF32 where the GPU has it",)),
            (Device("cuda"), "ieee", ()),
            (Device("cpu"), "tf32", ()),
        ],
    )
    def test_tf32_is_stated(self, device: Device, precision: str, notes: tuple[str, ...], monkeypatch):
        monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision=precision))
        assert opened(Head(), device).placement.notes == notes

    def test_a_gpu_that_is_not_there_is_refused(self):
        with pytest.raises(DeviceError) as caught:
            opened(Head(), Device("cuda", 2))
        assert caught.value.subject == "cuda:2"

    @pytest.mark.parametrize(("device", "ms"), [(Device("cpu"), 0.001), (Device("cuda"), 0.007)])
    def test_a_profile_takes_the_time_of_the_device(self, device: Device, ms: float, profiler: FakeProfiler):
        profiler.events_of_calls = [[event("aten::conv", 1, 7)]] * 3
        request = ProfileRequest(ModuleSource(Head()), device, RunnerOptions(), {"input": _images()}, calls=1)
        assert [found.ms for found in TorchRunner.profile(request)] == [ms]
        both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        assert profiler.activities == (both if device.word == "cuda" else both[:1])


# Profiles


def event(name: str, cpu: float, gpu: float = 0.0, parent: Any = None) -> Any:
    return SimpleNamespace(name=name, self_cpu_time_total=cpu, self_device_time_total=gpu, cpu_parent=parent)


class FakeProfiler:
    """torch.profiler.profile, with the events of each call."""

    def __init__(self) -> None:
        self.events_of_calls: list[list[Any] | None] = []
        self.activities: list[Any] = []

    @contextlib.contextmanager
    def __call__(self, activities: list[Any], acc_events: bool) -> Iterator[Any]:
        assert acc_events, "without it PyTorch 2.11 warns of events that are dropped"
        self.activities = activities
        yield SimpleNamespace(events=lambda: self.events_of_calls.pop(0))


@pytest.fixture
def profiler(monkeypatch: pytest.MonkeyPatch) -> FakeProfiler:
    found = FakeProfiler()
    monkeypatch.setattr(torch.profiler, "profile", found)
    return found


def test_a_profile_is_the_median_of_the_calls_after_the_warm_up(
    profiler: FakeProfiler, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "removed again, and restored afterwards")
    monkeypatch.delenv("KINETO_LOG_LEVEL")
    calls: list[int] = []
    module = Head(lambda logits, features: (calls.append(1), logits)[1])
    label = event("densenet-deploy module block.conv", 100)
    outer = event("aten::conv2d", 0, parent=label)
    profiler.events_of_calls = [
        [
            label,
            outer,
            event("aten::mkldnn_convolution", first, parent=outer),
            event("aten::mean", 0.5, parent=event("run", 3)),
            event("cudaLaunch", 50),
            event("not aten::", 50),
        ]
        for first in (9000, 9000, 10, 30, 20)  # two do not count
    ]
    source = ModuleSource(module, output_names=("logits",))
    request = ProfileRequest(source, Device("cpu"), RunnerOptions(), {"input": _images()}, calls=3)
    assert TorchRunner.profile(request) == (
        OperatorTime("block.conv", "mkldnn_convolution", "ATen", "fp32", 0.02),
        OperatorTime("aten::mean", "mean", "ATen", "fp32", 0.0005),
    )
    assert len(calls) == 2 + 3
    assert os.environ["KINETO_LOG_LEVEL"] == "6"


def test_a_call_without_events_took_no_time(profiler: FakeProfiler):
    profiler.events_of_calls = [None, None, None]
    request = ProfileRequest(ModuleSource(Head()), Device("cpu"), RunnerOptions(), {"input": _images()}, calls=1)
    assert TorchRunner.profile(request) == ()


class Sine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.block(images).sin()


def test_inner_modules_put_their_names_around_what_they_do(profiler: FakeProfiler, monkeypatch: pytest.MonkeyPatch):
    log: list[str] = []

    class Label:
        def __init__(self, name: str) -> None:
            self._name = name.removeprefix("densenet-deploy module ")

        def __enter__(self) -> None:
            log.append(f"{self._name} begins")

        def __exit__(self, *_: object) -> None:
            log.append(f"{self._name} ends")

    monkeypatch.setattr(torch.profiler, "record_function", Label)
    profiler.events_of_calls = [[], [], []]
    module = Sine()
    source = ModuleSource(module, output_names=("map",))
    TorchRunner.profile(ProfileRequest(source, Device("cpu"), RunnerOptions(), {"input": _images()}, calls=1))
    call = ["block begins", "block.0 begins", "block.0 ends", "block.1 begins", "block.1 ends", "block ends"]
    assert log == call * 3
    module(torch.zeros(1, 3, 8, 8))
    assert log == call * 3, "the caller's module has no labels"


@pytest.mark.slow  # the profiler takes many seconds to start
def test_a_real_profile_names_the_modules():
    source = ModuleSource(Sine(), output_names=("map",))
    request = ProfileRequest(source, Device("cpu"), RunnerOptions(threads=1), {"input": _images()}, calls=1)
    found = {time.operator: time.name for time in TorchRunner.profile(request)}
    assert found["sin"] == "aten::sin", "outside of the inner modules"
    assert {"block.0", "block.1"} <= set(found.values())
    assert found.get("clamp_min", found.get("relu")) == "block.1"


@pytest.mark.parametrize(
    ("dynamic", "shape"), [({}, (2, 3, 16, 16)), ({0: "n"}, (None, 3, 16, 16)), ({0: "n", 2: "h"}, (None, 3, None, 16))]
)
def test_a_program_of_torch_export_takes_its_own_shape(dynamic: dict[int, str], shape: tuple[int | None, ...]) -> None:
    dims = {axis: torch.export.Dim(name, min=4 if axis else None) for axis, name in dynamic.items()}
    program = torch.export.export(Head().eval(), (torch.ones(2, 3, 16, 16),), dynamic_shapes=(dims,)).module()
    assert exported_shape(program) == shape
    with open_runner(ModuleSource(program, None, ())) as runner:
        assert runner.inputs[0].shape == shape
        assert runner.run({"input": _images()})["logits"].shape == (2, 4)
        assert run_batched(runner, np.concatenate([_images()] * 2)[:3])["logits"].shape == (3, 4)


def test_other_modules_have_no_shape_of_their_own() -> None:
    assert exported_shape(Head()) is None
    assert exported_shape(torch.fx.symbolic_trace(nn.Sequential(nn.ReLU()))) is None


def test_an_assertion_in_a_module_is_a_refused_input() -> None:
    class Strict(Head):
        def forward(self, images: Tensor) -> object:
            assert images.shape[2] == 8, "eight pixels"
            return super().forward(images)

    with open_runner(ModuleSource(Strict(), MANIFEST, ("logits",))) as runner, pytest.raises(FeedError, match="eight"):
        runner.run({"input": _images()})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_frozen_program_runs() -> None:
    program = torch.jit.freeze(torch.jit.trace(Head().eval(), torch.ones(1, 3, 16, 16)))
    with open_runner(ModuleSource(program, MANIFEST, ("logits",))) as runner:
        assert runner.run({"input": _images()})["logits"].shape == (2, 4)
