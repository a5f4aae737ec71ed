"""DenseNets of every kind as ONNX, as written and simplified: interface, names, operators, and what they compute."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from densenet_deploy.models.build import build_model
from densenet_deploy.models.to_onnx import OnnxOptions, onnx_from_module
from densenet_deploy.variants.spec import DenseNetSpec
from tests.exported_networks import Exported

# float32 kernels that sum in another order: about a hundred roundings of numbers near 1
TOLERANCE = 1e-5


def _run(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": batch})[0]


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _modules_that_compute(exported: Exported) -> set[str]:
    leaves = {name for name, module in exported.module.named_modules() if not list(module.children())}
    return {
        name
        for name in leaves
        if not isinstance(exported.module.get_submodule(name), (torch.nn.Identity, torch.nn.Dropout))
    }


@pytest.mark.slow
def test_the_checker_accepts_it_in_full(exported):
    onnx.checker.check_model(exported.raw, full_check=True)
    onnx.checker.check_model(exported.simple, full_check=True)


def test_the_interface_is_float32_with_a_named_batch(exported):
    spec, options = exported.module.spec, exported.options
    for model in (exported.raw, exported.simple):
        (given,), (result,) = model.graph.input, model.graph.output
        batch = options.batch or "batch"
        assert (given.name, result.name) == ("input", spec.output_name)
        assert _dims(given) == [batch, 3, options.image_size, options.image_size]
        assert _dims(result) == [batch, spec.output_width]
        assert {v.type.tensor_type.elem_type for v in (given, result)} == {TensorProto.FLOAT}


def test_the_opset_is_the_one_asked_for(exported):
    for model in (exported.raw, exported.simple):
        assert {opset.domain: opset.version for opset in model.opset_import} == {"": exported.options.opset}


@pytest.mark.parametrize("samples", [1, 3])
def test_it_computes_what_the_module_computes(exported, samples):
    if exported.options.batch not in (None, samples):
        samples = exported.options.batch
    size = exported.options.image_size
    batch = np.random.default_rng(samples).standard_normal((samples, 3, size, size), np.float32)
    with torch.inference_mode():
        expected = exported.module(torch.from_numpy(batch)).numpy()
    for model in (exported.raw, exported.simple):
        np.testing.assert_allclose(_run(model, batch), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_every_module_that_computes_gives_its_name_to_one_node(exported):
    for model in (exported.raw, exported.simple):
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert _modules_that_compute(exported) <= set(names)


def test_what_a_module_returns_is_the_tensor_of_its_name(exported):
    returned: dict[str, np.ndarray] = {}
    inner = sorted(_modules_that_compute(exported) & {n.output[0] for n in exported.raw.graph.node})
    handles = [
        exported.module.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: returned.update({name: output.clone().numpy()})
        )
        for name in inner
    ]
    batch = exported.options.batch or 2
    size = exported.options.image_size
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)
    with torch.inference_mode():
        exported.module(torch.from_numpy(images))
    for handle in handles:
        handle.remove()
    tapped = onnx.ModelProto.FromString(exported.raw.SerializeToString())
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, array in zip(inner, session.run(inner, {"input": images}), strict=True):
        np.testing.assert_allclose(array, returned[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_parameters_keep_the_names_of_the_module(exported):
    stored = {tensor.name for tensor in exported.raw.graph.initializer}
    used = {name for name, _ in exported.module.named_parameters()}
    assert used <= stored


def test_simplified_it_holds_only_what_a_densenet_is(exported):
    operators = {node.op_type for node in exported.simple.graph.node}
    assert operators <= {
        "AveragePool",
        "BatchNormalization",
        "Concat",
        "Conv",
        "Gemm",
        "GlobalAveragePool",
        "MaxPool",
        "Relu",
        "Reshape",
    }


def test_convs_without_bias_stay_without(exported):
    for node in exported.raw.graph.node:
        if node.op_type == "Conv":
            assert (len(node.input) == 3) == (exported.module.get_submodule(node.name).bias is not None)


def test_nothing_tells_of_the_machine_it_was_made_on(exported):
    for model in (exported.raw, exported.simple):
        data = model.SerializeToString()
        for secret in (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]), str(Path.home()), ".py"):
            assert os.fsencode(secret) not in data
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [16, 17])
@pytest.mark.parametrize("head", ["classifier", "multiscale"])
def test_operator_sets_below_pytorchs_are_converted_and_keep_the_names(opset, head):
    spec = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, num_classes=5, head=head)
    module = build_model(spec)
    lowered, higher = (
        ir.to_proto(onnx_from_module(module, "logits", OnnxOptions(32, opset=number))) for number in (opset, 18)
    )
    batch = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    np.testing.assert_allclose(_run(lowered, batch), _run(higher, batch), rtol=TOLERANCE, atol=TOLERANCE)
    assert [(entry.domain, entry.version) for entry in lowered.opset_import] == [("", opset)]
    assert [node.name for node in lowered.graph.node] == [node.name for node in higher.graph.node]
