"""What all runners have in common, and which backend opens which source. The backends here are Python functions."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import (
    BackendError,
    DeviceError,
    FeedError,
    MissingPackageError,
    ModelFileError,
    RunnerStateError,
    UnknownNameError,
    UsageError,
)
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.onnx_envelope import append_metadata
from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.nvidia import NvidiaOptions
from densenet_deploy.runtime.runner import (
    REFERENCE_BACKEND,
    Device,
    ModuleSource,
    Placement,
    ProfileRequest,
    Runner,
    RunnerOptions,
    backends,
    backends_reading,
    choose_backend,
    first_installed,
    open_runner,
    open_with,
    runner_source,
)
from tests.function_runner import FunctionRunner

MEANS = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 18]> means (float[N,3,8,8] input) => (float[N,3] logits)
    { pooled = GlobalAveragePool(input)  logits = Flatten(pooled) }"""
).SerializeToString()

ONES = np.ones((2, 3, 8, 8), np.float32)
SPEC = TensorSpec("x", (None, 3), np.dtype(np.float32))


def described(**facts: Any) -> Manifest:
    known: dict[str, Any] = {
        "variant": "121",
        "spec": {},
        "weights": WeightsOrigin("none", "0" * 64),
        "preprocessing": Preprocessing(),
    }
    return Manifest(**known | facts)


def doubling(manifest: Manifest | None = None) -> FunctionRunner:
    return FunctionRunner(lambda batch: {"twice": 2 * batch}, manifest=manifest)


class Fake(Runner):
    """A backend that opens anything, and keeps what it opened and how."""

    name = "fake"
    requires = "json"  # installed everywhere
    extra = "fakes"
    given = ((SPEC,), (SPEC,))

    @classmethod
    def open(cls, source: Any, device: Device | None, options: RunnerOptions) -> Runner:
        placement = Placement("fake", "1", str(device), "python", "fp32", 1)
        cls.opened = cls((source, device, options), *cls.given, placement, None)
        return cls.opened

    @classmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        return "1", cls.devices

    def _run(self, handle: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"handle": handle}


class Missing(Fake):
    requires = "no_such_package"
    extra = "nothing"


# --- options and words


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device("cpu")),
        ("cuda", Device("cuda", 0)),
        ("cuda:1", Device("cuda", 1)),
        ("cuda:127", Device("cuda", 127)),
        ("npu:0", Device("npu")),
    ],
)
def test_a_device_is_a_word_and_a_number(text: str, device: Device) -> None:
    assert Device.parse(text) == device


@pytest.mark.parametrize("text", ["tpu", "gpu0", "cuda:", "cuda:1000", "cuda:-1", "CUDA", "", "tpu:1"])
def test_another_device_is_refused(text: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        Device.parse(text)
    assert caught.value.subject == (text or "''")


def test_only_a_cpu_prints_without_its_number() -> None:
    assert (str(Device("cpu")), str(Device("cuda")), str(Device("gpu", 2))) == ("cpu", "cuda:0", "gpu:2")


def test_by_default_values_are_checked_threads_spin_memory_is_kept_and_engines_are_not_trusted() -> None:
    options = RunnerOptions()
    assert (options.check_values, options.spin, options.arena, options.trust_engine) == (True, True, True, False)
    assert options.calls == 1
    assert (options.threads, options.precision, options.batch, options.nvidia) == (None, None, None, NvidiaOptions())


@pytest.mark.parametrize(
    "options",
    [{"threads": 1}, {"threads": 1024}, {"calls": 1}, {"calls": 1024}, {"batch": 1}, {"batch": 65536}]
    + [{"precision": word} for word in ("fp32", "fp16", "bf16", None)],
    ids=str,
)
def test_options_at_the_ends_of_their_ranges_are_taken(options: dict[str, Any]) -> None:
    assert vars(RunnerOptions(**options)).items() >= options.items()


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"threads": 0}, "threads=0"),
        ({"threads": 1025}, "threads=1025"),
        ({"calls": 0}, "calls=0"),
        ({"calls": 1025}, "calls=1025"),
        ({"batch": 0}, "batch=0"),
        ({"batch": 65537}, "batch=65537"),
        ({"precision": "int8"}, "int8"),
    ],
    ids=str,
)
def test_options_beyond_them_are_refused(options: dict[str, Any], subject: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunnerOptions(**options)
    assert caught.value.subject == subject


def test_a_placement_prints_all_it_says() -> None:
    placement = Placement("onnxruntime", "1.2", "cpu", "CPUExecutionProvider", "fp32", 3, ("one", "two"))
    assert str(placement) == "onnxruntime 1.2, CPUExecutionProvider, cpu, fp32, 3 threads, one, two"


# --- running


def test_a_call_runs_and_fills_the_callers_buffers() -> None:
    runner = doubling()
    assert np.array_equal(runner.run({"input": ONES})["twice"], 2 * ONES)
    for call in (runner.run, runner):
        buffer = np.zeros_like(ONES)
        assert call(ONES, {"twice": buffer})["twice"] is buffer
        assert np.array_equal(buffer, 2 * ONES)


def test_feeds_are_checked_before_they_run() -> None:
    runner = doubling()
    with pytest.raises(FeedError) as caught:
        runner.run({"input": ONES[0]})
    assert caught.value.subject == "input"
    assert runner.runs == 0


OURS = Preprocessing(image_size=8, resize=9, mean=(0.0, 0.0, 0.0), std=(0.25, 0.25, 0.25))  # values up to 4
LARGEST = np.float32(8 * 4)  # eight times that


@pytest.mark.parametrize(
    ("manifest", "is_limited"),
    [
        (None, False),
        (described(preprocessing=OURS), True),
        (described(preprocessing=OURS, assumed=("mean", "std")), True),  # ours are all normalized
        (described(preprocessing=OURS, variant="third-party"), True),  # someone stated it
        (described(preprocessing=OURS, variant="third-party", assumed=("resize",)), True),
        (described(preprocessing=OURS, variant="third-party", assumed=("mean", "std")), False),
        (described(preprocessing=OURS, variant="third-party", assumed=("std",)), False),
    ],
)
def test_values_are_limited_to_those_of_images_where_the_normalization_is_known(
    manifest: Manifest | None, is_limited: bool
) -> None:
    runner = doubling(manifest)
    assert runner.manifest is manifest
    runner.run(ONES * LARGEST)
    beyond = ONES * np.nextafter(LARGEST, np.float32(np.inf))
    if is_limited:
        with pytest.raises(FeedError):
            runner.run(beyond)
    else:
        runner.run(beyond)
    with pytest.raises(FeedError):
        runner.run(ONES * np.float32(np.nan))


def test_values_go_unchecked_on_request() -> None:
    placement = Placement("fake", "1", "cpu", "python", "fp32", 1)
    runner = Fake("model", (SPEC,), (SPEC,), placement, None, check_values=False)
    runner.run(np.full((1, 3), np.nan, np.float32))


# --- the end of a runner


def test_a_closed_runner_says_so() -> None:
    runner = doubling()
    assert runner.is_usable
    assert repr(runner) == "<FunctionRunner function 0, python, cpu, fp32, 1 thread>"
    with runner as entered:
        assert entered is runner
    runner.close()
    assert not runner.is_usable
    assert repr(runner) == "<FunctionRunner function 0, python, cpu, fp32, 1 thread, closed>"
    with pytest.raises(RunnerStateError) as caught:
        runner.run(ONES)
    assert caught.value.subject == "function"
    assert runner.runs == 0


@pytest.mark.timeout(20)
def test_a_model_lives_until_the_last_call_has_ended() -> None:
    """`close` in another thread, while a call runs, frees nothing that the call needs."""
    inside, closed = threading.Event(), threading.Event()

    def function(batch: np.ndarray) -> dict[str, np.ndarray]:
        inside.set()
        assert closed.wait(10)
        return {"y": batch}

    runner = FunctionRunner(function, outputs={"y": (None, 3, 8, 8)})
    results: list[dict[str, np.ndarray]] = []
    thread = threading.Thread(target=lambda: results.append(runner.run(ONES)))
    thread.start()
    assert inside.wait(10)
    runner.close()
    closed.set()
    thread.join()
    assert np.array_equal(results[0]["y"], ONES)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("forks", [1, 2])
def test_a_forked_child_cannot_use_it_and_can_open_its_own(forks: int) -> None:
    runner = doubling()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if forks == 2 and (grandchild := os.fork()):
                status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
            else:
                status = _status_in_child(runner)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert runner.is_usable
    runner.run(ONES)


def _status_in_child(runner: Runner) -> int:
    own = doubling()
    own.run(ONES)
    if runner.is_usable or not own.is_usable:
        return 2
    try:
        runner.run(ONES)
    except RunnerStateError:
        return 42
    return 3


# --- opening


def test_a_backend_reads_no_modules_and_knows_only_the_cpu_unless_it_says_more() -> None:
    assert (Fake.suffixes, Fake.reads_modules, Fake.devices, Fake.shows_inner_tensors) == ((), False, ("cpu",), False)


@pytest.mark.parametrize("device", [None, Device("cpu")])
def test_a_backend_gets_the_model_the_device_and_the_options(device: Device | None) -> None:
    source, options = ModuleSource(torch.nn.ReLU()), RunnerOptions(threads=3)
    runner = open_with(Fake, source, device, options)
    assert runner is Fake.opened
    assert runner.run(np.zeros((1, 3), np.float32)) == {"handle": (source, device, options)}
    assert runner.inputs == (SPEC,)


def test_a_device_that_the_backend_never_uses_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        open_with(Fake, ModuleSource(torch.nn.ReLU()), Device("cuda"), RunnerOptions())
    assert caught.value.subject == "cuda:0"


@pytest.mark.parametrize("given", [((), (SPEC,)), ((SPEC,), ()), ((), ())], ids=["no input", "no output", "neither"])
def test_a_model_without_inputs_or_outputs_is_closed_and_refused_by_its_name(given: Any) -> None:
    class Hollow(Fake):
        pass

    Hollow.given = given
    for source, subject in (
        (ModuleSource(torch.nn.ReLU()), "ReLU"),
        (Artifact(Path("a.onnx"), "onnx", None), "a.onnx"),
    ):
        with pytest.raises(ModelFileError) as caught:
            open_with(Hollow, source, None, RunnerOptions())
        assert caught.value.subject == subject
        assert not Hollow.opened.is_usable


SCORES = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 18]> scores (float[N,3,8,8] input) => (float[N,3] p, float[N,3] q)
    { pooled = GlobalAveragePool(input)  q = Flatten(pooled)  p = Softmax(q) }"""
).SerializeToString()


@pytest.mark.parametrize("manifest", [None, described(), described(activations={"q": "sigmoid"})])
def test_of_a_graph_the_activations_are_those_of_its_nodes(manifest: Manifest | None) -> None:
    data = SCORES if manifest is None else append_metadata(SCORES, manifest.to_strings())
    with open_runner(data, "onnxruntime", "cpu") as runner:
        assert runner.activations == {"p": "softmax"}


@pytest.mark.parametrize(
    ("manifest", "activations"),
    [
        (None, None),
        (described(variant="third-party"), None),
        (described(variant="third-party", activations={"p": "softmax"}), {"p": "softmax"}),
        (described(), {}),
        (described(activations={"p": "softmax"}), {"p": "softmax"}),
    ],
)
def test_of_what_shows_no_nodes_they_are_those_of_its_facts(
    manifest: Manifest | None, activations: dict[str, str] | None
) -> None:
    class Told(Fake):
        @classmethod
        def open(cls, source: Any, device: Device | None, options: RunnerOptions) -> Runner:
            runner = super().open(source, device, options)
            runner.manifest = manifest
            return runner

    for source in (ModuleSource(torch.nn.ReLU()), Artifact(Path("a.xml"), "openvino", manifest)):
        assert open_with(Told, source, None, RunnerOptions()).activations == activations


def test_a_graph_that_cannot_be_read_is_refused_and_its_runner_closed() -> None:
    with pytest.raises(ModelFileError) as caught:
        open_with(Fake, Artifact(Path("a.onnx"), "onnx", None, data=b"\xff\xff"), None, RunnerOptions())
    assert caught.value.subject == "a.onnx"
    assert not Fake.opened.is_usable


def test_a_runner_for_one_batch_takes_no_other() -> None:
    runner = open_with(Fake, ModuleSource(torch.nn.ReLU()), None, RunnerOptions(batch=2))
    assert runner.inputs == (SPEC.of_batch(2),)
    runner.run(np.zeros((2, 3), np.float32))
    with pytest.raises(FeedError):
        runner.run(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("word", [None, "auto"])
def test_without_a_backend_or_device_the_best_is_taken(word: str | None) -> None:
    with open_runner(MEANS, word, word) as runner:
        assert runner.name == REFERENCE_BACKEND
        assert runner.inputs[0].shape[0] is None
        assert np.array_equal(runner.run(ONES)["logits"], ONES[:, :, 0, 0])


def test_backend_device_and_options_that_are_named_are_taken() -> None:
    with open_runner(MEANS, "onnxruntime", "cpu", RunnerOptions(batch=2, threads=1)) as runner:
        assert (runner.placement.device, runner.placement.threads) == ("cpu", 1)
        assert runner.inputs[0].shape[0] == 2


@pytest.mark.parametrize("words", [("onnxruntine", None), (None, "gpu0")])
def test_unknown_words_are_refused(words: tuple[str | None, str | None]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        open_runner(MEANS, *words)
    assert caught.value.subject in words


def test_a_backend_that_gives_no_times_refuses_to_profile() -> None:
    request = ProfileRequest(ModuleSource(torch.nn.ReLU()), Device("cpu"), RunnerOptions(), {}, 1)
    with pytest.raises(BackendError) as caught:
        Fake.profile(request)
    assert caught.value.subject == "fake"


# --- what is opened


class Holder:
    def __init__(self, inner: object) -> None:
        self._inner = inner

    def runner_source(self) -> object:
        return self._inner


def test_bytes_and_a_model_proto_are_onnx_files_in_memory() -> None:
    for source in (MEANS, bytearray(MEANS), memoryview(MEANS), onnx.ModelProto.FromString(MEANS), Holder(MEANS)):
        found = runner_source(source)  # type: ignore[arg-type]
        assert isinstance(found, Artifact)
        assert found.data == MEANS


@pytest.mark.parametrize("convert", [str, Path, Holder])
def test_a_path_is_that_of_a_file(convert: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(MEANS)
    assert runner_source(convert(path)) == Artifact.open(path)


def test_a_module_becomes_a_source_and_a_source_stays() -> None:
    module = torch.nn.ReLU()
    source = ModuleSource(module)
    assert runner_source(module) == source
    assert runner_source(source) is source
    assert runner_source(Holder(source)) is source  # type: ignore[arg-type]


def test_without_torch_there_are_no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    found = runner_source(onnx.ModelProto.FromString(MEANS))
    assert isinstance(found, Artifact)
    assert found.data == MEANS


@pytest.mark.parametrize("source", [None, 3, ["a.onnx"], np.zeros(3)])
def test_anything_else_is_a_usage_error(source: object) -> None:
    with pytest.raises(UsageError) as caught:
        open_runner(source)  # type: ignore[arg-type]
    assert caught.value.subject == type(source).__name__


# --- which backend


def test_the_backends_that_read_a_suffix_come_by_name() -> None:
    assert [kind.name for kind in backends_reading(".onnx")] == ["onnxruntime", "openvino"]
    assert [kind.name for kind in backends_reading(".engine")] == ["rtx", "tensorrt"]
    assert backends_reading(".jpg") == []


def test_the_first_with_an_installed_package_is_taken() -> None:
    class Second(Fake):
        pass

    assert first_installed([Missing, Fake, Second]) is Fake
    with pytest.raises(MissingPackageError) as caught:
        first_installed([Missing])
    assert caught.value.subject == "no_such_package"
    assert "nothing" in caught.value.fix  # the extra that installs it


def onnx_artifact(**facts: Any) -> Artifact:
    manifest = described(preprocessing=Preprocessing(), **facts)
    return Artifact.open(append_metadata(MEANS, manifest.to_strings()))


def test_a_file_is_run_first_by_the_backend_it_was_made_for() -> None:
    assert choose_backend(onnx_artifact(), None).name == "onnxruntime"
    assert choose_backend(onnx_artifact(recipe="openvino"), "auto").name == "openvino"
    assert choose_backend(onnx_artifact(recipe="openvino"), "onnxruntime").name == "onnxruntime"
    assert choose_backend(onnx_artifact(recipe="tensorrt"), None).name == "onnxruntime"
    assert not Fake.suits(Artifact.open(MEANS))
    assert not Fake.suits(onnx_artifact(recipe="openvino"))
    assert Fake.suits(onnx_artifact(recipe="fake"))


def test_a_backend_that_is_not_installed_is_passed_over_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not there
    assert choose_backend(onnx_artifact(), None).name == "openvino"
    with pytest.raises(MissingPackageError) as caught:
        choose_backend(onnx_artifact(), "onnxruntime")
    assert caught.value.subject == "onnxruntime"


def test_a_module_is_run_by_a_backend_that_reads_modules() -> None:
    source = ModuleSource(torch.nn.ReLU())
    assert choose_backend(source, None).name == choose_backend(source, "torch").name == "torch"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (ModuleSource(torch.nn.ReLU()), "onnxruntime"),
        (Artifact.open(MEANS), "torch"),
        (Artifact(Path("a.xml"), "openvino", None), "onnxruntime"),
    ],
)
def test_a_backend_that_does_not_read_the_source_is_refused(source: Any, name: str) -> None:
    with pytest.raises(BackendError) as caught:
        choose_backend(source, name)
    assert caught.value.subject == name


def test_suffixes_are_read_in_any_case() -> None:
    assert choose_backend(Artifact(Path("a.XML"), "openvino", None), None).name == "openvino"


def test_what_no_backend_reads_is_refused() -> None:
    with pytest.raises(ModelFileError) as caught:
        choose_backend(Artifact(Path("a.pth"), "checkpoint", None), None)
    assert caught.value.subject == "a.pth"
    with pytest.raises(BackendError) as refused:
        choose_backend(Artifact(Path("a.tflite"), "tflite", None), None)
    assert refused.value.subject == "a.tflite"


def test_every_backend_is_found_in_its_folder() -> None:
    assert {"onnxruntime", "openvino", "rtx", "tensorrt", "torch"} <= set(backends.names())
    assert REFERENCE_BACKEND in backends.names()
