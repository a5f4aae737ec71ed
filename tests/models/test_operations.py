"""The nodes of a DenseNet, listed from its numbers: names, order, shapes; its parameters are those of the module."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.models.build import empty_model
from densenet_deploy.models.operations import Operation, operations, parameter_shapes
from densenet_deploy.variants import find_variant, variant_names
from densenet_deploy.variants.spec import POOLINGS, STEMS, DenseNetSpec

SMALL = {"growth_rate": 3, "blocks": (2, 1), "init_features": 4, "bn_size": 2, "num_classes": 5}


def lines(**numbers) -> list[str]:
    """Each node as `output = Operator(inputs)`, without the beginning that all names of a block share."""
    nodes = operations(DenseNetSpec(**{**SMALL, **numbers}))
    return [f"{node.output} = {node.op_type}({', '.join((*node.inputs, *node.constants))})" for node in nodes]


def test_the_nodes_of_bottlenecks_in_the_order_of_execution():
    assert lines(stem="cifar") == [
        "features.conv0 = Conv(input)",
        "features.denseblock1.denselayer1.norm1 = BatchNormalization(features.conv0)",
        "features.denseblock1.denselayer1.relu1 = Relu(features.denseblock1.denselayer1.norm1)",
        "features.denseblock1.denselayer1.norm2 = Conv(features.denseblock1.denselayer1.relu1)",
        "features.denseblock1.denselayer1.relu2 = Relu(features.denseblock1.denselayer1.norm2)",
        "features.denseblock1.denselayer1.conv2 = Conv(features.denseblock1.denselayer1.relu2)",
        "features.denseblock1.denselayer2.concat = Concat(features.conv0, features.denseblock1.denselayer1.conv2)",
        "features.denseblock1.denselayer2.norm1 = BatchNormalization(features.denseblock1.denselayer2.concat)",
        "features.denseblock1.denselayer2.relu1 = Relu(features.denseblock1.denselayer2.norm1)",
        "features.denseblock1.denselayer2.norm2 = Conv(features.denseblock1.denselayer2.relu1)",
        "features.denseblock1.denselayer2.relu2 = Relu(features.denseblock1.denselayer2.norm2)",
        "features.denseblock1.denselayer2.conv2 = Conv(features.denseblock1.denselayer2.relu2)",
        (
            "features.denseblock1.concat = Concat("
            "features.denseblock1.denselayer2.concat, features.denseblock1.denselayer2.conv2)"
        ),
        "features.transition1.norm = BatchNormalization(features.denseblock1.concat)",
        "features.transition1.relu = Relu(features.transition1.norm)",
        "features.transition1.relu:pooled = AveragePool(features.transition1.relu)",
        "features.transition1.pool = Conv(features.transition1.relu:pooled)",
        "features.denseblock2.denselayer1.norm1 = BatchNormalization(features.transition1.pool)",
        "features.denseblock2.denselayer1.relu1 = Relu(features.denseblock2.denselayer1.norm1)",
        "features.denseblock2.denselayer1.norm2 = Conv(features.denseblock2.denselayer1.relu1)",
        "features.denseblock2.denselayer1.relu2 = Relu(features.denseblock2.denselayer1.norm2)",
        "features.denseblock2.denselayer1.conv2 = Conv(features.denseblock2.denselayer1.relu2)",
        "features.denseblock2.concat = Concat(features.transition1.pool, features.denseblock2.denselayer1.conv2)",
        "features.norm5 = BatchNormalization(features.denseblock2.concat)",
        "head.relu = Relu(features.norm5)",
        "head.pool = GlobalAveragePool(head.relu)",
        "head.flatten = Flatten(head.pool)",
        "logits = Gemm(head.flatten)",
    ]


def test_a_stem_that_blurs_reads_its_margin_and_its_filter():
    assert lines(stem="deep-blur")[5:9] == [
        "features.relu2 = Relu(features.norm2)",
        "features.pool0.max = MaxPool(features.relu2)",
        "features.pool0.blur.pad = Pad(features.pool0.max, features.pool0.blur.constant)",
        "features.pool0.blur = Conv(features.pool0.blur.pad, features.pool0.blur.filter)",
    ]


def test_the_last_node_makes_the_output_whatever_it_is():
    assert lines(head="features")[-1] == "features = Flatten(head.pool)"
    assert lines(head="features", hidden="norm relu")[-1] == "features = Relu(head.norm1)"
    assert lines(head="multiscale")[-8:] == [
        "head.reduce1.conv = Conv(features.denseblock1.concat)",
        "head.reduce1.pool = GlobalAveragePool(head.reduce1.conv)",
        "head.reduce1.flatten = Flatten(head.reduce1.pool)",
        "head.reduce2.conv = Conv(features.denseblock2.concat)",
        "head.reduce2.pool = GlobalAveragePool(head.reduce2.conv)",
        "head.reduce2.flatten = Flatten(head.reduce2.pool)",
        "head.concat = Concat(head.reduce1.flatten, head.reduce2.flatten)",
        "logits = Gemm(head.concat)",
    ]


@pytest.mark.parametrize(
    ("pooling", "nodes"),
    [
        (
            "max-avg",
            [
                "head.pool.max = GlobalMaxPool(features.norm5)",
                "head.pool.mean = GlobalAveragePool(features.norm5)",
                "head.pool.concat = Concat(head.pool.max, head.pool.mean)",
                "head.flatten = Flatten(head.pool.concat)",
                "logits = Gemm(head.flatten)",
            ],
        ),
        (
            "avg",
            [
                "features.norm5 = BatchNormalization(features.denseblock2.concat)",
                "head.pool = GlobalAveragePool(features.norm5)",
                "head.flatten = Flatten(head.pool)",
                "logits = Gemm(head.flatten)",
            ],
        ),
    ],
)
def test_maxima_and_means_are_pooled_from_the_last_norm(pooling, nodes):
    assert lines(pooling=pooling)[-len(nodes) :] == nodes


def window(stride, padding):
    return {"auto_pad": "NOTSET", "dilations": (1, 1), "pads": (padding,) * 4, "strides": (stride, stride)}


MAX_POOL = {"kernel_shape": (3, 3), "ceil_mode": 0, "storage_order": 0}


@pytest.mark.parametrize(
    ("numbers", "name", "attributes"),
    [
        ({}, "features.conv0", window(2, 3) | {"group": 1}),
        ({"stem": "deep"}, "features.conv0", window(2, 1) | {"group": 1}),
        ({"stem": "deep"}, "features.conv1", window(1, 1) | {"group": 1}),
        ({}, "features.denseblock1.denselayer1.conv1", window(1, 0) | {"group": 1}),
        ({}, "features.denseblock1.denselayer1.conv2", window(1, 1) | {"group": 1}),
        ({}, "features.pool0", window(2, 1) | MAX_POOL),
        ({"stem": "deep-blur"}, "features.pool0.max", window(1, 1) | MAX_POOL),
        ({"stem": "deep-blur"}, "features.pool0.blur.pad", {"mode": "reflect"}),
        ({"stem": "deep-blur"}, "features.pool0.blur", window(2, 0) | {"group": 4}),
        (
            {},
            "features.transition1.pool",
            {
                "auto_pad": "NOTSET",
                "pads": (0,) * 4,
                "strides": (2, 2),
                "kernel_shape": (2, 2),
                "ceil_mode": 0,
                "count_include_pad": 1,
            },
        ),
        ({}, "features.norm5", {"epsilon": 1e-5, "momentum": 0.9}),
        ({}, "features.denseblock1.concat", {"axis": 1}),
        ({}, "head.relu", {}),
        ({}, "head.pool", {}),
        ({}, "head.flatten", {"axis": 1}),
        ({}, "classifier", {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}),
    ],
)
def test_the_attributes_of_each_kind_of_node(numbers, name, attributes):
    (node,) = (node for node in operations(DenseNetSpec(**{**SMALL, **numbers})) if node.name == name)
    assert node.attributes == attributes


def test_the_blur_is_binomial_in_each_channel_and_its_margin_one_pixel():
    nodes = {node.name: node for node in operations(DenseNetSpec(**SMALL, stem="deep-blur"))}
    (kernel,) = nodes["features.pool0.blur"].constants.values()
    binomial = [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert (kernel * 16).tolist() == [[binomial]] * 4
    assert kernel.dtype == np.float32
    (margin,) = nodes["features.pool0.blur.pad"].constants.values()
    assert (margin.dtype, margin.tolist()) == (np.int64, [0, 0, 1, 1, 0, 0, 1, 1])


def test_of_relus_in_a_row_the_last_remains():
    assert lines(hidden="linear:2 relu relu relu linear:3 relu")[-4:] == [
        "head.relu3 = Relu(head.linear1)",
        "head.linear2 = Gemm(head.relu3)",
        "head.relu4 = Relu(head.linear2)",
        "logits = Gemm(head.relu4)",
    ]
    assert lines(head="features", hidden="relu relu")[-1] == "features = Relu(head.flatten)"


def test_the_scale_of_one_block_is_not_concatenated():
    assert lines(head="multiscale", blocks=(2,))[-2:] == [
        "head.reduce1.flatten = Flatten(head.reduce1.pool)",
        "logits = Gemm(head.reduce1.flatten)",
    ]


def test_a_node_says_what_was_folded_into_it_and_what_was_pooled_before_it():
    nodes = {node.name: node for node in operations(DenseNetSpec(**SMALL))}
    assert nodes["features.conv0"] == Operation(
        "Conv",
        "features.conv0",
        ("input",),
        "features.norm0",
        {"features.conv0.weight": (4, 3, 7, 7)},
        attributes={"auto_pad": "NOTSET", "dilations": (1, 1), "pads": (3,) * 4, "strides": (2, 2), "group": 1},
        norm="features.norm0",
    )
    assert nodes["features.transition1.pool"].pooled == "features.transition1.conv"
    assert {name for name, node in nodes.items() if node.pooled} == {"features.transition1.pool"}
    assert [name for name, node in nodes.items() if node.norm] == [
        "features.conv0",
        *(f"features.denseblock{block}.denselayer{layer}.conv1" for block, layer in ((1, 1), (1, 2), (2, 1))),
    ]


@pytest.mark.parametrize(
    "spec",
    [
        *(DenseNetSpec(**SMALL, stem=stem) for stem in STEMS),
        *(DenseNetSpec(**SMALL, pooling=pooling, hidden="linear:7 norm linear:6:nobias relu") for pooling in POOLINGS),
        DenseNetSpec(**SMALL, head="features", pooling="max-avg", hidden="norm"),
        DenseNetSpec(**SMALL, head="multiscale", bias=False, in_channels=1),
        DenseNetSpec(**{**SMALL, "bn_size": 0}, drop_rate=0.3, compression=0.3),
        DenseNetSpec(**SMALL, bottlenecks=(1, 5, 4)),
        *(find_variant(name).spec for name in variant_names()),
    ],
    ids=str,
)
def test_the_parameters_are_those_of_the_module(spec):
    state = empty_model(spec).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert parameter_shapes(spec) == expected
