"""Invalid options are refused before anything starts; profiles follow from the numbers given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from densenet_deploy.engines.options import BuildOptions, batch_profiles, choose_flavour, equivalent_command
from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.nvidia import Gpu


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp8"},
        {"flavour": "rtxx"},
        {"hardware": "ampere"},
        {"verbosity": "loud"},
        {"targets": ("86",)},
        {"targets": ("8.6", "sm_90")},
        {"workspace_bytes": 0},
        {"optimization_level": 6},
        {"aux_streams": -1},
        {"dla": 16},
        {"profiles": (BatchProfile(2, 1, 4),)},
        {"profiles": (BatchProfile(0, 1, 4),)},
        {"tf32": True},
        {"precision": "fp32", "dla": 0},
    ],
)
def test_invalid_options_are_usage_errors(change) -> None:
    with pytest.raises(UsageError) as caught:
        BuildOptions(**{"flavour": "rtx", "precision": "fp16", **change})
    assert caught.value.exit_code == 2


def test_near_names_are_suggested() -> None:
    with pytest.raises(UnknownNameError) as caught:
        BuildOptions("tensorrt", "fp16", hardware="ampere+")
    assert "ampere-plus" in caught.value.fix


@pytest.mark.parametrize(
    ("low", "opt", "high", "profiles"),
    [
        ([], [], [], ()),
        ([], [], [8], (BatchProfile(1, 8, 8),)),
        ([], [4], [8], (BatchProfile(1, 4, 8),)),
        ([], [4], [], (BatchProfile(1, 4, 4),)),
        ([4], [], [], (BatchProfile(4, 4, 4),)),
        ([2], [4], [8], (BatchProfile(2, 4, 8),)),
        ([1, 2], [1, 8], [1, 16], (BatchProfile(1, 1, 1), BatchProfile(2, 8, 16))),
    ],
)
def test_profiles_from_numbers(low, opt, high, profiles) -> None:
    assert batch_profiles(low, opt, high) == profiles


@pytest.mark.parametrize(("low", "opt", "high"), [([1, 2], [], [4]), ([8], [], [4]), ([], [9], [8]), ([0], [], [1])])
def test_numbers_that_make_no_profile(low, opt, high) -> None:
    with pytest.raises(UsageError):
        batch_profiles(low, opt, high)


def test_options_survive_json() -> None:
    options = BuildOptions("rtx", "int8", batch_profiles([], [], [1, 8]), ("8.6",), workspace_bytes=2**20, refit=True)
    assert from_plain(BuildOptions, to_plain(options)) == options


def test_auto_is_rtx_unless_full_tensorrt_is_installed_and_a_gpu_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").touch()
    gpus = (Gpu(0, "Orin", "8.7"),)
    assert choose_flavour("auto", ()) == "rtx"
    assert choose_flavour("tensorrt", ()) == "tensorrt"
    monkeypatch.syspath_prepend(tmp_path)
    assert choose_flavour("auto", gpus) == "tensorrt"
    assert choose_flavour("auto", ()) == "rtx"


def test_the_line_of_trtexec() -> None:
    options = BuildOptions("tensorrt", "fp16", batch_profiles([], [4], [8]), workspace_bytes=2**30, dla=0)
    options = dataclasses.replace(options, hardware="ampere-plus", timing_cache="a b.cache", strip_weights=True)
    line = equivalent_command(options, Path("m.onnx"), Path("m.engine"), "input", (3, 32, 32), None)
    assert line.startswith("trtexec --onnx=m.onnx --saveEngine=m.engine --stronglyTyped --noTF32 ")
    for word in (
        "--minShapes=input:1x3x32x32",
        "--optShapes=input:4x3x32x32",
        "--maxShapes=input:8x3x32x32",
        "--memPoolSize=workspace:1024",
        "'--timingCacheFile=a b.cache'",
        "--hardwareCompatibilityLevel=ampere+",
        "--useDLACore=0 ",
        "--allowGPUFallback",
        "--refit --stripWeights",
    ):
        assert word in line


def test_the_line_of_tensorrt_rtx() -> None:
    options = BuildOptions("rtx", "fp32", batch_profiles([], [], [1, 8]), ("8.6", "12.0"), tf32=True)
    line = equivalent_command(options, Path("m.onnx"), Path("m.engine"), "input", (3, 32, 32), None)
    assert line.startswith("tensorrt_rtx ")
    assert "--stronglyTyped" not in line
    assert "--noTF32" not in line
    assert "--computeCapabilities=86,120" in line
    assert "--profile=0 --minShapes=input:1x3x32x32" in line
    assert "--profile=1 --minShapes=input:1x3x32x32 --optShapes=input:8x3x32x32" in line
    fixed = equivalent_command(options, Path("m.onnx"), Path("m.engine"), "input", (3, 32, 32), 4)
    assert "Shapes" not in fixed
