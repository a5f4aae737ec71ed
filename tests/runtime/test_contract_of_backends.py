"""What every backend owes its callers. A new backend is found in the registry and passes without a line changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import DeviceError, FeedError, RunnerStateError
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.runner import (
    Device,
    ModuleSource,
    ProfileRequest,
    Runner,
    RunnerOptions,
    backends,
    open_runner,
)
from densenet_deploy.workflows.load import load
from tests.conftest import TINY
from tests.runtime.simulated_tensorrt import FULL, RTX, simulated_gpu, write_simulated_engine

# float32 kernels that sum in another order: 1e-5 is 100 roundings of numbers near 1; a GPU may use other algorithms
TOLERANCE = 1e-5
GPU_TOLERANCE = 1e-3


# Those that run on a CPU run here as they are; those that want a GPU on a simulated one, and on a real one if there is.
ON_CPU = [name for name, kind in backends.items().items() if "cpu" in kind.devices and is_installed(kind.requires)]
SIMULATED = {"rtx, simulated": RTX, "tensorrt, simulated": FULL}
ON_GPU = {f"{name}, real GPU": name for name in ("onnxruntime", "torch")}
ENGINE = "engine, real GPU"
REAL = [pytest.param(name, marks=pytest.mark.gpu) for name in (*ON_GPU, ENGINE)]


def _open(backend: str, tiny_onnx: Path, device: str = "cpu") -> Runner:
    if backend == "torch":
        return open_runner(load(architecture=TINY, num_classes=10), backend, device)
    return open_runner(tiny_onnx, backend, device)


@pytest.fixture(params=[*ON_CPU, *SIMULATED, *REAL])
def opener(
    request: pytest.FixtureRequest, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Runner]]:
    if request.param in ON_CPU:
        yield lambda: _open(request.param, tiny_onnx)
    elif request.param in SIMULATED:
        behaviour = SIMULATED[request.param]
        with simulated_gpu(behaviour):
            engine = write_simulated_engine(tmp_path, tiny_onnx, behaviour)
            yield lambda: open_runner(engine, device="cuda")
    elif request.param == ENGINE:
        engine = request.getfixturevalue("real_engine")
        yield lambda: open_runner(engine, device="cuda")
    else:
        request.getfixturevalue("real_gpu")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield lambda: _open(ON_GPU[request.param], tiny_onnx, "cuda")


@pytest.fixture
def runner(opener: Callable[[], Runner]) -> Iterator[Runner]:
    with opener() as opened:
        yield opened


def _batch(count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)


def test_three_backends_are_under_contract() -> None:
    assert {"onnxruntime", "openvino", "torch"} <= {
        n for n, kind in backends.items().items() if is_installed(kind.requires)
    }


def test_logits_have_the_batch_and_the_classes(runner: Runner) -> None:
    outputs = runner.run({"input": _batch(3)})
    assert list(outputs) == ["logits"]
    assert outputs["logits"].shape == (3, 10)
    assert outputs["logits"].dtype == np.float32


def test_backends_agree(runner: Runner, tiny_onnx: Path) -> None:
    with open_runner(tiny_onnx, "onnxruntime", "cpu") as reference:
        expected = reference.run({"input": _batch()})["logits"]
    atol = TOLERANCE if runner.placement.device == "cpu" else GPU_TOLERANCE
    np.testing.assert_allclose(runner.run({"input": _batch()})["logits"], expected, atol=atol)


def test_results_belong_to_the_caller(runner: Runner) -> None:
    first = runner.run({"input": _batch(seed=1)})["logits"]
    kept = first.copy()
    runner.run({"input": _batch(seed=2)})
    np.testing.assert_array_equal(first, kept)


def test_results_land_in_the_callers_buffer(runner: Runner) -> None:
    buffer = np.full((2, 10), np.nan, np.float32)
    outputs = runner.run({"input": _batch()}, {"logits": buffer})
    assert outputs["logits"] is buffer
    np.testing.assert_array_equal(buffer, runner.run({"input": _batch()})["logits"])


def test_a_buffer_of_another_shape_is_refused(runner: Runner) -> None:
    with pytest.raises(FeedError) as caught:
        runner.run({"input": _batch()}, {"logits": np.zeros((1, 10), np.float32)})
    assert caught.value.subject == "logits"


def test_a_buffer_for_no_output_is_refused(runner: Runner) -> None:
    with pytest.raises(FeedError) as caught:
        runner.run({"input": _batch()}, {"logit": np.zeros((2, 10), np.float32)})
    assert caught.value.subject == "logit"


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (lambda x: x.astype(np.float64), "astype(float32)"),
        (lambda x: (x * 255).astype(np.uint8), "runtime.preprocess"),
        (lambda x: x[0], "array[None]"),
        (lambda x: x.transpose(0, 2, 3, 1), "array.transpose(0, 3, 1, 2)"),
        (lambda x: x[:0], "(0, 3, 32, 32)"),
        (lambda x: np.where(x > 2, np.nan, x).astype(np.float32), "NaN"),
        (lambda x: np.where(x > 2, -np.inf, x).astype(np.float32), "Inf"),
        (lambda x: np.abs(x) * 128, "check_values=False"),
        (lambda x: x.tolist(), "list"),
    ],
)
def test_a_bad_feed_is_a_typed_error(runner: Runner, bad: Callable[[np.ndarray], object], word: str) -> None:
    with pytest.raises(FeedError) as caught:
        runner.run({"input": bad(_batch())})
    assert caught.value.subject == "input"
    assert word in str(caught.value)


def test_a_feed_by_another_name_is_refused(runner: Runner) -> None:
    with pytest.raises(FeedError) as caught:
        runner.run({"image": _batch()})
    assert caught.value.subject == "image"


def test_strided_and_read_only_arrays_are_copied(runner: Runner) -> None:
    whole = _batch(4)
    strided = whole[::2]
    frozen = strided.copy()
    frozen.flags.writeable = False
    expected = runner.run({"input": strided.copy()})["logits"]
    np.testing.assert_array_equal(runner.run({"input": strided})["logits"], expected)
    np.testing.assert_array_equal(runner.run({"input": frozen})["logits"], expected)


def test_use_after_close_is_a_typed_error(opener: Callable[[], Runner]) -> None:
    runner = opener()
    runner.close()
    runner.close()
    with pytest.raises(RunnerStateError) as caught:
        runner.run({"input": _batch()})
    assert caught.value.subject == runner.name
    assert "closed" in repr(runner)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_use_in_a_forked_child_is_a_typed_error(runner: Runner) -> None:
    child = os.fork()
    if child == 0:
        try:
            runner.run({"input": _batch()})
        except RunnerStateError:
            os._exit(42)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 42


def test_eight_threads_give_the_serial_results(runner: Runner) -> None:
    batches = [_batch(1, seed) for seed in range(64)]
    serial = [runner.run({"input": batch})["logits"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda batch: runner.run({"input": batch})["logits"], batches))
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_array_equal(one, other)


def test_closing_while_others_run_gives_results_or_a_typed_error(opener: Callable[[], Runner]) -> None:
    runner = opener()
    expected = runner.run({"input": _batch()})["logits"]
    outcomes: list[str] = []

    def work() -> None:
        for _ in range(50):
            try:
                np.testing.assert_array_equal(runner.run({"input": _batch()})["logits"], expected)
                outcomes.append("result")
            except RunnerStateError:
                outcomes.append("closed")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    runner.close()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 200
    assert "closed" in outcomes


def test_the_placement_says_what_runs(runner: Runner, request: pytest.FixtureRequest) -> None:
    device = "cpu" if request.node.callspec.params["opener"] in ON_CPU else "cuda:0"
    placement = runner.placement
    assert placement.backend == runner.name
    assert placement.precision == "fp32"
    assert placement.device == device
    assert placement.threads >= 1
    assert placement.version


def test_facts_travel_with_the_model(runner: Runner) -> None:
    assert runner.manifest is not None
    assert runner.manifest.weights.source == "none"
    assert runner.manifest.preprocessing.image_size == 32


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_cuda_asked_and_not_had_is_an_error(backend: str, tiny_onnx: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    source = tiny_onnx if backend == "onnxruntime" else load(architecture=TINY).module
    with pytest.raises(DeviceError):
        open_runner(source, backend, "cuda")


def test_a_device_that_a_backend_never_uses_is_an_error(tiny_onnx: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        open_runner(tiny_onnx, "openvino", "cuda")
    assert caught.value.subject == "cuda:0"


def test_openvino_runs_float32_unless_asked_for_less(tiny_onnx: Path) -> None:
    with open_runner(tiny_onnx, "openvino", "cpu") as runner:
        assert runner.placement.precision == "fp32"


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_runner_for_one_batch_gives_the_same_and_refuses_others(backend: str, tiny_onnx: Path) -> None:
    source = load(architecture=TINY, num_classes=10).module if backend == "torch" else tiny_onnx
    with (
        open_runner(source, backend, "cpu") as free,
        open_runner(source, backend, "cpu", RunnerOptions(batch=2)) as one,
    ):
        assert one.inputs[0].shape == (2, *free.inputs[0].shape[1:])
        given = one.run({"input": _batch()})["logits"]
        np.testing.assert_allclose(given, free.run({"input": _batch()})["logits"], atol=TOLERANCE)
        with pytest.raises(FeedError) as caught:
            one.run({"input": _batch(3)})
        assert caught.value.subject == "input"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_bytes_run_as_the_file_does(backend: str, tiny_onnx: Path) -> None:
    with open_runner(tiny_onnx, backend, "cpu") as on_disk:
        expected = on_disk(_batch())["logits"]
    for source in (tiny_onnx.read_bytes(), onnx.load(tiny_onnx)):
        with open_runner(source, backend, "cpu") as in_memory:
            np.testing.assert_array_equal(in_memory(_batch())["logits"], expected)
            assert in_memory.manifest == Artifact.open(tiny_onnx).manifest


def test_an_array_or_a_tensor_alone_is_the_only_input(runner: Runner) -> None:
    expected = runner.run({"input": _batch()})["logits"]
    np.testing.assert_array_equal(runner(_batch())["logits"], expected)
    np.testing.assert_array_equal(runner.run(torch.from_numpy(_batch()))["logits"], expected)


# --- the profilers of the backends

CONVOLUTIONS = 1 + 2 * 4 + 1  # the stem, two in each of four layers, one transition


def _request(source: object, calls: int = 3) -> ProfileRequest:
    feeds = {"input": np.zeros((2, 3, 32, 32), np.float32)}
    return ProfileRequest(source, Device("cpu"), RunnerOptions(threads=1), feeds, calls)  # type: ignore[arg-type]


@pytest.mark.parametrize(("backend", "operator"), [("onnxruntime", "Conv"), ("openvino", "Convolution")])
def test_every_convolution_of_a_file_is_timed_once(backend: str, operator: str, tiny_onnx: Path) -> None:
    found = backends.get(backend).profile(_request(Artifact.open(tiny_onnx)))
    convolutions = [one for one in found if one.operator == operator and "norm1" not in one.name]
    assert len(convolutions) == CONVOLUTIONS
    assert {one.precision for one in convolutions} == {"fp32"}
    assert {one.provider for one in convolutions} <= {"CPUExecutionProvider", "CPU"}
    assert all(one.ms > 0 for one in convolutions)


def test_torch_names_the_module_that_an_operator_ran_in() -> None:
    module = load(architecture=TINY, num_classes=10).module
    found = backends.get("torch").profile(_request(ModuleSource(module)))
    timed = {one.name for one in found}
    names = {name for name, inner in module.named_modules() if type(inner).__name__ in ("Conv2d", "BatchNorm2d")}
    assert names <= timed
    concatenating = {one.name for one in found if one.operator == "cat"}
    assert "features.denseblock1.denselayer2" in concatenating
    assert not any(module._forward_hooks for module in module.modules())  # the caller's module is as it was


def test_a_trace_leaves_no_file(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    backends.get("onnxruntime").profile(_request(Artifact.open(tiny_onnx)))
    assert list(tmp_path.rglob("*")) == []
