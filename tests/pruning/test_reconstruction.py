"""A graph run in parts gives what it gives whole, and pruning its layers in turn fits each to the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.bottlenecks import Bottleneck, find_bottlenecks
from densenet_deploy.models.lower import OnnxOptions, lowered
from densenet_deploy.models.operations import parameter_shapes
from densenet_deploy.pruning import reconstruction
from densenet_deploy.pruning.noise import noise_gains
from densenet_deploy.pruning.reconstruction import Reconstruction, images_that_fit
from densenet_deploy.pruning.segments import SegmentedGraph, batched, open_part
from densenet_deploy.variants.spec import DenseNetSpec

SPEC = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar", num_classes=5)
SIZE = 12


def weights_of(spec: DenseNetSpec, seed: int = 0) -> dict[str, Any]:
    """Convolutions that keep the power of what they read, and norms that are nearly nothing."""
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in parameter_shapes(spec).items():
        noise = rng.standard_normal(shape).astype(np.float32)
        is_one = len(shape) == 1 and name.endswith((".weight", "running_var"))
        weights[name] = 1 + 0.1 * np.tanh(noise) if is_one else 0.1 * noise
        if len(shape) > 1:
            weights[name] = noise * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return weights


def network(spec: DenseNetSpec = SPEC, **options: Any) -> tuple[onnx.ModelProto, tuple[Bottleneck, ...]]:
    proto = lowered(spec, weights_of(spec), OnnxOptions(SIZE, **options))
    return proto, find_bottlenecks(onnx_ir.from_proto(proto).graph).found


def samples(count: int = 16) -> list[np.ndarray]:
    return list(np.random.default_rng(1).standard_normal((count, 1, 3, SIZE, SIZE)).astype(np.float32))


def run(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    with open_part(model.SerializeToString()) as runner:
        return dict(runner.run({"input": images}))


def test_parts_give_what_the_whole_gives() -> None:
    proto, layers = network()
    graph = SegmentedGraph(proto, [layer.reading.name for layer in layers])
    hidden = [str(layer.activation.outputs[0].name) for layer in layers]
    exposed = reconstruction.expose_values(proto, set(hidden))
    expected = run(exposed, np.concatenate(samples(3)))
    states = [{"input": batch} for batch in batched(samples(3), 2)]
    for number, name in enumerate(hidden):
        graph.advance(number, states, {})
        np.testing.assert_allclose(np.concatenate([state[name] for state in states]), expected[name], atol=1e-5)
        assert all(len(state) <= 2 for state in states), "the block's features and what the layer reads"


def test_the_state_is_what_512_mib_are_divided_by() -> None:
    proto, layers = network()
    graph = SegmentedGraph(proto, [layer.reading.name for layer in layers])
    assert graph.state_bytes() == 4 * SIZE**2 * (12 + 8)  # 8 features and 4 new ones, and a bottleneck of 8
    assert images_that_fit(proto, layers) == 512 * 2**20 // graph.state_bytes()


def test_a_state_too_large_for_eight_images_takes_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "STATE_BYTES", 1)
    assert images_that_fit(*network()) == 8


def test_without_a_narrower_layer_nothing_changes() -> None:
    proto, layers = network()
    pruned = Reconstruction(proto, layers, samples()).pruned({})
    images = np.concatenate(samples())
    np.testing.assert_allclose(run(pruned.proto, images)["logits"], run(proto, images)["logits"], atol=1e-5)
    assert [fit.after for fit in pruned.layers.values()] == [8, 8, 8, 8]


def test_widths_are_those_that_were_asked_for_in_graph_and_report() -> None:
    proto, layers = network()
    widths = {layer.name: width for layer, width in zip(layers, (3, 8, 1, 5), strict=True)}
    pruned = Reconstruction(proto, layers, samples()).pruned(widths)
    onnx.checker.check_model(pruned.proto, full_check=True)
    assert {name: (fit.before, fit.after, len(fit.kept)) for name, fit in pruned.layers.items()} == {
        name: (8, width, width) for name, width in widths.items()
    }
    shapes = {tensor.name: tuple(tensor.dims) for tensor in pruned.proto.graph.initializer}
    for layer in layers:
        stem = layer.name
        assert shapes[f"{stem}.folded.weight"][0] == shapes[f"{stem}.folded.bias"][0] == widths[stem]
        assert shapes[pruned.reading[stem]][1] == widths[stem]


def test_the_refit_is_better_than_leaving_channels_out() -> None:
    proto, layers = network()
    images, widths = np.concatenate(samples()), {layer.name: 6 for layer in layers}
    pruned = Reconstruction(proto, layers, samples()).pruned(widths)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    reading = {pruned.reading[name]: fit for name, fit in pruned.layers.items()}
    plain = {name: stored[name][:, list(fit.kept)] for name, fit in reading.items()}
    without = reconstruction.with_weights(pruned.proto, plain)
    expected = run(proto, images)["logits"]
    errors = [float(((run(model, images)["logits"] - expected) ** 2).sum()) for model in (pruned.proto, without)]
    assert errors[0] < 0.5 * errors[1]


def test_a_fixed_batch_uses_whole_batches() -> None:
    proto, layers = network(batch=3)
    fitted = Reconstruction(proto, layers, samples(16), batch=3)
    assert fitted.count == 15
    assert run(fitted.pruned({layers[0].name: 4}).proto, np.concatenate(samples(3)))["logits"].shape == (3, 5)


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    proto, layers = network()
    widths = {layer.name: 5 for layer in layers}
    first, again, other = (
        Reconstruction(proto, layers, samples(40), seed=seed).pruned(widths).proto.SerializeToString()
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_network_that_gives_nan_is_refused() -> None:
    proto, layers = network()
    for tensor in proto.graph.initializer:
        if tensor.name == "features.denseblock1.denselayer2.conv2.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.nan), tensor.name))
    with pytest.raises(ModelFileError) as caught:
        Reconstruction(proto, layers, samples())
    assert caught.value.subject == "features.denseblock1.denselayer2.conv2"


def test_a_gain_says_what_noise_on_a_tensor_does_at_the_outputs() -> None:
    kind = "float[N, 1, 8, 8]"
    body = "a = Neg(x) b = Sin(x) c = Add(b, b) y = Add(a, c)"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> n ({kind} x) => ({kind} y) {{{body}}}')
    images = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
    gains = noise_gains(onnx.shape_inference.infer_shapes(proto), ["a", "b"], images)
    made, whole = np.sin(images), 2 * np.sin(images) - images
    expected = images.var() / whole.var(), 4 * made.var() / whole.var()
    assert (gains["a"], gains["b"]) == pytest.approx(expected, rel=0.1)
