"""What ONNX Runtime is asked for on each device, what is refused, and the memory that calls reuse."""

from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from densenet_deploy.artifacts import Artifact, sha256_of
from densenet_deploy.errors import BackendError, DeviceError, MissingPackageError, UnknownNameError, UsageError
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

GPU = Device("cuda", 1)
STRICT = {"session.record_ep_graph_assignment_info": "1", "session.disable_cpu_ep_fallback": "1"}


@pytest.fixture
def artifact(tiny_onnx: Path) -> Artifact:
    return Artifact.open(tiny_onnx)


@pytest.fixture
def fixed(artifact: Artifact) -> Artifact:
    """The same file, exported for batches of 4."""
    assert artifact.manifest is not None
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, batch=4))


class RecordingOrt:
    """The onnxruntime module, which notes what a session is opened with and opens it on the CPU instead."""

    def __init__(self, rtx_devices: int = 0, loads: bool = True) -> None:
        self.entries: dict[str, str] = {}
        self.providers: list[Any] = []
        self.keywords: dict[str, Any] = {}
        self.arena: bool | None = None
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
        self.providers, self.keywords, self.arena = providers, keywords, options.enable_cpu_mem_arena
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
    opened(ort, NvidiaOptions(), artifact, Device("cpu"))
    assert (ort.providers, ort.entries) == ([CPU], {})


def test_threads_stop_spinning_between_calls_only_where_that_was_asked_for(artifact: Artifact) -> None:
    ort, device = RecordingOrt(), Device("cpu")
    open_session(ort, artifact, config_for(device, NvidiaOptions(), artifact), device, RunnerOptions(spin=False))
    assert ort.entries == {"session.force_spinning_stop": "1"}


@pytest.mark.parametrize("changed", [{"spin": False}, {"arena": False}])
def test_answers_are_the_same_without_spinning_and_without_an_arena(
    changed: dict[str, bool], artifact: Artifact
) -> None:
    feeds = {"input": np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)}
    answers = []
    for options in (RunnerOptions(threads=2), RunnerOptions(threads=2, **changed)):  # type: ignore[arg-type]
        with open_runner(artifact.path, "onnxruntime", "cpu", options) as runner:
            answers.append(runner.run(feeds)["logits"])
    np.testing.assert_allclose(*answers, atol=1e-6)


@pytest.mark.parametrize("arena", [True, False])
def test_the_arena_is_kept_only_where_it_is_wanted(arena: bool, artifact: Artifact) -> None:
    ort, device = RecordingOrt(), Device("cpu")
    open_session(ort, artifact, config_for(device, NvidiaOptions(), artifact), device, RunnerOptions(arena=arena))
    assert ort.arena is arena


def test_cuda_alone_is_listed_and_the_cpu_is_off(artifact: Artifact) -> None:
    ort = RecordingOrt()
    assert opened(ort, NvidiaOptions(), artifact).main == CUDA
    assert ort.providers == [(CUDA, {"device_id": "1", "use_tf32": "0"})]
    assert ort.entries == STRICT
    assert ort.keywords == {"enable_fallback": False, "disabled_optimizers": None}


def test_cpu_nodes_have_to_be_allowed(artifact: Artifact) -> None:
    ort = RecordingOrt()
    opened(ort, NvidiaOptions(allow_cpu_nodes=True), artifact)
    assert ort.providers[1] == CPU
    assert "session.disable_cpu_ep_fallback" not in ort.entries


def test_tensorrt_comes_before_cuda_and_caches_by_file(artifact: Artifact, tmp_path: Path) -> None:
    ort = RecordingOrt()
    opened(ort, NvidiaOptions("tensorrt", cache=tmp_path), artifact)
    (first, settings), (second, rest) = ort.providers
    assert (first, second) == (TENSORRT, CUDA)
    folder = str(tmp_path / "onnxruntime-tensorrt" / sha256_of(artifact.path)[:24])
    assert settings["trt_engine_cache_path"] == settings["trt_timing_cache_path"] == folder
    assert settings["trt_engine_cache_enable"] == settings["trt_timing_cache_enable"] == "1"
    assert settings["device_id"] == rest["device_id"] == "1"
    assert settings["trt_cuda_graph_enable"] == "0"
    assert not any(key.startswith("trt_profile") for key in settings)
    assert ort.entries == STRICT


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_tensorrt_may_use_what_the_file_holds_and_nothing_else(artifact: Artifact, precision: str) -> None:
    ort = RecordingOrt()
    opened(ort, NvidiaOptions("tensorrt"), dataclasses.replace(artifact, precision=precision))
    flags = {word: ort.providers[0][1][f"trt_{word}_enable"] for word in ("fp16", "bf16", "int8")}
    assert flags == {word: "1" if word == precision else "0" for word in flags}


def test_batches_become_profiles(artifact: Artifact, fixed: Artifact) -> None:
    ort, options = RecordingOrt(), NvidiaOptions("tensorrt", batches=(1, 8, 32))
    opened(ort, options, artifact)
    shapes = {key: value for key, value in ort.providers[0][1].items() if "profile" in key}
    assert shapes == {
        "trt_profile_min_shapes": "input:1x3x32x32",
        "trt_profile_opt_shapes": "input:8x3x32x32",
        "trt_profile_max_shapes": "input:32x3x32x32",
    }
    opened(ort, options, fixed)
    assert not any("profile" in key for key in ort.providers[0][1])
    with pytest.raises(BackendError) as caught:
        config_for(GPU, options, dataclasses.replace(artifact, manifest=None))
    assert caught.value.subject.endswith("tiny.onnx")


@pytest.mark.parametrize(("provider", "key"), [("cuda", "enable_cuda_graph"), ("tensorrt", "trt_cuda_graph_enable")])
def test_graphs_are_asked_for_where_the_batch_is_fixed(artifact: Artifact, fixed: Artifact, provider, key) -> None:
    ort, options = RecordingOrt(), NvidiaOptions(provider, graphs=True)
    assert opened(ort, options, fixed).graphs
    assert ort.providers[0][1][key] == "1"
    with pytest.raises(BackendError) as caught:
        config_for(GPU, options, artifact)
    assert caught.value.subject.endswith("tiny.onnx")


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


def test_a_build_without_the_provider_names_the_package(artifact: Artifact) -> None:
    ort = RecordingOrt()
    ort.get_available_providers = lambda: [CPU]
    with pytest.raises(DeviceError) as caught:
        prepare(ort, config_for(GPU, NvidiaOptions("tensorrt"), artifact))
    assert caught.value.subject == "TensorrtExecutionProvider"


def test_what_onnxruntime_prints_stays_off_stdout(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    ort = RecordingOrt()
    ort.get_available_providers = lambda: [CUDA]
    ort.preload_dlls = lambda directory: print("Failed to load libcurand.so.10")
    prepare(ort, config_for(GPU, NvidiaOptions(), artifact))
    assert capsys.readouterr().out == ""


def test_options_that_cannot_be_meant_are_refused(artifact: Artifact) -> None:
    with pytest.raises(UnknownNameError) as caught:
        NvidiaOptions("tensort")
    assert caught.value.subject == "tensort"
    with pytest.raises(UsageError) as caught:
        NvidiaOptions(batches=(4, 2, 8))
    assert caught.value.subject == "batches=(4, 2, 8)"
    with pytest.raises(UsageError) as caught:
        NvidiaOptions(streams=0)
    assert caught.value.subject == "streams=0"
    with pytest.raises(BackendError) as caught:
        config_for(Device("cpu"), NvidiaOptions("cuda"), artifact)
    assert caught.value.subject == "cuda"


# What a session did, read back from a real one on a CPU


def recorded_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return onnxruntime.InferenceSession(str(path), options, [CPU])


def test_every_node_is_counted_where_it_runs(artifact: Artifact) -> None:
    coverage = Coverage.of(recorded_session(artifact.path))
    assert list(coverage.nodes) == [CPU]
    assert coverage.nodes[CPU] == len(coverage.on_cpu) > 30
    assert "features.conv0" in coverage.on_cpu
    assert str(coverage) == f"{coverage.nodes[CPU]} nodes on CPU"


def test_a_session_that_ended_up_on_the_cpu_is_refused(artifact: Artifact) -> None:
    coverage = Coverage.of(recorded_session(artifact.path))
    for options in (NvidiaOptions(), NvidiaOptions(allow_cpu_nodes=True), NvidiaOptions("tensorrt")):
        plan = config_for(GPU, options, artifact)
        with pytest.raises(DeviceError) as caught:
            require_coverage(plan, coverage, GPU)
        assert caught.value.subject == "cuda:1"
        assert caught.value.exit_code == 5


def test_single_nodes_on_the_cpu_are_refused_unless_allowed(artifact: Artifact) -> None:
    mixed = Coverage({CUDA: 30, CPU: 2}, ("head.pool", "head.flatten"))
    with pytest.raises(DeviceError) as caught:
        require_coverage(config_for(GPU, NvidiaOptions(), artifact), mixed, GPU)
    assert caught.value.subject == "cuda:1"
    require_coverage(config_for(GPU, NvidiaOptions(allow_cpu_nodes=True), artifact), mixed, GPU)
    whole = Coverage({TENSORRT: 28, CUDA: 2})
    require_coverage(config_for(GPU, NvidiaOptions("tensorrt"), artifact), whole, GPU)
    assert str(whole) == "28 nodes on Tensorrt, 2 nodes on CUDA"


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


@pytest.mark.skipif(not no_gpu(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "rtx"])
def test_a_provider_that_was_named_is_never_replaced_by_the_cpu(tiny_onnx: Path, provider: str) -> None:
    with pytest.raises(DeviceError) as caught:
        open_runner(tiny_onnx, "onnxruntime", options=RunnerOptions(nvidia=NvidiaOptions(provider)))
    assert caught.value.subject == "cuda:0"


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


FLOAT = np.dtype(np.float32)
INPUTS = (TensorSpec("input", (None, 3, 32, 32), FLOAT),)


@pytest.fixture(scope="module")
def session(tiny_onnx: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(tiny_onnx), options, ["CPUExecutionProvider"])


@pytest.fixture(params=[(None, 10), (None, None)], ids=["known width", "unknown width"])
def bindings(request: pytest.FixtureRequest, session: onnxruntime.InferenceSession) -> Bindings:
    return Bindings(session, ("cpu", 0), INPUTS, (TensorSpec("logits", request.param, FLOAT),), 2)


def batch(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)}


def test_bound_results_are_those_of_a_plain_run(bindings: Bindings, session: onnxruntime.InferenceSession) -> None:
    for seed, count in enumerate((2, 2, 5, 1, 2, 5)):
        feed = batch(count, seed)
        np.testing.assert_array_equal(bindings.run(feed)["logits"], session.run(None, feed)[0])


def test_results_belong_to_the_caller(bindings: Bindings) -> None:
    first = bindings.run(batch(2, 0))["logits"]
    kept = first.copy()
    bindings.run(batch(2, 1))
    np.testing.assert_array_equal(first, kept)


def test_threads_do_not_mix_their_feeds(bindings: Bindings, session: onnxruntime.InferenceSession) -> None:
    feeds = [batch(1 + seed % 3, seed) for seed in range(40)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda feed: bindings.run(feed)["logits"], feeds))
    for feed, result in zip(feeds, results, strict=True):
        np.testing.assert_array_equal(result, session.run(None, feed)[0])
