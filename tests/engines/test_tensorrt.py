"""The adapter: TensorRT-RTX for real, and the paths of full TensorRT 10.x by a simulation of its builder."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

import onnx
import pytest

from densenet_deploy.engines.options import BuildOptions, batch_profiles
from densenet_deploy.engines.tensorrt import engine_from_onnx, require_supported
from densenet_deploy.errors import BackendError, DeviceError, ModelFileError, ResourceError, UsageError
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.engine_files import sniff
from densenet_deploy.runtime.nvidia import Gpu
from densenet_deploy.runtime.trt import Features, TensorRT, TensorRTLog, load_tensorrt
from tests.engines.simulated_builder import simulated_tensorrt

ORIN = Gpu(0, "Orin", "8.7")


@pytest.fixture
def rtx() -> TensorRT:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return load_tensorrt("rtx")


def full(**how) -> TensorRT:
    module = simulated_tensorrt(**how)
    return TensorRT("tensorrt", module, Features.of(module), TensorRTLog(module))


def test_rtx_builds_what_the_graph_says(rtx: TensorRT, tiny_fp16: Path) -> None:
    built = engine_from_onnx(rtx, tiny_fp16, BuildOptions("rtx", "fp16", batch_profiles([], [2], [4])))
    header = sniff(bytes(built.plan))
    assert header is not None
    assert header.version == rtx.version
    assert [(t.name, t.dtype, t.shape) for t in built.inputs] == [("input", "float32", (None, 3, 32, 32))]
    assert [(t.name, t.dtype, t.shape) for t in built.outputs] == [("logits", "float32", (None, 10))]
    assert built.profiles == (BatchProfile(1, 2, 4),)
    assert set(built.asked.values()) == {"fp16"}
    assert built.notes == ()


def test_two_builds_are_the_same_bytes(rtx: TensorRT, tiny_fp16: Path) -> None:
    options = BuildOptions("rtx", "fp16")
    first, second = (bytes(engine_from_onnx(rtx, tiny_fp16, options).plan) for _ in range(2))
    assert first == second
    other = bytes(engine_from_onnx(rtx, tiny_fp16, BuildOptions("rtx", "fp16", targets=("8.6",))).plan)
    assert other != first
    assert sniff(other).targets == ("8.6",)


@pytest.mark.parametrize("data", [b"", b"hello", bytes(100)])
def test_bytes_without_a_graph_are_refused_although_the_parser_accepts_them(
    rtx: TensorRT, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "trap.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        engine_from_onnx(rtx, path, BuildOptions("rtx", "fp32"))
    assert caught.value.subject == str(path)


def test_the_parser_names_the_node_that_it_refuses(rtx: TensorRT, tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Rolu", "com.microsoft"
    path = tmp_path / "unsupported.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelFileError) as caught:
        engine_from_onnx(rtx, path, BuildOptions("rtx", "fp32"))
    assert "Rolu" in str(caught.value) or relu.name in str(caught.value)


def test_a_file_of_one_batch_takes_no_other(rtx: TensorRT, tiny_batch_4: Path) -> None:
    assert engine_from_onnx(rtx, tiny_batch_4, BuildOptions("rtx", "fp32")).profiles == (BatchProfile(4, 4, 4),)
    engine_from_onnx(rtx, tiny_batch_4, BuildOptions("rtx", "fp32", batch_profiles([4], [], [])))
    with pytest.raises(UsageError):
        engine_from_onnx(rtx, tiny_batch_4, BuildOptions("rtx", "fp32", batch_profiles([], [], [8])))


def test_a_workspace_that_is_too_small_is_a_matter_of_memory(rtx: TensorRT, tiny_onnx: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        engine_from_onnx(rtx, tiny_onnx, BuildOptions("rtx", "fp32", workspace_bytes=1))
    assert caught.value.exit_code == 6


def test_tf32_is_off_unless_asked_for(rtx: TensorRT, tiny_onnx: Path) -> None:
    plans = [bytes(engine_from_onnx(rtx, tiny_onnx, BuildOptions("rtx", "fp32", tf32=on)).plan) for on in (False, True)]
    assert [b"tf32=0" in plan for plan in plans] == [True, False]


def test_full_tensorrt_is_strongly_typed_without_precision_flags(tiny_fp16: Path) -> None:
    trt = full()
    built = engine_from_onnx(trt, tiny_fp16, BuildOptions("tensorrt", "fp16", optimization_level=5))
    ((network, config),) = trt.module.built
    assert network.strong
    assert config.flags == set()
    assert config.builder_optimization_level == 5
    assert config.profiling_verbosity.name == "DETAILED"
    assert config.profiles == [{"input": ((1, 3, 32, 32),) * 3}]
    assert sniff(bytes(built.plan)).flavour == "tensorrt"
    assert built.notes == ()


@pytest.mark.parametrize("how", [{"strong_builds": False}, {"has_strong": False}])
@pytest.mark.parametrize(("precision", "flags"), [("fp16", {"FP16"}), ("int8", {"FP16", "INT8"}), ("fp32", set())])
def test_a_tensorrt_too_old_for_strong_typing_gets_flags(tiny_fp16: Path, how, precision, flags) -> None:
    trt = full(**how)
    built = engine_from_onnx(trt, tiny_fp16, BuildOptions("tensorrt", precision))
    ((network, config),) = trt.module.built
    assert not network.strong
    assert config.flags == flags
    assert any("precision flags" in note for note in built.notes)


def test_exhausted_memory_is_not_a_reason_for_weak_types(tiny_fp16: Path) -> None:
    trt = full(strong_builds=False, says="Error Code 2: OutOfMemory (Requested size was 68719476736 bytes)")
    with pytest.raises(ResourceError):
        engine_from_onnx(trt, tiny_fp16, BuildOptions("tensorrt", "fp16"))
    assert trt.module.built == []


def test_flags_and_choices_reach_the_config(tiny_fp16: Path) -> None:
    trt = full(dla_cores=2)
    options = BuildOptions(
        "tensorrt", "fp16", workspace_bytes=2**30, hardware="ampere-plus", strip_weights=True, dla=1, aux_streams=2
    )
    engine_from_onnx(trt, tiny_fp16, options)
    ((_, config),) = trt.module.built
    assert config.flags == {"REFIT", "STRIP_PLAN", "GPU_FALLBACK"}
    assert config.pools == {"WORKSPACE": 2**30}
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert (config.default_device_type.name, config.DLA_core, config.max_aux_streams) == ("DLA", 1, 2)


@pytest.mark.parametrize(
    ("before", "started_anew"), [(None, False), (b"mine", False), (b"corrupt", True), (b"other gpu", True)]
)
def test_the_timing_cache_is_kept_or_started_anew(tiny_fp16: Path, tmp_path: Path, before, started_anew) -> None:
    path = tmp_path / "timing.cache"
    if before is not None:
        path.write_bytes(before)
    built = engine_from_onnx(full(), tiny_fp16, BuildOptions("tensorrt", "fp16", timing_cache=str(path)))
    assert path.read_bytes() == (b"" if started_anew or before is None else before) + b"+1"
    assert bool(built.notes) is started_anew


def test_a_build_that_fails_gives_tensorrts_reason(tiny_fp16: Path) -> None:
    module = simulated_tensorrt(strong_builds=False)
    features = dataclasses.replace(Features.of(module), weak_typing=False)
    trt = TensorRT("tensorrt", module, features, TensorRTLog(module))
    with pytest.raises(BackendError) as caught:
        engine_from_onnx(trt, tiny_fp16, BuildOptions("tensorrt", "fp16"))
    assert "Myelin (no)" in caught.value.why


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"hardware": "ampere-plus"}, "--hardware-compatibility"),
        ({"version_compatible": True}, "--version-compatible"),
        ({"timing_cache": "a.cache"}, "--timing-cache"),
        ({"dla": 0}, "--dla"),
        ({"refit": True}, "--refit"),
        ({"strip_weights": True}, "--strip-weights"),
        ({"targets": ("8.6", "9.0")}, "--target=9.0"),
        ({"targets": ("8.7",)}, "--target=8.7"),
    ],
)
def test_rtx_refuses_what_it_lacks(rtx: TensorRT, change, subject) -> None:
    with pytest.raises(BackendError) as caught:
        require_supported(rtx, BuildOptions("rtx", "fp16", **change), ())
    assert (caught.value.subject, caught.value.exit_code) == (subject, 5)


def test_rtx_accepts_the_rest_without_a_gpu(rtx: TensorRT) -> None:
    require_supported(rtx, BuildOptions("rtx", "fp16", targets=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")), ())
    require_supported(rtx, BuildOptions("rtx", "fp16", refit=True), (Gpu(0, "RTX 4090", "8.9"),))


def test_full_tensorrt_needs_a_gpu_and_takes_no_targets() -> None:
    with pytest.raises(DeviceError) as caught:
        require_supported(full(), BuildOptions("tensorrt", "fp16"), ())
    assert caught.value.subject == "GPU"
    with pytest.raises(BackendError) as refused:
        require_supported(full(), BuildOptions("tensorrt", "fp16", targets=("8.6",)), (ORIN,))
    assert refused.value.subject == "--target"


def test_full_tensorrt_refuses_levels_of_later_releases() -> None:
    with pytest.raises(BackendError) as caught:
        require_supported(full(), BuildOptions("tensorrt", "fp16", hardware="same-compute-capability"), (ORIN,))
    assert caught.value.subject == "--hardware-compatibility"
    require_supported(full(), BuildOptions("tensorrt", "fp16", hardware="ampere-plus"), (ORIN,))


def test_a_dla_must_exist() -> None:
    with pytest.raises(DeviceError) as caught:
        require_supported(full(dla_cores=2), BuildOptions("tensorrt", "int8", dla=2), (ORIN,))
    assert caught.value.subject == "--dla=2"
    require_supported(full(dla_cores=2), BuildOptions("tensorrt", "int8", dla=1), (ORIN,))


def test_a_flag_that_a_release_lacks_is_named() -> None:
    trt = full()
    trt.module.BuilderFlag = enum.IntEnum("BuilderFlag", ["TF32", "REFIT"])
    with pytest.raises(BackendError) as caught:
        require_supported(trt, BuildOptions("tensorrt", "fp16", strip_weights=True), (ORIN,))
    assert caught.value.subject == "BuilderFlag.STRIP_PLAN"
    require_supported(trt, BuildOptions("tensorrt", "fp16", refit=True), (ORIN,))


@pytest.mark.parametrize(("name", "hint"), [("tiny.onnx", True), ("tiny\udcff.onnx", False)])
def test_the_parser_is_told_the_folder_unless_its_name_is_not_text(
    tiny_fp16: Path, tmp_path: Path, name: str, hint: bool
) -> None:
    path = tmp_path / name
    path.write_bytes(tiny_fp16.read_bytes())
    trt = full()
    engine_from_onnx(trt, path, BuildOptions("tensorrt", "fp16"))
    ((network, _),) = trt.module.built
    assert network.path == (str(path) if hint else None)


def test_a_parser_that_refuses_without_a_reason_is_an_error_about_the_file(tiny_fp16: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        engine_from_onnx(full(parses=False), tiny_fp16, BuildOptions("tensorrt", "fp16"))
    assert caught.value.subject == str(tiny_fp16)


def test_a_target_that_the_config_refuses_is_named(tiny_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, trt = [], full()

    def refuse_second(_config, capability, index) -> bool:
        given.append((capability, index))
        return index == 0

    monkeypatch.setattr(trt.module.IBuilderConfig, "set_compute_capability", refuse_second, raising=False)
    trt.module.ComputeCapability = enum.IntEnum("ComputeCapability", ["SM86", "SM120"])
    with pytest.raises(BackendError) as caught:
        engine_from_onnx(trt, tiny_fp16, BuildOptions("tensorrt", "fp16", targets=("8.6", "12.0")))
    assert caught.value.subject == "--target=12.0"
    assert given[:2] == [(trt.module.ComputeCapability.SM86, 0), (trt.module.ComputeCapability.SM120, 1)]


def test_a_profile_that_the_config_refuses_is_named(tiny_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = full()
    monkeypatch.setattr(trt.module.IBuilderConfig, "add_optimization_profile", lambda *_: -1)
    with pytest.raises(BackendError) as caught:
        engine_from_onnx(trt, tiny_fp16, BuildOptions("tensorrt", "fp16", batch_profiles([1], [2], [4])))
    assert caught.value.subject == str(BatchProfile(1, 2, 4))


@pytest.mark.parametrize("change", ["second input", "a row", "any height"])
def test_a_graph_that_does_not_take_images_of_one_size_is_refused(tiny_fp16: Path, tmp_path: Path, change: str) -> None:
    model = onnx.load(tiny_fp16)
    (given,) = model.graph.input
    if change == "second input":
        model.graph.input.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [1]))
    if change == "a row":
        del given.type.tensor_type.shape.dim[2:]
    if change == "any height":
        given.type.tensor_type.shape.dim[2].Clear()
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError) as caught:
        engine_from_onnx(full(), tmp_path / "changed.onnx", BuildOptions("tensorrt", "fp16"))
    assert caught.value.subject == "graph"


def test_a_convolution_is_asked_for_in_int8_if_its_data_and_its_weights_are_quantized(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        graph (float[N,1,2,2] x, float[1,1,1,1] w) => (float[N,1,2,2] c) <float s = {0.5}, int8 z = {0}> {
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            wq = QuantizeLinear(w, s, z)
            wd = DequantizeLinear(wq, s, z)
            a = Conv(xd, wd)
            b = Conv(a, wd)
            c = Conv(xd, w)
        }""")
    for node in model.graph.node:
        node.name = node.output[0]
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1, 1, 1, 1], [2.0])
    model.graph.initializer.append(weight)
    del model.graph.input[1]
    onnx.save(model, tmp_path / "int8.onnx")
    built = engine_from_onnx(full(), tmp_path / "int8.onnx", BuildOptions("tensorrt", "int8"))
    assert built.asked == {"a": "int8", "b": "fp16", "c": "fp16"}


def test_a_timing_cache_that_is_refused_even_when_empty_is_an_error(
    tiny_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, trt = tmp_path / "timing.cache", full()
    monkeypatch.setattr(trt.module.IBuilderConfig, "create_timing_cache", lambda *_: None)
    with pytest.raises(BackendError) as caught:
        engine_from_onnx(trt, tiny_fp16, BuildOptions("tensorrt", "fp16", timing_cache=str(path)))
    assert caught.value.subject == str(path)
    assert not path.exists()
