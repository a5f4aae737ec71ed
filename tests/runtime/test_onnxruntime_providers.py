"""What ONNX Runtime is asked for on each device, what is refused, and the memory that calls reuse."""

from __future__ import annotations

import dataclasses
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from densenet_deploy.artifacts import Artifact, sha256_of
from densenet_deploy.errors import BackendError, DeviceError, MissingPackageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.backends.onnxruntime import open_session
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.nvidia import Gpu, NvidiaOptions
from densenet_deploy.runtime.onnxruntime_providers import (
    CPU,
    CUDA,
    RTX,
    TENSORRT,
    Bindings,
    Coverage,
    ProviderConfig,
    apply,
    config_for,
    prepare,
    require_coverage,
)
from densenet_deploy.runtime.runner import Device, RunnerOptions, open_runner
from tests.runtime.networks import images, write_network

GPU = Device("cuda", 1)
STRICT = {"session.record_ep_graph_assignment_info": "1", "session.disable_cpu_ep_fallback": "1"}
MANIFEST = Manifest("121", {}, WeightsOrigin("none", "0" * 64, 0), Preprocessing(image_size=32, resize=32))
FLOAT = np.dtype(np.float32)


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("means"))


@pytest.fixture
def artifact(means: Path) -> Artifact:
    return dataclasses.replace(Artifact.open(means), manifest=MANIFEST, precision="fp32")


@pytest.fixture
def fixed(artifact: Artifact) -> Artifact:
    """The same file, exported for batches of 4."""
    return dataclasses.replace(artifact, manifest=dataclasses.replace(MANIFEST, batch=4))


def test_providers_have_onnxruntimes_names() -> None:
    assert {CPU, CUDA, TENSORRT, RTX} <= set(onnxruntime.get_all_providers())
    assert (CPU, CUDA) == ("CPUExecutionProvider", "CUDAExecutionProvider")
    assert (TENSORRT, RTX) == ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class RecordingOrt:
    """The onnxruntime module, which notes what a session is opened with and opens it on the CPU instead."""

    def __init__(self, rtx_devices: int = 0, loads: bool = True) -> None:
        self.entries: dict[str, str] = {}
        self.providers: list[Any] = []
        self.keywords: dict[str, Any] = {}
        self.for_devices: tuple[list[Any], dict[str, str]] = ([], {})
        self.registered: list[tuple[str, str]] = []
        self._rtx = [SimpleNamespace(ep_name=RTX, index=index) for index in range(rtx_devices)]
        self._loads = loads

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def SessionOptions(self) -> Any:  # noqa: N802 - ONNX Runtime's name
        recorder = self

        class Options(onnxruntime.SessionOptions):
            def add_session_config_entry(self, key: str, value: str) -> None:
                recorder.entries[key] = value

            def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
                recorder.for_devices = (devices, settings)

        return Options()

    def InferenceSession(self, source: str, options: Any, providers: list[Any], **keywords: Any) -> Any:  # noqa: N802
        self.providers, self.keywords = providers, keywords
        return onnxruntime.InferenceSession(source, options, [CPU])

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if not self._loads:
            raise RuntimeError("Failed to load library /x.so with error: libcuda.so.1: cannot open")
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=CPU), *(self._rtx if self.registered else [])]


def opened(ort: RecordingOrt, options: NvidiaOptions, artifact: Artifact, device: Device = GPU) -> ProviderConfig:
    plan = config_for(device, options, artifact)
    open_session(ort, artifact, plan, device, RunnerOptions(threads=1))
    return plan


def test_the_cpu_is_asked_for_nothing_more(artifact: Artifact) -> None:
    ort = RecordingOrt()
    config = opened(ort, NvidiaOptions(), artifact, Device("cpu"))
    assert (ort.providers, ort.entries) == ([CPU], {})
    assert (config.main, config.plugin, config.allow_cpu, config.graphs) == (CPU, None, True, False)


def test_cuda_alone_is_listed_and_the_cpu_is_off(artifact: Artifact) -> None:
    ort = RecordingOrt()
    assert opened(ort, NvidiaOptions(), artifact).main == CUDA
    assert ort.providers == [(CUDA, {"device_id": "1", "use_tf32": "0"})]
    assert ort.entries == STRICT
    assert ort.keywords == {"enable_fallback": False, "disabled_optimizers": None}


def test_cpu_nodes_have_to_be_allowed(artifact: Artifact) -> None:
    ort = RecordingOrt()
    assert opened(ort, NvidiaOptions(allow_cpu_nodes=True), artifact).allow_cpu
    assert ort.providers == [(CUDA, {"device_id": "1", "use_tf32": "0"}), CPU]
    assert ort.entries == {"session.record_ep_graph_assignment_info": "1"}


def test_tensorrt_comes_before_cuda_and_caches_by_file(artifact: Artifact, tmp_path: Path) -> None:
    ort = RecordingOrt()
    opened(ort, NvidiaOptions("tensorrt", cache=tmp_path), artifact)
    folder = str(tmp_path / "onnxruntime-tensorrt" / sha256_of(artifact.path)[:24])
    settings = {
        "device_id": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        "trt_fp16_enable": "0",
        "trt_bf16_enable": "0",
        "trt_int8_enable": "0",
        "trt_cuda_graph_enable": "0",
    }
    assert ort.providers == [(TENSORRT, settings), (CUDA, {"device_id": "1", "use_tf32": "0"})]
    assert ort.entries == STRICT


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_tensorrt_may_use_what_the_file_holds_and_nothing_else(artifact: Artifact, precision: str) -> None:
    config = config_for(GPU, NvidiaOptions("tensorrt"), dataclasses.replace(artifact, precision=precision))
    flags = {word: config.providers[0][1][f"trt_{word}_enable"] for word in ("fp16", "bf16", "int8")}
    assert flags == {word: "1" if word == precision else "0" for word in flags}


def test_batches_become_profiles_where_the_batch_varies(artifact: Artifact, fixed: Artifact) -> None:
    options = NvidiaOptions("tensorrt", batches=(1, 8, 32))

    def shapes(of: Artifact) -> dict[str, str]:
        settings = config_for(GPU, options, of).providers[0][1]
        return {key: value for key, value in settings.items() if "profile" in key}

    assert shapes(artifact) == {
        "trt_profile_min_shapes": "input:1x3x32x32",
        "trt_profile_opt_shapes": "input:8x3x32x32",
        "trt_profile_max_shapes": "input:32x3x32x32",
    }
    assert shapes(fixed) == {}
    with pytest.raises(BackendError) as caught:
        shapes(dataclasses.replace(artifact, manifest=None))
    assert caught.value.subject == str(artifact.path)


@pytest.mark.parametrize(("provider", "key"), [("cuda", "enable_cuda_graph"), ("tensorrt", "trt_cuda_graph_enable")])
def test_graphs_are_asked_for_where_the_batch_is_fixed(artifact: Artifact, fixed: Artifact, provider, key) -> None:
    options = NvidiaOptions(provider, graphs=True)
    config = config_for(GPU, options, fixed)
    assert config.graphs
    assert config.providers[0][1][key] == "1"
    assert not config_for(GPU, NvidiaOptions(provider), fixed).graphs
    for other in (artifact, dataclasses.replace(artifact, manifest=None)):
        with pytest.raises(BackendError) as caught:
            config_for(GPU, options, other)
        assert caught.value.subject == str(artifact.path)


def test_a_provider_for_gpus_is_none_for_the_cpu(artifact: Artifact) -> None:
    with pytest.raises(BackendError) as caught:
        config_for(Device("cpu"), NvidiaOptions("cuda"), artifact)
    assert caught.value.subject == "cuda"


def test_rtx_is_a_plug_in_for_a_device(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(monkeypatch)
    ort = RecordingOrt(rtx_devices=2)
    options = NvidiaOptions("rtx", cache=tmp_path, batches=(1, 2, 4))
    plan = config_for(GPU, options, artifact)
    prepare(ort, plan)
    prepare(ort, plan)
    assert ort.registered == [(RTX, "the/library.so")], "once a process"
    open_session(ort, artifact, plan, GPU, RunnerOptions(threads=1))
    devices, settings = ort.for_devices
    assert [device.index for device in devices] == [1]
    assert settings == {
        "enable_cuda_graph": "0",
        "nv_runtime_cache_path": str(tmp_path / "onnxruntime-rtx" / sha256_of(artifact.path)[:24]),
        "nv_profile_min_shapes": "input:1x3x32x32",
        "nv_profile_opt_shapes": "input:2x3x32x32",
        "nv_profile_max_shapes": "input:4x3x32x32",
    }
    assert ort.providers == []
    assert ort.entries == STRICT


def test_a_plug_in_that_is_missing_or_broken_or_finds_nothing_says_so(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = config_for(GPU, NvidiaOptions("rtx"), artifact)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(MissingPackageError) as caught:
        prepare(RecordingOrt(), plan)
    assert caught.value.subject == "onnxruntime-ep-nv-tensorrt-rtx"
    install_plugin(monkeypatch)
    with pytest.raises(DeviceError) as caught:
        prepare(RecordingOrt(loads=False), plan)
    assert caught.value.subject == "onnxruntime_ep_nv_tensorrt_rtx"
    assert caught.value.why == "does not load: libcuda.so.1: cannot open"
    ort = RecordingOrt(rtx_devices=1)
    prepare(ort, plan)
    with pytest.raises(DeviceError) as caught:
        apply(ort, plan, ort.SessionOptions(), GPU)
    assert caught.value.subject == "cuda:1"


def install_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.machinery import ModuleSpec

    module = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.get_ep_name, module.get_library_path = lambda: RTX, lambda: "the/library.so"
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_plug_in_may_leave_nodes_to_the_cpu_without_listing_it(artifact: Artifact) -> None:
    config = config_for(GPU, NvidiaOptions("rtx", allow_cpu_nodes=True), artifact)
    assert [name for name, _ in config.providers] == [RTX]
    assert config.allow_cpu


class PreparedOrt:
    """A build of ONNX Runtime with some providers, which prints while it loads libraries."""

    def __init__(self, *providers: str, prints: str = "") -> None:
        self.preloaded: list[str | None] = []
        self._providers, self._prints = providers, prints

    def get_available_providers(self) -> list[str]:
        return list(self._providers)

    def preload_dlls(self, directory: str | None = None) -> None:
        self.preloaded.append(directory)
        print(self._prints)


@pytest.mark.parametrize("available", [(CPU,), (CPU, TENSORRT), (CPU, CUDA)])
def test_a_build_without_a_provider_names_the_first_choice(artifact: Artifact, available: tuple[str, ...]) -> None:
    ort = PreparedOrt(*available)
    with pytest.raises(DeviceError) as caught:
        prepare(ort, config_for(GPU, NvidiaOptions("tensorrt"), artifact))
    assert caught.value.subject == "TensorrtExecutionProvider"
    assert ort.preloaded == []


def test_libraries_that_pip_installed_are_loaded_for_a_gpu_alone(artifact: Artifact) -> None:
    ort = PreparedOrt(CPU, CUDA)
    prepare(ort, config_for(Device("cpu"), NvidiaOptions(), artifact))
    assert ort.preloaded == []
    prepare(ort, config_for(GPU, NvidiaOptions(), artifact))
    assert ort.preloaded == [""]


@pytest.mark.parametrize("prints", ["Failed to load libcurand.so.10", ""])
def test_what_onnxruntime_prints_goes_to_the_log(
    artifact: Artifact, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, prints: str
) -> None:
    caplog.set_level(logging.INFO, "densenet_deploy")
    prepare(PreparedOrt(CUDA, prints=prints), config_for(GPU, NvidiaOptions(), artifact))
    assert capsys.readouterr().out == ""
    assert [record.args for record in caplog.records] == [(prints,)] * bool(prints)


@pytest.mark.parametrize("source", ["found = True", "raise ImportError('no libraries')"])
def test_tensorrts_own_libraries_are_loaded_where_it_is_used(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(f"import sys\nsys.tensorrt_asked_for = True\n{source}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(sys, "tensorrt_asked_for", False, raising=False)
    ort = PreparedOrt(TENSORRT, CUDA)
    prepare(ort, config_for(GPU, NvidiaOptions(), artifact))
    assert not sys.tensorrt_asked_for
    prepare(ort, config_for(GPU, NvidiaOptions("tensorrt"), artifact))
    assert sys.tensorrt_asked_for
    assert ort.preloaded == ["", ""]
    sys.modules.pop("tensorrt", None)


# What a session did


def test_a_real_session_says_where_each_node_runs(means: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    coverage = Coverage.of(onnxruntime.InferenceSession(str(means), options, [CPU]))
    assert coverage.nodes == {CPU: 2}
    assert len(coverage.on_cpu) == 2


def test_nodes_are_counted_by_provider_and_those_on_the_cpu_named() -> None:
    def part(provider: str, *nodes: tuple[str, str]) -> Any:
        named = [SimpleNamespace(name=name, op_type=kind) for name, kind in nodes]
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: named)

    parts = [part(CUDA, ("a", "Conv"), ("b", "Relu")), part(CPU, ("c", "Add"), ("", "Pad")), part(CUDA, ("d", "Conv"))]
    coverage = Coverage.of(SimpleNamespace(get_provider_graph_assignment_info=lambda: parts))
    assert coverage == Coverage({CUDA: 3, CPU: 2}, ("c", "Pad"))
    assert str(coverage) == "3 nodes on CUDA, 2 nodes on CPU"


@pytest.mark.parametrize(
    ("coverage", "options", "fits"),
    [
        (Coverage(), NvidiaOptions(), False),
        (Coverage({CPU: 5}, ("a",)), NvidiaOptions(), False),
        (Coverage({CPU: 5}, ("a",)), NvidiaOptions(allow_cpu_nodes=True), False),
        (Coverage({CUDA: 5}), NvidiaOptions("tensorrt"), False),
        (Coverage({CUDA: 5}), NvidiaOptions(), True),
        (Coverage({TENSORRT: 28, CUDA: 2}), NvidiaOptions("tensorrt"), True),
        (Coverage({CUDA: 30, CPU: 1}, ("a",)), NvidiaOptions(), False),
        (Coverage({CUDA: 30, CPU: 1}, ("a",)), NvidiaOptions(allow_cpu_nodes=True), True),
    ],
)
def test_the_provider_must_run_nodes_and_the_cpu_only_those_it_may(
    artifact: Artifact, coverage: Coverage, options: NvidiaOptions, fits: bool
) -> None:
    config = config_for(GPU, options, artifact)
    if fits:
        require_coverage(config, coverage, GPU)
        return
    with pytest.raises(DeviceError) as caught:
        require_coverage(config, coverage, GPU)
    assert caught.value.subject == "cuda:1"


def test_three_nodes_on_the_cpu_are_named(artifact: Artifact) -> None:
    coverage = Coverage({CUDA: 3, CPU: 5}, ("n1", "n2", "n3", "n4", "n5"))
    with pytest.raises(DeviceError) as caught:
        require_coverage(config_for(GPU, NvidiaOptions(), artifact), coverage, GPU)
    assert "5 nodes on the CPU, n1, n2, n3 among them" in caught.value.why


def no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


@pytest.mark.skipif(not no_gpu(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_real_library_cannot_fall_back(
    artifact: Artifact, provider: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without CUDA, ONNX Runtime would open a session on the CPU, or print an error to stdout and try again."""
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built for the CPU alone")
    plan = config_for(Device("cuda"), NvidiaOptions(provider), artifact)
    prepare(onnxruntime, plan)
    with pytest.raises(DeviceError) as caught:
        open_session(onnxruntime, artifact, plan, Device("cuda"), RunnerOptions(threads=1))
    assert caught.value.subject == "cuda:0"
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "rtx"])
def test_a_real_gpu_runs_every_node(real_gpu: Gpu, tiny_onnx: Path, provider: str, tmp_path: Path) -> None:
    feed = {"input": np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)}
    options = RunnerOptions(nvidia=NvidiaOptions(provider, cache=tmp_path, batches=(1, 2, 4)))
    try:
        runner = open_runner(tiny_onnx, "onnxruntime", "cuda", options)
    except (MissingPackageError, DeviceError) as exc:
        if provider == "cuda":
            raise
        pytest.skip(str(exc))
    with runner, open_runner(tiny_onnx, "onnxruntime", "cpu") as reference:
        assert "CPU" not in runner.placement.notes[0]
        for _ in range(3):
            # float32 convolutions by other algorithms than the CPU's
            np.testing.assert_allclose(runner.run(feed)["logits"], reference.run(feed)["logits"], atol=1e-3)


# Memory that calls reuse

WITH_TOTAL = """<ir_version: 8, opset_import: ["" : 18]>
both (float[N,3,8,8] input) => (float[N,3] logits, float[1,3] total, float[N,k] loose) {
  pooled = GlobalAveragePool(input)
  logits = Flatten(pooled)
  first = Constant<value_ints=[0]>()
  total = ReduceSum<keepdims=1>(logits, first)
  loose = Identity(logits)
}"""
INPUTS = (TensorSpec("input", (None, 3, 8, 8), FLOAT),)
OUTPUTS = tuple(
    TensorSpec(name, shape, FLOAT)
    for name, shape in (("logits", (None, 3)), ("total", (1, 3)), ("loose", (None, None)))
)


class CountingSession:
    """A session that notes which memory its outputs are bound to."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.bound: list[dict[str, str]] = []
        self._session = session

    def io_binding(self) -> Any:
        binding, noted = self._session.io_binding(), {}
        self.bound.append(noted)

        class Noting:
            original = binding

            def __getattr__(self, name: str) -> Any:
                return getattr(binding, name)

            def bind_output(self, name: str, *device: object) -> None:
                noted[name] = "left to ONNX Runtime"
                binding.bind_output(name, *device)

            def bind_ortvalue_output(self, name: str, value: Any) -> None:
                noted[name] = "allocated"
                binding.bind_ortvalue_output(name, value)

        return Noting()

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding.original)


@pytest.fixture
def session(tmp_path: Path) -> CountingSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = write_network(tmp_path, WITH_TOTAL)
    return CountingSession(onnxruntime.InferenceSession(str(path), options, [CPU]))


@pytest.fixture
def bindings(session: CountingSession) -> Bindings:
    return Bindings(session, ("cpu", 0), INPUTS, OUTPUTS, 2)


def check(bindings: Bindings, count: int, seed: int = 0) -> None:
    results = bindings.run({"input": images(count, seed)})
    expected = images(count, seed).mean((2, 3))
    assert list(results) == ["logits", "total", "loose"]
    np.testing.assert_array_equal(results["logits"], expected)
    np.testing.assert_array_equal(results["loose"], expected)
    np.testing.assert_array_equal(results["total"], expected.sum(0, keepdims=True))


def test_bound_results_are_exact_and_their_memory_is_made_once_a_shape(
    bindings: Bindings, session: CountingSession
) -> None:
    for seed, count in enumerate((2, 2, 5, 2, 5)):
        check(bindings, count, seed)
    assert session.bound == [{"logits": "allocated", "total": "allocated", "loose": "left to ONNX Runtime"}] * 2
    check(bindings, 1)
    assert len(session.bound) == 3


def test_results_belong_to_the_caller(bindings: Bindings) -> None:
    first = bindings.run({"input": images(2, 0)})
    kept = {name: array.copy() for name, array in first.items()}
    bindings.run({"input": images(2, 1)})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_threads_do_not_mix_their_feeds(bindings: Bindings) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: check(bindings, 1 + seed % 3, seed), range(24)))
