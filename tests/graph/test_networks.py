"""Whole networks of several exporters: each pass, the buses and both 16-bit types leave what they compute."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.graph.bus import find_buses
from densenet_deploy.graph.graph_pass import EXACT, apply_passes
from densenet_deploy.graph.passes.equalize_bus import EqualizeBus
from densenet_deploy.graph.passes.equalize_layer import EqualizeLayer
from densenet_deploy.graph.passes.shift_bus import ShiftBus
from densenet_deploy.graph.reduced_precision import reduce_precision, rounded
from densenet_deploy.graph.tensor_changes import read_tensor_changes
from tests.graph.onnx_text import operators
from tests.graph.passes.networks import (
    NETWORKS,
    ROUNDING,
    Network,
    assert_same,
    make_network,
    ranges_of,
    run,
)
from tests.graph.reduced_models import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    casts,
    cosine,
    results_of,
    saved,
    types_of,
    useless_casts,
)

PRECISIONS = ("fp16", "bf16")
TYPES = {"fp16": FLOAT16, "bf16": BFLOAT16}
# Measured 0.9999998 and better in FP16, 0.99995 and better in BF16 with every tensor rounded.
COSINES = {"fp16": 0.9999, "bf16": 0.999}
FORMS = {
    "as exported": (),
    "pools first": ("remove-single-concat", "pool-before-conv"),
    "affine, in steps": ("norm-to-affine", "concat-incremental"),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return make_network(request.param)


def _inputs(model: ir.Model) -> dict[str, list[str]]:
    """What each Concat reads, by its output."""
    concats = [node for node in model.graph if node.op_type == "Concat"]
    return {node.outputs[0].name: [value.name for value in node.inputs] for node in concats}


def _feeds(network: Network) -> dict[str, np.ndarray]:
    return {network.proto.graph.input[0].name: network.images}


def _names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in reduce_precision(model, "fp16").model.graph.node if node.op_type != "Cast"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_computes_nearly_the_same(network, tmp_path, precision):
    reduced = reduce_precision(network.proto, precision)
    assert (reduced.float_nodes, reduced.reasons) == ((), {})
    expected = network.values
    for results in results_of(reduced, _feeds(network)):
        for name, array in results.items():
            assert array.dtype == np.float32
            assert cosine(expected[name], array) >= COSINES[precision]
    assert saved(reduced.model, tmp_path) == reduced.model


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_and_tensors_are_reduced_inside_a_cast_at_each_end(network, precision):
    model = reduce_precision(network.proto, precision).model
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    assert {name for name, kind in types_of(model).items() if kind == FLOAT} == ends
    assert len(casts(model)) == len(ends)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("every", [2, 3])
def test_a_network_computes_nearly_the_same_with_some_nodes_in_fp32(network, every, precision):
    names = _names(network.proto)[::every]
    reduced = reduce_precision(network.proto, precision, float_nodes=names)
    assert reduced.float_nodes == tuple(names)
    assert useless_casts(reduced.model) == []
    types, kind = types_of(reduced.model), TYPES[precision]
    for node in reduced.model.graph.node:
        kinds = {types[name] for name in (*node.input, *node.output)} & {FLOAT, kind}
        assert node.op_type == "Cast" or kinds <= {FLOAT if node.name in names else kind}
    expected = network.values
    for results in results_of(reduced, _feeds(network)):
        assert all(cosine(expected[name], array) >= COSINES[precision] for name, array in results.items())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_with_every_node_in_fp32_nothing_changes(network, precision):
    """Except for rounding in BF16: lifting may choose another kernel of ONNX Runtime, as it does for AveragePool."""
    reduced = reduce_precision(network.proto, precision, float_nodes=_names(network.proto))
    assert casts(reduced.model) == []
    expected, found = network.values, run(reduced.model, network.images)
    assert list(expected) == list(found)
    for name, array in found.items():
        allowed = ROUNDING * np.abs(expected[name]).max() if precision == "bf16" else 0
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=allowed)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_keep_their_names(network, precision):
    inner = {name for node in network.proto.graph.node for name in node.output}
    inner -= {value.name for value in network.proto.graph.output}
    some = [name for name in _names(network.proto) if "relu" in name.lower()]
    for asked in ((), some):
        reduced = reduce_precision(network.proto, precision, float_nodes=asked).model
        assert inner <= {name for node in reduced.graph.node for name in node.output}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_network_becomes_float32_throughout(network, precision):
    reduced = reduce_precision(network.proto, precision).model
    before = reduced.SerializeToString(deterministic=True)
    plain = rounded(reduced)
    onnx.checker.check_model(plain, full_check=True)
    assert {kind for name, kind in types_of(plain).items() if ":narrow" not in name} >= {FLOAT}
    stored = {tensor.data_type for tensor in plain.graph.initializer}
    assert not stored & {FLOAT16, BFLOAT16}
    assert reduced.SerializeToString(deterministic=True) == before


def test_networks_go_there_and_back_bit_for_bit(network):
    model = network.model()
    flat = _inputs(model)
    (there,) = apply_passes(model, ["concat-incremental"])
    # one Concat per layer from the second on, and the block's own; the shortest has nothing before it
    assert len(there.changed) == sum(layers - 1 for layers in network.blocks)
    assert max(len(inputs) for name, inputs in _inputs(model).items() if name != "head.concat") == 2
    expected, steps = network.values, run(model, network.images)
    assert expected.keys() == steps.keys()
    for name, array in steps.items():
        np.testing.assert_array_equal(array, expected[name])
    (back,) = apply_passes(model, ["concat-flat"])
    assert set(back.changed) == set(there.changed)
    assert _inputs(model) == flat


def test_channels_of_a_network_begin_at_zero_and_undoing_it_gives_the_old_tensors(network):
    model = network.model()
    before = {name: array for name, array in run(model, network.images).items() if array.ndim == 4}
    (report,) = apply_passes(model, [ShiftBus({name: array.min((0, 2, 3)) for name, array in before.items()})])
    assert len(report.changed) == len(network.blocks)
    assert_same(model, network)
    after = run(model, network.images)
    for bus in find_buses(model.graph).found:
        for segment in bus.segments:
            if segment.name.endswith(":shifted"):
                spread = np.abs(after[segment.name]).max()
                np.testing.assert_allclose(after[segment.name].min((0, 2, 3)), 0, atol=1e-5 * spread)


def test_shift_then_scale_is_recorded_as_one_affine_map(network):
    model = network.model()
    before = {name: array for name, array in run(model, network.images).items() if array.ndim == 4}
    apply_passes(model, [ShiftBus({name: array.min((0, 2, 3)) for name, array in before.items()})])
    sizes = {name: np.abs(a).max((0, 2, 3)) for name, a in run(model, network.images).items() if a.ndim == 4}
    apply_passes(model, [EqualizeBus(sizes)])
    assert_same(model, network)


def test_no_norm_of_a_network_is_left(network):
    model = network.model()
    (report,) = apply_passes(model, ["norm-to-affine"])
    assert len(report.changed) == operators(network.model()).count("BatchNormalization") > 0
    assert "BatchNormalization" not in operators(model)
    assert assert_same(model, network) == assert_same(network.model(), network)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("bus_first", [False, True])
def test_every_layer_and_transition_of_a_network_is_equalized(network, form, bus_first):
    model = network.model()
    apply_passes(model, form)
    compared, ranges = assert_same(model, network), ranges_of(model, network.images)
    passes = [EqualizeBus(ranges), EqualizeLayer(ranges)]
    reports = {report.name: report for report in apply_passes(model, passes if bus_first else passes[::-1])}
    # all convolutions but the stem's and those that read a block directly: these have a Concat or the input before them
    convs = operators(model).count("Conv") - 1 - sum("made by Concat" in s for s in reports["equalize-layer"].skipped)
    assert len(reports["equalize-layer"].changed) == convs >= sum(network.blocks) + len(network.blocks) - 1
    assert len(reports["equalize-bus"].changed) == len(network.blocks)
    assert assert_same(model, network) == compared


def test_every_transition_of_a_network_pools_first(network):
    model = network.model()
    (report,) = apply_passes(model, ["pool-before-conv"])
    assert len(report.changed) == len(network.blocks) - 1
    assert "Conv" not in {node.inputs[0].producer().op_type for node in model.graph if node.op_type == "AveragePool"}
    assert_same(model, network)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_channel_of_every_block_of_a_network_gets_range_one(network, form):
    model = network.model()
    apply_passes(model, form)
    compared, before = assert_same(model, network), ranges_of(model, network.images)
    wholes = [before[bus.name] for bus in find_buses(model.graph).found]
    (report,) = apply_passes(model, [EqualizeBus(before)])
    assert len(report.changed) == len(network.blocks)
    assert assert_same(model, network) == compared
    after = ranges_of(model, network.images)
    for bus, whole in zip(find_buses(model.graph).found, wholes, strict=True):
        expected = np.minimum(1, whole / (1e-3 * whole.max()))  # 1, but for a channel that is dead in the stem
        assert (expected == 1).mean() > 0.8
        for tensor in bus.tensors:
            part = tensor.of(expected)
            # The weights and the sums over them are rounded, and the largest term may be several times their result.
            np.testing.assert_allclose(after[tensor.name], part, rtol=1e-4)


def test_a_second_time_nothing_is_left_to_do_and_the_factors_hold():
    network = make_network("classifier")
    model = network.model()
    for _ in range(2):
        apply_passes(model, [EqualizeBus(ranges_of(model, network.images))])
    assert not [name for name in read_tensor_changes(model.metadata_props) if name.count(":scaled") != 1]
    assert_same(model, network)


@pytest.mark.parametrize("name", ["classifier", "plain features", "torchvision", "optimized, other names"])
def test_whole_networks_compute_what_they_computed(name):
    """Norms before 3x3 convolutions stay: padding with zeros is not a clip."""
    network = make_network(name)
    model = network.model()
    apply_passes(model, EXACT)
    (report,) = apply_passes(model, ["norm-to-clip"])
    assert report.changed or name == "plain features"
    assert_same(model, network)


@pytest.mark.parametrize("passes", [(), ("remove-single-concat",), ("concat-incremental",), ("norm-to-affine",)])
def test_every_dense_block_of_a_network_is_a_bus(network: Network, passes: tuple[str, ...]):
    model = network.model()
    apply_passes(model, passes)
    found, refused = find_buses(model.graph)
    assert [len(bus.segments) for bus in found] == [layers + 1 for layers in network.blocks]
    assert [bus.segments[0].channels for bus in found[:1]] == [8]
    assert {segment.channels for bus in found for segment in bus.segments[1:]} == {4}
    assert all("rows of numbers" in reason for reason in refused)
    for bus in found:
        assert {reader.node.op_type for reader in bus.readers} <= {"BatchNormalization", "Mul", "Conv"}
        # each layer reads one channel count more than the one before, and the last reader the whole
        sizes = sorted({reader.segment.channels for reader in bus.readers})
        assert sizes == [bus.segments[0].channels + 4 * layer for layer in range(len(bus.segments))]
