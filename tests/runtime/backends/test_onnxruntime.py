"""ONNX Runtime: what a session is opened with, on which device, what is read back from it, and its profile."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import BackendError, DeviceError, FeedError, ModelFileError, ResourceError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.backends.onnxruntime import OnnxRuntimeRunner, open_session
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.nvidia import NvidiaOptions, find_gpus
from densenet_deploy.runtime.onnxruntime_providers import CPU, CUDA, config_for
from densenet_deploy.runtime.runner import Device, Placement, ProfileRequest, RunnerOptions, open_runner
from densenet_deploy.runtime.timing import OperatorTime
from tests.runtime.fake_driver import DRIVER, FakeDriver
from tests.runtime.networks import images, write_network

MANIFEST = Manifest("121", {}, WeightsOrigin("none", "0" * 64, 0), Preprocessing(image_size=8, resize=8))
VERSION = onnxruntime.__version__


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("means"))


@pytest.fixture
def artifact(means: Path) -> Artifact:
    return dataclasses.replace(Artifact.open(means), manifest=MANIFEST, precision="fp32")


def opened(artifact: Artifact, device: Device | None = None, **options: Any) -> OnnxRuntimeRunner:
    runner = OnnxRuntimeRunner.open(artifact, device, RunnerOptions(**options))
    assert isinstance(runner, OnnxRuntimeRunner)
    return runner


def check(runner: OnnxRuntimeRunner, count: int = 2) -> None:
    np.testing.assert_array_equal(runner(images(count))["logits"], images(count).mean((2, 3)))


# On the CPU


def test_the_backend_and_what_it_needs() -> None:
    kind = OnnxRuntimeRunner
    assert (kind.name, kind.requires, kind.extra) == ("onnxruntime", "onnxruntime", "onnxruntime")
    assert (kind.suffixes, kind.devices, kind.shows_inner_tensors) == ((".onnx",), ("cpu", "cuda"), True)


@pytest.mark.parametrize(("asked", "threads"), [(3, 3), (None, usable_cpus())])
def test_the_placement_says_what_runs(artifact: Artifact, asked: int | None, threads: int) -> None:
    runner = opened(artifact, Device("cpu"), threads=asked)
    assert runner.placement == Placement("onnxruntime", VERSION, "cpu", "CPUExecutionProvider", "fp32", threads, ())
    assert runner.manifest == MANIFEST
    check(runner)


def test_only_the_precision_of_the_file_runs(artifact: Artifact) -> None:
    check(opened(artifact, Device("cpu"), precision="fp32"))
    with pytest.raises(BackendError) as caught:
        opened(artifact, Device("cpu"), precision="fp16")
    assert caught.value.subject == "fp16"


@pytest.mark.parametrize("check_values", [True, False])
def test_values_are_checked_unless_that_is_switched_off(artifact: Artifact, check_values: bool) -> None:
    runner = opened(artifact, Device("cpu"), check_values=check_values)
    if not check_values:
        assert runner(images(1) + 1e6)["logits"].min() > 1e5
        return
    with pytest.raises(FeedError) as caught:
        runner(images(1) + 1e6)
    assert caught.value.subject == "input"


@pytest.mark.parametrize("changed", [{"spin": False}, {"arena": False}])
def test_answers_are_the_same_without_spinning_and_without_an_arena(
    artifact: Artifact, changed: dict[str, bool]
) -> None:
    check(opened(artifact, Device("cpu"), **changed))


def test_a_batch_that_the_graph_accepts_and_cannot_run_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Exported with a dynamic batch, but with `view(1, -1)` before its classifier."""
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,2,2] x) => (float[M,2] y)'
        "<int64[2] one = {1, -1}, float[12,2] w = {" + ", ".join(["1"] * 24) + "}>"
        "{ row = Reshape(x, one)  y = MatMul(row, w) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "one.onnx")
    with opened(Artifact.open(tmp_path / "one.onnx")) as runner:
        assert runner.run(np.ones((1, 3, 2, 2), np.float32))["y"].tolist() == [[12, 12]]
        with pytest.raises(FeedError, match="holds 4 images, which the graph cannot run together") as caught:
            runner.run(np.ones((4, 3, 2, 2), np.float32))
    assert caught.value.subject == "x"
    assert "batch 1" in caught.value.fix


def test_every_type_that_onnx_shares_with_numpy_is_known(tmp_path: Path) -> None:
    types = ("float", "float16", "double", "uint8", "int8", "int32", "int64")
    inputs, outputs = (", ".join(f"{kind}[N,1] {end}_{kind}" for kind in types) for end in ("in", "out"))
    nodes = "\n".join(f"out_{kind} = Identity(in_{kind})" for kind in types)
    text = f'<ir_version: 8, opset_import: ["" : 18]>\nall ({inputs}) => ({outputs}) {{\n{nodes}\n}}'
    runner = opened(Artifact.open(write_network(tmp_path, text)), Device("cpu"))
    expected = {"float": "float32", "double": "float64"}
    assert [str(spec.dtype) for spec in runner.inputs] == [expected.get(kind, kind) for kind in types]
    assert [spec.name for spec in runner.outputs] == [f"out_{kind}" for kind in types]
    feeds = {spec.name: np.full((2, 1), number, spec.dtype) for number, spec in enumerate(runner.inputs)}
    for number, result in enumerate(runner.run(feeds).values()):
        assert result.tolist() == [[number], [number]]


def test_a_type_that_cannot_be_fed_is_refused(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]>\nno (bool[N] input) => (bool[N] output) { output = Not(input) }'
    with pytest.raises(ModelFileError) as caught:
        opened(Artifact.open(write_network(tmp_path, text)), Device("cpu"))
    assert caught.value.subject == str(tmp_path / "means.onnx")


def test_a_size_is_a_number_above_zero_or_any(artifact: Artifact) -> None:
    node = SimpleNamespace(name="input", type="tensor(float)", shape=["N", 3, 0, -1, None, 1])
    session: Any = SimpleNamespace(get_inputs=lambda: [node], get_outputs=lambda: [node], get_providers=lambda: [CPU])
    runner = OnnxRuntimeRunner(session, artifact, Device("cpu"), 1, RunnerOptions())
    assert runner.inputs[0].shape == runner.outputs[0].shape == (None, 3, None, None, None, 1)


# What a session is opened with


class RecordingOrt:
    """The onnxruntime module, which notes what a session is opened with."""

    def __init__(self, error: Exception | None = None) -> None:
        self.entries: dict[str, str] = {}
        self._error = error

    def set_default_logger_severity(self, severity: int) -> None:
        self.severity = severity

    def SessionOptions(self) -> Any:  # noqa: N802 - ONNX Runtime's name
        recorder = self

        class Options(onnxruntime.SessionOptions):
            def add_session_config_entry(self, key: str, value: str) -> None:
                recorder.entries[key] = value

        return Options()

    def InferenceSession(self, source: str | bytes, options: Any, providers: list[Any], **keywords: Any) -> Any:  # noqa: N802
        self.source, self.options, self.providers, self.keywords = source, options, providers, keywords
        if self._error is not None:
            raise self._error
        return "the session"


def opened_with(
    artifact: Artifact, ort: RecordingOrt | None = None, trace: Path | None = None, **options: Any
) -> RecordingOrt:
    ort, device = ort or RecordingOrt(), Device("cpu")
    config = config_for(device, NvidiaOptions(), artifact)
    assert open_session(ort, artifact, config, device, RunnerOptions(**options), trace) == "the session"
    return ort


def test_a_session_is_silent_and_has_the_threads_of_one_call(artifact: Artifact) -> None:
    ort = opened_with(artifact, threads=3)
    assert (ort.severity, ort.options.log_severity_level) == (4, 4)
    assert (ort.options.intra_op_num_threads, ort.options.inter_op_num_threads) == (3, 1)
    assert opened_with(artifact).options.intra_op_num_threads == usable_cpus()
    assert (ort.source, ort.providers) == (str(artifact.path), ["CPUExecutionProvider"])
    assert ort.keywords == {"enable_fallback": False, "disabled_optimizers": None}
    assert ort.options.enable_profiling is False


SLEEPING = {"session.force_spinning_stop": "1", "session.intra_op.spin_duration_us": "20"}


@pytest.mark.parametrize(("spin", "entries"), [(True, {}), (False, SLEEPING)])
def test_threads_sleep_between_calls_and_soon_within_them_only_where_that_was_asked_for(
    artifact: Artifact, spin: bool, entries: dict[str, str]
) -> None:
    assert opened_with(artifact, spin=spin).entries == entries


@pytest.mark.parametrize("arena", [True, False])
def test_the_arena_is_kept_only_where_it_is_wanted(artifact: Artifact, arena: bool) -> None:
    assert opened_with(artifact, arena=arena).options.enable_cpu_mem_arena is arena


def test_a_trace_is_written_where_it_was_asked_for(artifact: Artifact, tmp_path: Path) -> None:
    options = opened_with(artifact, trace=tmp_path / "trace").options
    assert (options.enable_profiling, options.profile_file_prefix) == (True, str(tmp_path / "trace"))


@pytest.mark.parametrize(("recipe", "off"), [("tensorrt", ["WeightBiasQuantization"]), ("onnxruntime", None)])
def test_biases_in_float16_are_kept_as_they_are(artifact: Artifact, recipe: str, off: list[str] | None) -> None:
    written = dataclasses.replace(artifact, manifest=dataclasses.replace(MANIFEST, recipe=recipe))
    assert opened_with(written).keywords["disabled_optimizers"] == off
    assert opened_with(dataclasses.replace(artifact, manifest=None)).keywords["disabled_optimizers"] is None


def test_bytes_and_a_path_that_is_not_utf_8_are_given_as_bytes(artifact: Artifact, tmp_path: Path) -> None:
    content = artifact.path.read_bytes()
    assert opened_with(dataclasses.replace(artifact, data=b"the model")).source == b"the model"
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.onnx"))
    path.write_bytes(content)
    assert opened_with(dataclasses.replace(artifact, path=path)).source == content


@pytest.mark.parametrize(
    ("device", "message", "error", "why"),
    [
        (Device("cpu"), "[ONNXRuntimeError] : 1 : FAIL : Load of x failed:bad: worse ", ModelFileError, "bad: worse"),
        (Device("cuda"), "[ONNXRuntimeError] : 1 : FAIL : no:kernel", DeviceError, "kernel"),
        (Device("cpu"), "std::bad_alloc", ResourceError, "ran out"),
        (Device("cuda"), "std::bad_alloc", ResourceError, "ran out"),
    ],
)
def test_what_does_not_open_says_why(
    artifact: Artifact, device: Device, message: str, error: type[Exception], why: str
) -> None:
    config = config_for(Device("cpu"), NvidiaOptions(), artifact)
    with pytest.raises(error) as caught:
        open_session(RecordingOrt(RuntimeError(message)), artifact, config, device, RunnerOptions())
    assert type(caught.value) is error
    assert caught.value.why.rpartition(": ")[2] == why.rpartition(": ")[2]  # type: ignore[attr-defined]
    assert why in caught.value.why  # type: ignore[attr-defined]
    assert "failed" not in caught.value.why  # type: ignore[attr-defined]


# On a GPU that is none


class Pretended:
    """ONNX Runtime on a GPU: sessions run on the CPU and report what they were asked for."""

    def __init__(self) -> None:
        self.available = [CUDA, CPU]
        self.on_cpu = 0  # of the two nodes
        self.opened: list[list[Any]] = []
        self.rooms: set[tuple[str, int]] = set()
        self.runs = 0
        self.trace: list[dict[str, Any]] = []
        self.during_run: Callable[[], object] = lambda: None

    def session(self, source: Any, options: Any, providers: list[Any], **keywords: Any) -> Any:
        self.opened.append(providers)
        plain = onnxruntime.SessionOptions()
        plain.intra_op_num_threads = 1
        session = RealSession(source, plain, [CPU], **keywords)
        on_cpu = self.on_cpu if providers != [CPU] else 2
        parts = [(CUDA, 2 - on_cpu), (CPU, on_cpu)]
        pretended = self

        class Session:
            def __getattr__(self, name: str) -> Any:
                return getattr(session, name)

            def get_providers(self) -> list[str]:
                return [name if isinstance(name, str) else name[0] for name in providers]

            def get_provider_graph_assignment_info(self) -> list[Any]:
                node = SimpleNamespace(name="node", op_type="Conv")
                return [
                    SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [node] * count)
                    for name, count in parts
                    if count
                ]

            def run(self, names: list[str] | None, feeds: dict[str, np.ndarray]) -> Any:
                pretended.runs += 1
                return session.run(names, feeds)

            def run_with_iobinding(self, binding: Any) -> None:
                pretended.during_run()
                session.run_with_iobinding(binding)

            def end_profiling(self) -> str:
                path = Path(options.profile_file_prefix + ".json")
                path.write_text(json.dumps(pretended.trace))
                return str(path)

        return Session()

    def room(self, shape: tuple[int, ...], dtype: Any, device: str, index: int) -> Any:
        self.rooms.add((device, index))
        return RealValue.ortvalue_from_shape_and_type(shape, dtype, "cpu", 0)


RealSession, RealValue = onnxruntime.InferenceSession, onnxruntime.OrtValue


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    found = Pretended()
    monkeypatch.setattr(onnxruntime, "InferenceSession", found.session)
    monkeypatch.setattr(onnxruntime, "OrtValue", SimpleNamespace(ortvalue_from_shape_and_type=found.room))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: found.available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda directory: None, raising=False)
    return found


@pytest.fixture(params=[True])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver that shows two GPUs, or none."""

    def load(name: str) -> FakeDriver:
        if name != DRIVER or not request.param:
            raise OSError(name)
        return FakeDriver()

    monkeypatch.setattr(ctypes, "CDLL", load)
    find_gpus.cache_clear()
    yield
    find_gpus.cache_clear()


no_driver = pytest.mark.parametrize("driver", [False], indirect=True)


@pytest.mark.usefixtures("driver")
class TestDevices:
    @pytest.mark.parametrize(
        ("available", "driver", "devices"),
        [
            ([CUDA, CPU], True, ("cpu", "cuda")),
            ([CUDA, CPU], False, ("cpu",)),
            ([CPU], True, ("cpu",)),
            ([CPU], False, ("cpu",)),
        ],
        indirect=["driver"],
    )
    def test_a_gpu_answers_where_driver_and_provider_are(
        self, pretended: Pretended, available: list[str], devices: tuple[str, ...]
    ) -> None:
        pretended.available = available
        assert OnnxRuntimeRunner.probe() == (VERSION, devices)

    @pytest.mark.parametrize(
        ("device", "provider", "runs_on"),
        [
            (None, None, "cuda:0"),
            (None, "cuda", "cuda:0"),
            (Device("cuda", 1), None, "cuda:1"),
            (Device("cuda", 1), "cuda", "cuda:1"),
            (Device("cpu"), None, "cpu"),
        ],
    )
    def test_the_gpu_is_taken_if_it_runs_the_whole_model(
        self, pretended: Pretended, artifact: Artifact, device: Device | None, provider: str | None, runs_on: str
    ) -> None:
        runner = opened(artifact, device, nvidia=NvidiaOptions(provider), threads=1)
        provider, notes = (CPU, ()) if runs_on == "cpu" else (CUDA, ("2 nodes on CUDA",))
        assert runner.placement == Placement("onnxruntime", VERSION, runs_on, provider, "fp32", 1, notes)
        assert len(pretended.opened) == 1

    def test_otherwise_the_cpu_is_and_the_log_says_why(
        self, pretended: Pretended, artifact: Artifact, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "densenet_deploy")
        pretended.on_cpu = 1
        assert opened(artifact).placement.device == "cpu"
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "1 nodes on the CPU" in caplog.text

    @pytest.mark.parametrize(("device", "provider"), [(None, "cuda"), (Device("cuda"), None), (Device("cuda"), "cuda")])
    def test_a_gpu_that_was_named_is_never_replaced(
        self, pretended: Pretended, artifact: Artifact, device: Device | None, provider: str | None
    ) -> None:
        pretended.on_cpu = 1
        with pytest.raises(DeviceError) as caught:
            opened(artifact, device, nvidia=NvidiaOptions(provider))
        assert caught.value.subject == "cuda:0"
        assert len(pretended.opened) == 1
        pretended.available = [CPU]
        with pytest.raises(DeviceError) as caught:
            opened(artifact, device, nvidia=NvidiaOptions(provider))
        assert caught.value.subject == CUDA

    @no_driver
    @pytest.mark.parametrize(("device", "provider"), [(None, "cuda"), (Device("cuda"), None)])
    def test_without_a_driver_nothing_is_opened(
        self, pretended: Pretended, artifact: Artifact, device: Device | None, provider: str | None
    ) -> None:
        with pytest.raises(DeviceError) as caught:
            opened(artifact, device, nvidia=NvidiaOptions(provider))
        assert caught.value.subject == "cuda:0"
        assert pretended.opened == []

    @no_driver
    def test_without_a_driver_the_cpu_is_the_best_device(
        self, pretended: Pretended, artifact: Artifact, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "densenet_deploy")
        assert opened(artifact).placement.device == "cpu"
        assert pretended.opened == [[CPU]]
        assert caplog.records == [], "nothing was tried in vain"

    def test_batches_are_bound_to_the_memory_of_the_gpu(self, pretended: Pretended, artifact: Artifact) -> None:
        runner = opened(artifact, Device("cuda", 1))
        check(runner, 2)
        check(runner, 5)
        assert pretended.rooms == {("cuda", 1)}
        assert pretended.runs == 0

    @pytest.mark.parametrize(
        ("nvidia", "together"),
        [
            (NvidiaOptions(streams=2), True),
            (NvidiaOptions(streams=1), False),
            (NvidiaOptions(streams=2, graphs=True), False),
        ],
    )
    @pytest.mark.timeout(20)
    def test_as_many_calls_run_at_once_as_there_are_streams_and_one_with_graphs(
        self, pretended: Pretended, artifact: Artifact, nvidia: NvidiaOptions, together: bool
    ) -> None:
        """A recorded graph has a single place for its feeds."""
        met, wait = threading.Barrier(2), 5 if together else 0.2

        def meet() -> None:
            try:
                met.wait(wait)
            except threading.BrokenBarrierError:
                alone.append(True)

        alone: list[bool] = []
        pretended.during_run = meet
        fixed = dataclasses.replace(artifact, manifest=dataclasses.replace(MANIFEST, batch=2))
        runner = opened(fixed, Device("cuda"), nvidia=nvidia)
        assert ("CUDA graphs asked for" in runner.placement.notes) is bool(nvidia.graphs)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(check, runner) for _ in range(2)]:
                done.result()
        assert bool(alone) is not together


# Profiles


def node(name: str, kind: str, microseconds: float, *types: str) -> dict[str, Any]:
    shapes = {"input_type_shape": [{word: [1, 2]} for word in types]} if types else {}
    args = {"op_name": kind, "provider": "CUDAExecutionProvider", **shapes}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


CALL = {"cat": "Session", "name": "model_run", "dur": 9}


@pytest.mark.usefixtures("driver")
def test_a_profile_is_the_median_of_the_calls_after_the_warm_up(pretended: Pretended, artifact: Artifact) -> None:
    noise = [
        {"cat": "Node", "name": "conv_fence_before", "dur": 1, "args": {}},
        {"cat": "Session", "name": "session_kernel_time", "dur": 1},
    ]
    for first in (9000, 9000, 10, 30, 20):  # two do not count
        pretended.trace += [*noise, node("conv", "Conv", first, "uint8", "float"), node("relu", "Relu", 4.5), CALL]
    pretended.trace.append(node("late", "Conv", 1, "float"))
    options = RunnerOptions(nvidia=NvidiaOptions(graphs=True), threads=1)  # without them: a graph hides its nodes
    request = ProfileRequest(artifact, Device("cuda"), options, {"input": images(2)}, calls=3)
    assert OnnxRuntimeRunner.profile(request) == (
        OperatorTime("conv", "Conv", CUDA, "int8", 0.02),
        OperatorTime("relu", "Relu", CUDA, "unknown", 0.0045),
    )
    assert pretended.runs == 2 + 3
    assert pretended.opened == [[(CUDA, {"device_id": "0", "use_tf32": "0"})]]


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("float", "fp32"),
        ("float16", "fp16"),
        ("bfloat16", "bf16"),
        ("uint8", "int8"),
        ("int8", "int8"),
        ("int64", "unknown"),
    ],
)
def test_a_node_computes_in_the_type_of_its_first_input(
    pretended: Pretended, artifact: Artifact, kind: str, precision: str
) -> None:
    pretended.trace = [node("a", "Conv", 1000, kind, "string"), CALL] * 3
    request = ProfileRequest(artifact, Device("cpu"), RunnerOptions(threads=1), {"input": images(1)}, calls=1)
    assert [(found.precision, found.ms) for found in OnnxRuntimeRunner.profile(request)] == [(precision, 1.0)]


def test_a_real_trace_is_read(means: Path) -> None:
    request = ProfileRequest(
        Artifact.open(means), Device("cpu"), RunnerOptions(threads=1), {"input": images(1)}, calls=2
    )
    times = OnnxRuntimeRunner.profile(request)
    assert [(found.operator, found.provider, found.precision) for found in times] == [
        ("GlobalAveragePool", CPU, "fp32"),
        ("Flatten", CPU, "fp32"),
    ]
    assert all(0 <= found.ms < 1000 for found in times)


def test_a_path_opens_with_its_facts(means: Path) -> None:
    with open_runner(means, "onnxruntime", "cpu") as runner:
        assert runner.manifest is None
        assert runner.placement.precision == "unknown"
