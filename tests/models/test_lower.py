"""What is written straight from weights is the file that PyTorch's exporter, onnxsim and the exact passes make."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import strategies as st
from onnx import numpy_helper

from densenet_deploy.errors import UsageError
from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.models.lower import OnnxOptions, lowered, raised
from densenet_deploy.models.to_onnx import onnx_from_module
from densenet_deploy.parity.reference import numpy_outputs
from densenet_deploy.variants.spec import HEADS, POOLINGS, STEMS, DenseNetSpec
from densenet_deploy.workflows.simplify import finished, simplify_graph
from tests.properties.holds import holds_for

SMALL = {"growth_rate": 3, "blocks": (2, 1), "init_features": 4, "bn_size": 2, "num_classes": 5}

# Every stem, pooling, kind of layer and head, and every operator set that PyTorch writes or converts to.
CASES = {
    "classifier, dynamic batch, not square, opset 20": ({"stem": "imagenet"}, OnnxOptions((40, 24))),
    "blur, hidden layers, no bias, one channel, opset 21": (
        {"stem": "deep-blur", "pooling": "max-avg", "hidden": "linear:7 norm relu linear:6:nobias relu", "bias": False},
        OnnxOptions((24, 17), channels=1, opset=21),
    ),
    "blur, norm as output, batch 1, opset 18": (
        {"stem": "deep-blur", "head": "features", "hidden": "norm", "in_channels": 1},
        OnnxOptions(16, channels=1, batch=1, opset=18),
    ),
    "plain layers, dropout, features, batch 3, opset 19": (
        {"stem": "cifar", "bn_size": 0, "drop_rate": 0.2, "head": "features"},
        OnnxOptions(9, batch=3, opset=19),
    ),
    "pruned bottlenecks": ({"stem": "cifar", "bottlenecks": (1, 5, 4)}, OnnxOptions(9)),
    "multiscale, batch 1, opset 23": ({"stem": "3x3-pool", "head": "multiscale"}, OnnxOptions(32, batch=1, opset=23)),
    "means alone, linear output, opset 16": (
        {"stem": "imagenet-nopool", "pooling": "avg", "head": "features", "hidden": "linear:4"},
        OnnxOptions(16, opset=16),
    ),
    "one block of three layers, opset 17": (
        {"stem": "deep", "blocks": (3,), "hidden": "relu"},
        OnnxOptions(8, opset=17),
    ),
    "three blocks, all channels kept, opset 22": (
        {"stem": "3x3-nopool", "blocks": (1, 2, 1), "compression": 1.0, "in_channels": 2},
        OnnxOptions((4, 7), channels=2, batch=2, opset=22),
    ),
}


def network(spec: DenseNetSpec, seed: int = 2) -> DenseNet:
    """A network whose statistics and biases are all different, so that no mix-up goes unseen."""
    module = build_model(spec, seed=1)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and ("norm" in name or name.endswith("bias")):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return module


def state_of(module: DenseNet) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def written(module: DenseNet, options: OnnxOptions) -> onnx.ModelProto:
    return finished(lowered(module.spec, state_of(module), options), "it")


def traced(module: DenseNet, options: OnnxOptions) -> onnx.ModelProto:
    return simplify_graph(onnx_from_module(module, module.spec.output_name, options), "it").proto


def plain(model: onnx.ModelProto) -> dict[str, Any]:
    """Everything in a model but its weights, the order of attributes, and the shapes of weights."""
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    return {
        "nodes": [
            (node.op_type, node.domain, node.name, [*node.input], [*node.output], sorted(map(str, node.attribute)))
            for node in graph.node
        ],
        "shapes": sorted(str(value) for value in graph.value_info if value.name in made),
        "ends": [str(value) for value in (*graph.input, *graph.output)],
        "weights": [(tensor.name, tensor.data_type, [*tensor.dims]) for tensor in graph.initializer],
        "file": [model.ir_version, model.producer_name, model.producer_version, graph.name, str(model.opset_import)],
        "facts": [(entry.key, entry.value) for entry in model.metadata_props],
    }


def assert_same(ours: onnx.ModelProto, theirs: onnx.ModelProto) -> None:
    found, expected = plain(ours), plain(theirs)
    for part, value in expected.items():
        assert found[part] == value, part
    for tensor, other in zip(ours.graph.initializer, theirs.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(other), tensor.name)


ORDINARY = 3  # of the cases; the exporter takes seconds for each


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if place >= ORDINARY else [])
        for place, (name, case) in enumerate(CASES.items())
    ],
)
def test_the_file_is_the_one_that_the_exporter_writes(case):
    numbers, options = case
    module = network(DenseNetSpec(**{**SMALL, **({"in_channels": options.channels} | numbers)}))
    assert_same(written(module, options), traced(module, options))


WIDTHS = st.integers(1, 4)
SPECS = st.builds(
    lambda head, pooling, hidden, **numbers: DenseNetSpec(
        head=head,
        pooling="relu-avg" if head == "multiscale" else pooling,
        hidden="" if head == "multiscale" else hidden,
        **numbers,
    ),
    head=st.sampled_from(HEADS),
    pooling=st.sampled_from(POOLINGS),
    hidden=st.lists(st.sampled_from(("linear:5", "linear:7:nobias", "norm", "relu")), max_size=4).map(" ".join),
    growth_rate=WIDTHS,
    blocks=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    init_features=st.integers(2, 6),
    compression=st.sampled_from((0.5, 1.0, 0.75)),
    bn_size=st.integers(0, 2),
    drop_rate=st.sampled_from((0.0, 0.2)),
    stem=st.sampled_from(STEMS),
    num_classes=WIDTHS,
    in_channels=WIDTHS,
    bias=st.booleans(),
)


@holds_for(
    few=2,
    many=15,
    shrink=False,
    spec=SPECS,
    more=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    batch=st.none() | st.integers(1, 3),
    opset=st.integers(16, 23),
)
def test_any_network_is_written_as_by_the_exporter(
    spec: DenseNetSpec, more: tuple[int, int], batch: int | None, opset: int
) -> None:
    height, width = (spec.smallest_image_size + extra for extra in more)
    lowest = 18 if spec.stem_layers.pool == "blur" else 16  # the converter of the onnx package has no Pad before that
    options = OnnxOptions((height, width), spec.in_channels, batch, max(opset, lowest))
    module = network(spec)
    assert_same(written(module, options), traced(module, options))


@pytest.mark.parametrize("opset", [16, 17])
def test_a_blur_is_written_in_operator_sets_to_which_pytorchs_is_not_converted(opset):
    module = network(DenseNetSpec(**SMALL, stem="deep-blur"))
    model = written(module, OnnxOptions((12, 9), opset=opset))
    images = np.random.default_rng(0).standard_normal((2, 3, 12, 9), np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = numpy_outputs(module.spec, state_of(module), images)
    # float32 sums of up to a hundred products, of numbers near 1
    np.testing.assert_allclose(session.run(None, {"input": images})[0], expected, rtol=1e-5, atol=1e-5)


def test_a_norm_is_folded_in_float64_and_rounded_once():
    spec = DenseNetSpec(1, (1,), 1, bn_size=0, stem="3x3-nopool", num_classes=1, in_channels=1)
    state = state_of(network(spec))
    state["features.conv0.weight"][:] = np.float32(1 / 3)
    norm = {"weight": 3.0, "bias": 0.25, "running_mean": 1e-3, "running_var": 0.1}
    for name, value in norm.items():
        state[f"features.norm0.{name}"][:] = value
    model = lowered(spec, state, OnnxOptions(4, channels=1))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scale = 3 / np.sqrt(np.float64(np.float32(0.1)) + np.float64(np.float32(1e-5)))
    assert set(weights["features.conv0.folded.weight"].ravel()) == {np.float32(np.float64(np.float32(1 / 3)) * scale)}
    assert weights["features.conv0.folded.bias"] == np.float32(0.25 - np.float64(np.float32(1e-3)) * scale)
    assert not {"features.conv0.weight", "features.norm0.weight"} & weights.keys()


def test_the_graph_and_its_ends_have_names():
    model = lowered(DenseNetSpec(**SMALL, head="features"), state_of(network(DenseNetSpec(**SMALL))), OnnxOptions(32))
    graph = model.graph
    assert (graph.name, graph.input[0].name, graph.output[0].name) == ("densenet", "input", "features")
    (batch, *_), (also, width) = (value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output))
    assert (batch.dim_param, also.dim_param, width.dim_value) == ("batch", "batch", 8)


def test_the_weights_are_not_changed():
    module = network(DenseNetSpec(**SMALL))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    written(module, OnnxOptions(32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "lowest", "highest", "subject"),
    [
        ("image_size", 1, 8192, "image-size"),
        ("channels", 1, 4096, "channels"),
        ("opset", 16, 23, "opset"),
        ("batch", 1, 4096, "batch"),
    ],
)
def test_numbers_of_a_file_have_limits(name, lowest, highest, subject):
    for value in (lowest, highest):
        assert getattr(OnnxOptions(**{name: value}), name) == value
    for value in (lowest - 1, highest + 1):
        with pytest.raises(UsageError) as caught:
            OnnxOptions(**{name: value})
        assert caught.value.subject == f"{subject}={value}"


@pytest.mark.parametrize("size", [(8193, 32), (32, 8193)])
def test_either_side_has_the_limit(size):
    with pytest.raises(UsageError) as caught:
        OnnxOptions(size)
    assert caught.value.subject == "image-size=8193"
    assert OnnxOptions((8192, 32), channels=2).image_shape == (2, 8192, 32)


def test_what_was_changed_in_a_graph_is_raised_to_weights_that_are_lowered_to_it() -> None:
    """All numbers of the graph but running statistics; a norm whose scale is zero gets one."""
    module = network(DenseNetSpec(**SMALL, stem="deep"))
    weights = state_of(module)
    weights["features.denseblock1.denselayer1.norm2.weight"][0] = 0
    rng = np.random.default_rng(0)
    model = lowered(module.spec, weights, OnnxOptions(16))
    changed = {
        tensor.name: numpy_helper.to_array(tensor) * rng.uniform(0.9, 1.1, tuple(tensor.dims)).astype(np.float32)
        + np.float32(0.01)
        for tensor in model.graph.initializer
        if "running" not in tensor.name
    }
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = raised(module.spec, {**stored, **changed}, weights)
    again = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in lowered(module.spec, found, OnnxOptions(16)).graph.initializer
    }
    assert again.keys() == stored.keys()
    for name, array in changed.items():
        np.testing.assert_allclose(again[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    statistics = [name for name in weights if "running" in name]
    assert all(np.array_equal(found[name], weights[name]) for name in statistics)


def test_weights_that_did_not_change_are_raised_to_themselves() -> None:
    module = network(DenseNetSpec(**SMALL))
    weights = state_of(module)
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in lowered(module.spec, weights, OnnxOptions(32)).graph.initializer
    }
    for name, array in raised(module.spec, stored, weights).items():
        np.testing.assert_allclose(array, weights[name], rtol=1e-5, atol=1e-6, err_msg=name)
