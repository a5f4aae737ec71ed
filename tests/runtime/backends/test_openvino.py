"""OpenVINO: how a model is compiled for which device, what the compiled model reports, and its counters."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import BackendError, DeviceError, FeedError, ModelFileError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.backends.openvino import OpenVINORunner
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.runner import Device, Placement, ProfileRequest, RunnerOptions
from densenet_deploy.runtime.timing import OperatorTime
from tests.runtime.networks import images, write_network

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

MANIFEST = Manifest("121", {}, WeightsOrigin("none", "0" * 64, 0), Preprocessing(image_size=8, resize=8))
VERSION = re.match(r"[0-9.]+", openvino.__version__)[0]  # type: ignore[index]
RealCore = openvino.Core


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("means"))


@pytest.fixture
def artifact(means: Path) -> Artifact:
    return dataclasses.replace(Artifact.open(means), manifest=MANIFEST, precision="fp32")


def opened(artifact: Artifact, device: Device | None = None, **options: Any) -> OpenVINORunner:
    runner = OpenVINORunner.open(artifact, device, RunnerOptions(**options))
    assert isinstance(runner, OpenVINORunner)
    return runner


def check(runner: OpenVINORunner, count: int = 2) -> None:
    np.testing.assert_array_equal(runner(images(count))["logits"], images(count).mean((2, 3)))


def test_the_backend_and_what_it_needs() -> None:
    kind = OpenVINORunner
    assert (kind.name, kind.requires, kind.extra) == ("openvino", "openvino", "openvino")
    assert (kind.suffixes, kind.devices) == ((".onnx", ".xml"), ("cpu", "gpu", "npu"))


# The real library


def test_a_model_runs_in_float32_on_the_cpu(artifact: Artifact) -> None:
    runner = opened(artifact, threads=1)
    assert runner.placement == Placement("openvino", VERSION, "cpu", "CPU", "fp32", 1, ())
    assert runner.manifest == MANIFEST
    assert runner.inputs == (TensorSpec("input", (None, 3, 8, 8), np.dtype(np.float32)),)
    assert runner.outputs == (TensorSpec("logits", (None, 3), np.dtype(np.float32)),)
    for count in (2, 5):
        check(runner, count)


def test_results_belong_to_the_caller(artifact: Artifact) -> None:
    runner = opened(artifact, threads=1)
    first = runner(images(2, 1))["logits"]
    kept = first.copy()
    runner(images(2, 2))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("check_values", [True, False])
def test_values_are_checked_unless_that_is_switched_off(artifact: Artifact, check_values: bool) -> None:
    runner = opened(artifact, check_values=check_values, threads=1)
    if not check_values:
        assert runner(images(1) + 1e6)["logits"].min() > 1e5
        return
    with pytest.raises(FeedError) as caught:
        runner(images(1) + 1e6)
    assert caught.value.subject == "input"


MIXED = """<ir_version: 8, opset_import: ["" : 18]>
mixed (float[N,3,8,8] image, float[2,3] offset, float factor, float[N] weights)
  => (float[N,3] scaled, int64[N,3] whole) {
  pooled = GlobalAveragePool(image)
  means = Flatten(pooled)
  scaled = Mul(means, factor)
  sum = ReduceSum(offset)
  weight = ReduceSum(weights)
  more = Add(sum, weight)
  added = Add(scaled, more)
  whole = Cast<to=7>(added)
}"""


def test_a_fixed_batch_is_set_where_the_batch_varies_and_nowhere_else(tmp_path: Path) -> None:
    runner = opened(Artifact.open(write_network(tmp_path, MIXED)), batch=4, threads=1)
    assert [spec.shape for spec in runner.inputs] == [(4, 3, 8, 8), (2, 3), (), (4,)]
    assert [(spec.name, spec.shape, str(spec.dtype)) for spec in runner.outputs] == [
        ("scaled", (4, 3), "float32"),
        ("whole", (4, 3), "int64"),
    ]


def test_outputs_are_named_as_in_the_file(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    two (float[N,3,8,8] input) => (int64[N,3] whole, float[N,3] doubled) {
      pooled = GlobalAveragePool(input)
      doubled = Flatten(pooled)
      whole = Cast<to=7>(doubled)
    }"""
    runner = opened(Artifact.open(write_network(tmp_path, text)), threads=1)
    results = runner(images(3))
    assert list(results) == ["whole", "doubled"]
    np.testing.assert_array_equal(results["doubled"], images(3).mean((2, 3)))
    np.testing.assert_array_equal(results["whole"], np.trunc(images(3).mean((2, 3))).astype(np.int64))


def test_real_counters_are_read(artifact: Artifact) -> None:
    request = ProfileRequest(artifact, Device("cpu"), RunnerOptions(threads=1), {"input": images(2)}, calls=2)
    times = OpenVINORunner.profile(request)
    assert times
    assert {found.provider for found in times} == {"CPU"}
    assert all(0 < found.ms < 1000 for found in times)


# What it is asked for


class RecordingCore:
    """OpenVINO with other devices: it compiles for the CPU and reports what a test wants."""

    def __init__(self) -> None:
        self.available_devices = ["CPU", "GPU.0", "GPU.1"]
        self.runs_on = ["GPU.1", "CPU"]
        self.hint: Any = "f32"
        self.error: Exception | None = None
        self.requests: list[Any] = []
        self.counters: list[list[Any]] = []
        self.rankless = False
        self._core = RealCore()

    def read_model(self, source: Any) -> Any:
        self.source = source
        return self._core.read_model(source)

    def compile_model(self, model: Any, name: str, settings: dict[str, Any]) -> Any:
        if self.error is not None:
            raise self.error
        self.name, self.settings = name, settings
        compiled, core = self._core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1}), self
        rankless = SimpleNamespace(get_partial_shape=openvino.PartialShape.dynamic)

        class Compiled:
            inputs, outputs = [rankless] if core.rankless else compiled.inputs, compiled.outputs

            def get_property(self, name: str) -> Any:
                return {"EXECUTION_DEVICES": core.runs_on, "INFERENCE_PRECISION_HINT": core.hint}[name]

            def create_infer_request(self) -> Any:
                request = compiled.create_infer_request()

                def infer(feeds: Any, **how: Any) -> Any:
                    core.requests.append(how)
                    return request.infer(feeds, **how)

                return SimpleNamespace(infer=infer, get_profiling_info=lambda: core.counters.pop(0))

        return Compiled()


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> RecordingCore:
    found = RecordingCore()
    monkeypatch.setattr(openvino, "Core", lambda: found)
    return found


def test_devices_are_named_as_options_name_them(core: RecordingCore) -> None:
    assert OpenVINORunner.probe() == (VERSION, ("cpu", "gpu.0", "gpu.1"))


@pytest.mark.parametrize(
    ("device", "name"),
    [(None, "CPU"), (Device("cpu"), "CPU"), (Device("gpu"), "GPU.0"), (Device("gpu", 1), "GPU.1")],
)
def test_a_model_is_compiled_for_its_device(
    core: RecordingCore, artifact: Artifact, device: Device | None, name: str
) -> None:
    runner = opened(artifact, device, threads=3)
    assert core.name == name
    threads = {"INFERENCE_NUM_THREADS": 3} if name == "CPU" else {}
    assert core.settings == {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **threads}
    assert runner.placement == Placement("openvino", VERSION, str(device or "cpu"), "GPU.1, CPU", "fp32", 3, ())
    check(runner)
    assert core.requests == [{"share_inputs": True}], "feeds are not copied"


@pytest.mark.parametrize(("calls", "settings"), [(1, (3, None)), (2, (6, 2))])
def test_calls_at_the_same_time_have_streams_and_threads_of_their_own(
    core: RecordingCore, artifact: Artifact, calls: int, settings: tuple[int, int | None]
) -> None:
    assert opened(artifact, threads=3, calls=calls).placement.threads == 3
    assert (core.settings["INFERENCE_NUM_THREADS"], core.settings.get("NUM_STREAMS")) == settings


def test_without_a_number_all_usable_cpus_are_used(core: RecordingCore, artifact: Artifact) -> None:
    core.available_devices = ["CPU.0"]
    assert opened(artifact).placement.threads == usable_cpus()
    assert (core.name, core.settings["INFERENCE_NUM_THREADS"]) == ("CPU.0", usable_cpus())


@pytest.mark.parametrize(
    ("available", "device", "word"),
    [
        (["CPU", "GPU.0", "GPU.1"], Device("gpu", 2), "2 GPU device(s)"),
        (["CPU", "GPU.0", "GPU.1"], Device("npu"), "(found: CPU, GPU.0, GPU.1)"),
        ([], Device("cpu"), "(found: none)"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    core: RecordingCore, artifact: Artifact, available: list[str], device: Device, word: str
) -> None:
    core.available_devices = available
    with pytest.raises(DeviceError) as caught:
        opened(artifact, device)
    assert caught.value.subject == str(device)
    assert word in caught.value.why


@pytest.mark.parametrize(
    ("stored", "asked", "hint", "placed"),
    [
        ("fp32", None, "f32", "fp32"),
        ("fp16", None, "f16", "fp16"),
        ("bf16", None, "bf16", "bf16"),
        ("int8", None, "f32", "int8"),
        ("unknown", None, "f32", "fp32"),
        ("fp32", "bf16", "bf16", "bf16"),
        ("fp32", "fp16", "f16", "fp16"),
        ("fp16", "fp32", "f32", "fp32"),
    ],
)
def test_the_arithmetic_is_that_of_the_file_unless_another_is_asked_for(
    core: RecordingCore, artifact: Artifact, stored: str, asked: str | None, hint: str, placed: str
) -> None:
    core.hint = SimpleNamespace(to_string=lambda: hint)  # an openvino.Type
    runner = opened(dataclasses.replace(artifact, precision=stored), precision=asked)
    assert core.settings["INFERENCE_PRECISION_HINT"] == hint
    assert runner.placement.precision == placed


def test_arithmetic_that_the_device_lacks_is_refused_and_unknown_one_is_called_so(
    core: RecordingCore, artifact: Artifact
) -> None:
    with pytest.raises(BackendError) as caught:
        opened(artifact, precision="bf16")
    assert caught.value.subject == "bf16"
    core.hint = "dynamic"
    assert opened(artifact).placement.precision == "unknown"


def test_a_file_is_read_from_its_path_and_bytes_from_memory(core: RecordingCore, artifact: Artifact) -> None:
    opened(artifact)
    assert core.source == artifact.path
    content = artifact.path.read_bytes()
    check(opened(dataclasses.replace(artifact, path=Path("<memory>"), data=content)))
    assert isinstance(core.source, io.BytesIO)
    assert core.source.getvalue() == content


@pytest.mark.parametrize(
    ("manifest", "word"),
    [
        (None, "export"),
        (dataclasses.replace(MANIFEST, recipe="openvino"), "export"),
        (dataclasses.replace(MANIFEST, recipe="onnxruntime"), "--recipe openvino"),
    ],
)
def test_a_model_that_does_not_compile_says_why_and_what_to_do(
    core: RecordingCore, artifact: Artifact, manifest: Manifest | None, word: str
) -> None:
    core.error = RuntimeError("Exception from src:\nat somewhere\nthe reason\n")
    with pytest.raises(ModelFileError) as caught:
        opened(dataclasses.replace(artifact, manifest=manifest))
    assert caught.value.subject == str(artifact.path)
    assert caught.value.why == "OpenVINO cannot load it: the reason"
    assert word in caught.value.fix


def test_a_tensor_without_a_rank_is_refused(core: RecordingCore, artifact: Artifact) -> None:
    core.rankless = True
    with pytest.raises(ModelFileError) as caught:
        opened(artifact)
    assert (caught.value.subject, caught.value.why) == (str(artifact.path), "input has no known rank")


def test_a_batch_is_not_set_where_there_is_no_rank(core: RecordingCore, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    ends = [value(name, onnx.TensorProto.FLOAT, None) for name in ("input", "output")]
    node = onnx.helper.make_node("Relu", ["input"], ["output"])
    graph = onnx.helper.make_graph([node], "rankless", ends[:1], ends[1:])
    path = tmp_path / "rankless.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    core.error = RuntimeError("the plug-in wants a rank")
    with pytest.raises(ModelFileError) as caught:
        opened(Artifact.open(path), batch=2)
    assert caught.value.why == "OpenVINO cannot load it: the plug-in wants a rank"


def counter(name: str, kernel: str, microseconds: int, *, ran: bool = True) -> Any:
    status = openvino.ProfilingInfo.Status
    return SimpleNamespace(
        status=status.EXECUTED if ran else status.NOT_RUN,
        node_name=name,
        node_type="Convolution",
        exec_type=kernel,
        real_time=dt.timedelta(microseconds=microseconds),
    )


def test_a_profile_is_the_median_of_the_calls_after_the_warm_up(core: RecordingCore, artifact: Artifact) -> None:
    core.counters = [
        [counter("conv", "brgconv_avx512_1x1_f32", first), counter("relu", "undef", 1, ran=False)]
        for first in (9000, 9000, 10, 30, 20)  # two do not count
    ]
    request = ProfileRequest(artifact, Device("gpu"), RunnerOptions(), {"input": images(2)}, calls=3)
    assert OpenVINORunner.profile(request) == (OperatorTime("conv", "Convolution", "GPU.1", "fp32", 0.02),)
    assert len(core.requests) == 2 + 3
    assert core.settings == {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}


@pytest.mark.parametrize(
    ("kernel", "precision"),
    [
        ("jit_avx2_f16", "fp16"),
        ("jit_avx512_BF16", "bf16"),
        ("brgconv_u8", "int8"),
        ("ref_any_i8", "int8"),
        ("f32", "fp32"),
        ("unknown_i32", "unknown"),
    ],
)
def test_a_kernels_name_ends_in_its_type(core: RecordingCore, artifact: Artifact, kernel: str, precision: str) -> None:
    core.counters = [[counter("a", kernel, 1500)] for _ in range(3)]
    request = ProfileRequest(artifact, Device("cpu"), RunnerOptions(threads=1), {"input": images(1)}, calls=1)
    assert [(found.precision, found.ms) for found in OpenVINORunner.profile(request)] == [(precision, 1.5)]
