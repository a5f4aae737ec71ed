"""The float32 form of a model, and the form that takes pixels: what changes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import ModelFileError
from densenet_deploy.model import Model
from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.float_model import (
    float32_form,
    input_manifest,
    normalized_form,
    pixel_form,
    require_float32,
)
from densenet_deploy.workflows.load import load

QUANTIZED = """
    <ir_version: 9, opset_import: ["" : 20]>
    g (float16[N,1,2,2] x) => (float16[N,2,2,2] y)
    <float16 s = {1}, int8 z = {0}, float16[2,1,1,1] w = {1, 2}> {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        y = Conv (d, w)
    }"""


@pytest.fixture(scope="module")
def half(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return cast(tiny_onnx, CastOptions("fp16"), out=tmp_path_factory.mktemp("half") / "tiny.fp16.onnx")


def quantized() -> Model:
    model = Model.from_onnx("odd.fp16", onnx.parser.parse_model(QUANTIZED), None)
    assert model.precision == "fp16"
    return model


def weights(model: Model) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.onnx.graph.initializer}


def test_half_weights_are_widened_and_that_is_said(half: Model) -> None:
    wide = float32_form(half)
    assert (wide.name, wide.precision, wide.manifest.precision) == ("tiny", "fp32", "fp32")
    assert wide.notes[:-1] == half.notes
    assert "fp16" in wide.notes[-1]
    before, after = (
        {one.name: onnx.numpy_helper.to_array(one) for one in m.onnx.graph.initializer} for m in (half, wide)
    )
    for name, array in before.items():
        if array.dtype == np.float16:
            np.testing.assert_array_equal(after[name], array.astype(np.float32))
    require_float32(wide)


def test_what_is_float32_or_quantized_or_a_module_has_no_other_form(tiny_onnx: Path, checkpoint: Path) -> None:
    for model in (load(tiny_onnx), quantized(), load(checkpoint)):
        assert float32_form(model) is model


def test_a_form_of_other_inputs_keeps_everything_else(tiny_onnx: Path) -> None:
    model = load(tiny_onnx)
    assert normalized_form(model) is model
    pixels = pixel_form(model)
    assert (pixels.name, pixels.notes, pixels.report) == (model.name, model.notes, model.report)
    assert pixels.manifest == input_manifest(model.manifest, "uint8")
    assert pixels.manifest.preprocessing.dtype == "uint8"
    again = normalized_form(pixels)
    assert again.manifest == model.manifest
    assert [node.name for node in again.onnx.graph.node] == [node.name for node in model.onnx.graph.node]


def test_without_facts_there_are_none_of_the_other_form() -> None:
    assert input_manifest(None, "uint8") is None


def test_only_float32_graphs_are_accepted(tiny_onnx: Path, checkpoint: Path, half: Model) -> None:
    require_float32(load(tiny_onnx))
    file = Model("weights", artifact=Artifact.open(checkpoint))
    refused = [(load(checkpoint), "tiny"), (file, str(checkpoint)), (half, str(half.path))]
    for model, subject in [*refused, (quantized(), "odd.fp16")]:
        with pytest.raises(ModelFileError) as caught:
            require_float32(model)
        assert caught.value.subject == subject
