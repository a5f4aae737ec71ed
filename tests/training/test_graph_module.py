"""Graphs run in PyTorch against ONNX Runtime: families, encodings, recipes; what is trained and written; errors."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.pixel_input import with_pixel_input
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.int8_writer import Int8Writer
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.recipes.recipe import RecipeOptions
from densenet_deploy.training.graph_module import GraphModule, with_initializers
from tests.exported_networks import Exported
from tests.foreign_networks import Encoding, image, plain
from tests.graph.passes.networks import make_network
from tests.graph.passes.networks import run as run_values

NETWORKS = ("classifier", "plain features", "multiscale")


def expected(model: onnx.ModelProto, inputs: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime gives, without changing the graph first."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})


def sqnr_db(model: onnx.ModelProto, inputs: np.ndarray) -> float:
    """Of the worst output of the module against ONNX Runtime; at most 200."""
    module = GraphModule(model)
    with torch.no_grad():
        found = module(torch.from_numpy(inputs))
    ratios = []
    for name, wanted in zip(module.names, expected(model, inputs), strict=True):
        assert found[name].shape == wanted.shape
        error = np.square(wanted - found[name].numpy(), dtype=np.float64).sum()
        ratios.append(10 * np.log10(np.square(wanted, dtype=np.float64).sum() / max(error, 1e-20)))
    return min(200.0, *ratios, 200.0)


def test_every_family_as_export_writes_it(exported: Exported) -> None:
    options = exported.options
    shape = (options.batch or 2, 3, options.image_size, options.image_size)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    assert sqnr_db(exported.simple, images) > 100


@pytest.mark.parametrize(
    "encoding",
    [
        *(Encoding(opset=opset, head=head) for head in ("gemm", "matmul", "matmul-add", "conv") for opset in (9, 13)),
        *(Encoding(opset=opset, head=head) for head in ("reshape", "squeeze", "avgpool") for opset in (9, 13)),
        *(Encoding(norm=norm, ending="Softmax") for norm in ("caffe", "mul-add", "sub-div-mul-add")),
        Encoding(opset=9, ending="Softmax", bias_as_add=True),
        Encoding(ending="Sigmoid", pads=True, layout="NHWC"),
        Encoding(opset=9, pads=True, leading=(("Sub", 0.5, False), ("Div", (0.2, 0.3, 0.25), False))),
    ],
    ids=str,
)
def test_other_exporters_encodings(encoding: Encoding) -> None:
    assert sqnr_db(plain(encoding), image(encoding)) > 100


@functools.cache
def quantized(recipe: str, head: str = "classifier", kept: tuple[int, ...] = ()) -> tuple[onnx.ModelProto, np.ndarray]:
    """An INT8 file with 7-bit weights, which are exact on every CPU, and images for it."""
    network = make_network(head)
    values = run_values(network.proto, network.images) | {network.proto.graph.input[0].name: network.images}
    ranges = {n: ChannelRanges(v.min((0, 2, 3)), v.max((0, 2, 3))) for n, v in values.items() if v.ndim == 4}
    writer = Int8Writer(network.model(), ranges, recipe, RecipeOptions(weight_bits=7))
    return onnx.load_from_string(writer.write([writer.layers[place] for place in kept]).data), network.images


@pytest.mark.parametrize("kept", [(), (2, 3)], ids=["all INT8", "some float"])
@pytest.mark.parametrize("head", NETWORKS)
def test_integer_operators_are_exact(head: str, kept: tuple[int, ...]) -> None:
    assert sqnr_db(*quantized("onnxruntime", head, kept)) > 100


@pytest.mark.parametrize("kept", [(), (2, 3)], ids=["all INT8", "some float"])
@pytest.mark.parametrize("head", NETWORKS)
def test_quantized_values_differ_where_a_float_sum_is_halfway_between_two(head: str, kept: tuple[int, ...]) -> None:
    """A float convolution adds in another order; a value that goes the other way is one step off."""
    assert sqnr_db(*quantized("openvino", head, kept)) > 55


@pytest.mark.parametrize("head", NETWORKS)
def test_fp16_is_computed_in_float32(head: str) -> None:
    """Rounding to 11 bits sends a few of 100 values at 8 bits to the next step: the noise of quantization itself."""
    assert sqnr_db(*quantized("tensorrt", head)) > 35


def test_a_graph_that_reads_pixels() -> None:
    encoding = Encoding()
    preprocessing = Preprocessing(image_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    model = with_pixel_input(plain(encoding), preprocessing)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert sqnr_db(model, pixels) > 100


# -- what is trained, and what comes back


def _tiny() -> onnx.ModelProto:
    return plain(Encoding())


def test_only_named_initializers_get_a_gradient() -> None:
    model = _tiny()
    first, second = (tensor.name for tensor in model.graph.initializer[:2])
    module = GraphModule(model, [second])
    module(torch.from_numpy(image(Encoding())))["scores"].sum().backward()
    assert [parameter.requires_grad for parameter in module.parameters()].count(True) == 1
    assert module.initializer(second).grad is not None
    assert module.initializer(first).grad is None


def test_a_gradient_is_the_slope_of_the_outputs() -> None:
    model = _tiny()
    name = model.graph.node[-1].input[1]  # the outputs are linear in the weights of the classifier
    module = GraphModule(model, [name])
    images = torch.from_numpy(image(Encoding()))
    before = module(images)["scores"].sum()
    before.backward()
    weight = module.initializer(name)
    with torch.no_grad():
        weight[0, 0] += 1
        after = module(images)["scores"].sum()
    assert (after - before).item() == pytest.approx(weight.grad[0, 0].item(), rel=1e-3)


def test_nothing_trained_writes_the_same_file_and_a_change_is_written() -> None:
    model = _tiny()
    name = model.graph.initializer[0].name
    module = GraphModule(model, [name])
    assert module.written().SerializeToString() == model.SerializeToString()
    with torch.no_grad():
        module.initializer(name).mul_(2)
    written = module.written()
    images = image(Encoding())
    assert sqnr_db(written, images) > 100
    with torch.no_grad():
        own = module(torch.from_numpy(images))["scores"].numpy()
    np.testing.assert_allclose(own, expected(written, images)[0], rtol=1e-5, atol=1e-5)
    same = [a == b for a, b in zip(model.graph.initializer, written.graph.initializer, strict=True)]
    assert same.count(False) == 1


def test_stored_types_stay_and_integers_are_rounded_and_held_inside() -> None:
    model, _ = quantized("onnxruntime")
    weight = next(
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    )
    numbers = onnx.numpy_helper.to_array(weight).astype(np.float32)
    numbers.flat[:4] = 2.5, -3.5, 300.0, -300.0
    changed = with_initializers(model, {weight.name: numbers})
    found = next(tensor for tensor in changed.graph.initializer if tensor.name == weight.name)
    assert (found.data_type, list(found.dims)) == (weight.data_type, list(weight.dims))
    assert onnx.numpy_helper.to_array(found).flat[:4].tolist() == [2, -4, 127, -128]


def test_tensors_instead_of_initializers_and_inner_values() -> None:
    model = _tiny()
    name, inner = model.graph.initializer[0].name, model.graph.node[0].output[0]
    module, images = GraphModule(model), torch.from_numpy(image(Encoding()))
    with torch.no_grad():
        plainly = module(images, seen=[inner])
        doubled = module(images, {name: 2 * module.initializer(name)}, [inner])
    assert set(plainly) == {"scores", inner}
    torch.testing.assert_close(doubled[inner], 2 * plainly[inner])


# -- errors


def test_an_unknown_operator_is_named() -> None:
    model = _tiny()
    model.graph.node[3].op_type, model.graph.node[3].name = "Erf", "odd"
    with pytest.raises(ModelFileError) as caught:
        GraphModule(model)
    assert "odd" in caught.value.subject
    assert "Erf" in caught.value.why
    model.graph.node[3].op_type, model.graph.node[3].domain = "Relu", "com.microsoft"
    with pytest.raises(ModelFileError) as caught:
        GraphModule(model)
    assert "com.microsoft.Relu" in caught.value.why


def test_an_initializer_that_is_not_there_and_a_second_input_are_refused() -> None:
    model = _tiny()
    with pytest.raises(ModelFileError) as caught:
        GraphModule(model, ["nowhere"])
    assert caught.value.subject == "nowhere"
    model.graph.input.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(ModelFileError) as caught:
        GraphModule(model)
    assert "other" in caught.value.subject
