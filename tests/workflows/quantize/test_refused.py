"""Files, images, paths and options that quantize refuses before it calibrates."""

from __future__ import annotations

import pytest

from densenet_deploy.errors import DataError, ModelFileError, OutputExistsError, UnknownNameError, UsageError
from densenet_deploy.quantization.observers.percentile import PercentileOptions
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import weight_bits
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


@pytest.mark.slow
def test_a_quantized_file_is_refused(tiny_onnx, tmp_path):
    int8 = quantize(tiny_onnx, SAMPLES, QuantizeOptions(never_slower=False, samples=32), out=tmp_path).report
    with pytest.raises(ModelFileError) as caught:
        quantize(int8.onnx, SAMPLES)
    assert caught.value.subject == str(int8.onnx)


def test_too_few_images_are_refused(tiny_onnx, tmp_path):
    with pytest.raises(DataError):
        quantize(tiny_onnx, SAMPLES, QuantizeOptions(samples=31), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_in_the_way_survives(tiny_onnx, tmp_path):
    foreign = tmp_path / "x.onnx"
    foreign.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        quantize(tiny_onnx, SAMPLES, out=foreign)
    assert foreign.read_bytes() == b"mine"


def test_words_and_numbers_are_checked(tiny_onnx):
    with pytest.raises(UnknownNameError) as caught:
        quantize(tiny_onnx, SAMPLES, QuantizeOptions(never_slower=False, recipe="openvin"))
    assert "'openvino'" in caught.value.fix
    with pytest.raises(UnknownNameError) as caught:
        QuantizeOptions(weights="per-chanel")
    assert "'per-channel'" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        QuantizeOptions(alpha=1.5)
    assert caught.value.subject == "alpha=1.5"


def test_observers_and_their_options_are_checked_at_once():
    with pytest.raises(UnknownNameError):
        QuantizeOptions(observer="percentil")
    with pytest.raises(UsageError):
        QuantizeOptions(observer="mse", observer_options=PercentileOptions())
    options = QuantizeOptions(observer="percentile", observer_options=PercentileOptions(percentile=99.9))
    assert options.observer_options == PercentileOptions(percentile=99.9)


def test_seven_bits_only_where_kernels_saturate():
    assert weight_bits(frozenset({"sse2", "avx2"})) == 7
    assert weight_bits(frozenset({"sse2", "avx2", "avx512_vnni"})) == 8
    assert weight_bits(frozenset({"asimd"})) == 8
