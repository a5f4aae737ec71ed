"""What is written as ONNX: the interface, the operators, what they compute, and what cannot be written."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from densenet_deploy.errors import ModelFileError, UsageError
from densenet_deploy.models.to_onnx import OnnxOptions, onnx_from_module
from densenet_deploy.runtime.backends.torch import named_tensors

# float32 kernels that sum in another order: about a hundred roundings of numbers near 1
TOLERANCE = 1e-5


def export(module: nn.Module, options: OnnxOptions, names: str | tuple[str, ...] = ()) -> onnx.ModelProto:
    """Export, check, and compare every output; return the graph."""
    proto = ir.to_proto(onnx_from_module(module, names, options))
    onnx.checker.check_model(proto, full_check=True)
    images = np.random.default_rng(0).standard_normal((options.batch or 3, *options.image_shape), np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = [array for _, array in named_tensors(module.eval()(torch.from_numpy(images)), ("it",))]
    for array, tensor in zip(session.run(None, {"input": images}), expected, strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), rtol=TOLERANCE, atol=TOLERANCE)
    return proto


def outputs(proto: onnx.ModelProto) -> list[str]:
    return [value.name for value in proto.graph.output]


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


class Everything(nn.Module):
    """Every argument of a convolution, a norm with an epsilon of its own, and a global pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(4, eps=0.25)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.kernel = nn.Parameter(torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(0)))
        for tensor in self.norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))

    def forward(self, images: Tensor) -> dict[str, object]:
        maps = self.grouped(self.norm(self.first(images)))
        plain = functional.conv2d(maps, self.kernel)
        strided = functional.conv2d(maps, self.kernel, None, 2, 1)
        return {"pooled": self.pool(maps), "rest": [plain, strided]}


class Forwarding(nn.Module):
    """Passes on whatever it is given, as a wrapper does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 2, 3)

    def forward(self, *images: Tensor, **more: object) -> Tensor:
        return self.inner(*images, **more).mean((2, 3))


def test_the_batch_is_dynamic_behind_any_arguments():
    proto = export(Forwarding(), OnnxOptions(8, channels=1))
    assert dims(proto.graph.input[0]) == ["batch", 1, 8, 8]


@pytest.fixture(scope="module")
def everything() -> onnx.ModelProto:
    return export(Everything(), OnnxOptions((13, 20), channels=1))


def test_the_interface_is_the_image_with_a_named_batch_and_the_keys_of_what_is_returned(everything):
    (given,) = everything.graph.input
    assert (given.name, dims(given)) == ("input", ["batch", 1, 13, 20])
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert outputs(everything) == ["pooled", "rest.0", "rest.1"]
    assert [dims(value)[0] for value in everything.graph.output] == ["batch"] * 3
    assert [(entry.domain, entry.version) for entry in everything.opset_import] == [("", 20)]


def test_the_graph_is_clean_from_the_start(everything):
    operators = sorted(node.op_type for node in everything.graph.node)
    assert operators == ["BatchNormalization", "Conv", "Conv", "Conv", "Conv", "GlobalAveragePool"]
    nodes = {node.name: node for node in everything.graph.node}
    assert {"first", "norm", "grouped", "pool"} <= nodes.keys()
    assert [len(nodes[name].input) for name in ("first", "grouped")] == [3, 2]
    assert not any(node.metadata_props or node.doc_string for node in everything.graph.node)
    stored = {tensor.name for tensor in everything.graph.initializer}
    assert {name for name, _ in Everything().named_parameters()} <= stored


class Uncovered(nn.Module):
    """A pool to more than one pixel, a norm without scale, and one that normalizes by the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((3, 2))
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.batch = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.batch(self.norm(images)))


@pytest.mark.slow
def test_what_our_translations_do_not_cover_is_left_to_the_exporter():
    proto = export(Uncovered(), OnnxOptions((6, 4), batch=2, opset=18))
    assert [dims(value) for value in (*proto.graph.input, *proto.graph.output)] == [[2, 3, 6, 4], [2, 3, 3, 2]]
    assert outputs(proto) == ["logits"]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]


class Maxima(nn.Module):
    """Maxima over pixels, in both of PyTorch's forms, and over other axes."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {
            "pooled": functional.adaptive_max_pool2d(images, 1),
            "pixels": images.amax((3, -2), keepdim=True),
            "flat": images.amax((2, 3)),
            "channels": images.amax((1, 2), keepdim=True),
            "rows": images.flatten(2).amax((1, 2), keepdim=True),
            "all": images.amax(),
        }


def test_a_maximum_over_the_pixels_is_a_global_pool_and_any_other_is_reduced():
    proto = export(Maxima(), OnnxOptions((6, 4)))
    kinds = {node.output[0]: node.op_type for node in proto.graph.node}
    assert [kinds[name] for name in ("pooled", "pixels")] == ["GlobalMaxPool"] * 2
    assert [kinds[name] for name in ("flat", "channels", "rows", "all")] == ["ReduceMax"] * 4


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images * 2, images.mean((2, 3))


@pytest.mark.parametrize(("names", "written"), [("one", ["output0", "output1"]), (("a", "b"), ["a", "b"])])
def test_entries_of_a_tuple_take_the_given_names(names, written):
    assert outputs(export(Pair(), OnnxOptions(4), names)) == written


def test_an_operator_set_below_pytorchs_is_converted():
    proto = export(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), OnnxOptions(8, opset=17), "mine")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    assert [node.name for node in proto.graph.node] == ["0", "1"]
    assert outputs(proto) == ["mine"]


class Grid(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.fft.rfft(images).abs()


class Doubling(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + torch.zeros(2, 1, 1, 1)


class Failing(nn.Module):
    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self.arguments = arguments

    def forward(self, images: Tensor) -> Tensor:
        raise ValueError(*self.arguments)


@pytest.mark.parametrize(
    ("module", "options", "why"),
    [
        (Doubling(), OnnxOptions(8), "computes with one batch size only"),
        (
            nn.Sequential(nn.Conv3d(3, 4, 3)),
            OnnxOptions(8),
            "takes 3-D images (N, C, D, H, W), which are not supported",
        ),
        (Failing("mine\nmore"), OnnxOptions((8, 9)), "PyTorch cannot export it for images (3, 8, 9): mine"),
        (Failing(), OnnxOptions(8), "PyTorch cannot export it for images (3, 8, 8): ValueError"),
        (Grid(), OnnxOptions(8, opset=16), "cannot be written in opset 16: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_exported_is_refused_by_its_class(module, options, why, capfd):
    with pytest.raises(ModelFileError) as caught:
        onnx_from_module(module, "logits", options)
    assert caught.value.subject == type(module).__name__
    assert caught.value.why.startswith(why)
    assert caught.value.why == why or why.endswith(": ")
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_size_may_be_exported_as_such():
    assert dims(export(Doubling(), OnnxOptions(8, batch=2)).graph.input[0]) == [2, 3, 8, 8]


LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript")
seen: list[tuple[int, ...]] = []


class Noisy(nn.Module):
    """Prints, warns and logs, and keeps a mode of its own in each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        seen.append(tuple(logging.getLogger(name).level for name in LOGGERS))
        print("noise")
        print("noise", file=sys.stderr)
        warnings.warn("noise", stacklevel=1)
        if self.training:
            raise RuntimeError("in training")
        return self.inner(images)


@pytest.mark.slow
def test_exporting_is_silent_and_leaves_modes_and_loggers_as_they_were(capfd):
    module = Noisy().train()
    module.inner.eval()
    seen.clear()
    before = [logging.getLogger(name).level for name in LOGGERS]
    try:
        for place, name in enumerate(LOGGERS):
            logging.getLogger(name).setLevel(11 + place)
        onnx_from_module(module, (), OnnxOptions(4))
        assert [logging.getLogger(name).level for name in LOGGERS] == [11, 12, 13, 14, 15]
    finally:
        for name, level in zip(LOGGERS, before, strict=True):
            logging.getLogger(name).setLevel(level)
    assert set(seen) == {(logging.CRITICAL,) * 5}
    assert (module.training, module.inner.training) == (True, False)
    assert capfd.readouterr() == ("", "")


def test_the_options_are_those_of_a_densenet_unless_stated():
    assert OnnxOptions() == OnnxOptions(image_size=224, channels=3, batch=None, opset=20)
    assert OnnxOptions((3, 5), channels=7).image_shape == (7, 3, 5)
    assert OnnxOptions(3).image_shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("field", "option", "good", "bad"),
    [
        ("image_size", "image-size", (1, 8192), (0, 8193)),
        ("channels", "channels", (1, 4096), (0, 4097)),
        ("opset", "opset", (16, 23), (15, 24)),
        ("batch", "batch", (1, 4096), (0, 4097)),
    ],
)
def test_numbers_have_limits(field, option, good, bad):
    for value in good:
        assert getattr(OnnxOptions(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(UsageError) as caught:
            OnnxOptions(**{field: value})
        assert caught.value.subject == f"{option}={value}"


@pytest.mark.parametrize("size", [(8, 0), (8193, 8)])
def test_both_sides_of_an_image_have_limits(size):
    with pytest.raises(UsageError):
        OnnxOptions(size)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("program", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(1, 3, 8, 8))])
def test_torchscript_is_refused_with_the_way_to_write_it(program):
    with pytest.raises(ModelFileError) as caught:
        onnx_from_module(program(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sigmoid()).eval()), "y", OnnxOptions(8))
    assert "TorchScript" in caught.value.why
    assert "dynamo=False" in caught.value.fix


@pytest.mark.slow
def test_a_program_keeps_its_batch_and_its_image_size():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sigmoid()).eval()
    program = torch.export.export(net, (torch.ones(2, 3, 8, 8),)).module()
    fixed = ir.to_proto(onnx_from_module(program, "y", OnnxOptions(8, batch=2)))
    assert dims(fixed.graph.input[0]) == [2, 3, 8, 8]
    for options, says in (
        (OnnxOptions(8), "batches of 2 only"),
        (OnnxOptions(8, batch=3), "batches of 2 only"),
        (OnnxOptions(9, batch=2), "images of 3x8x8, not 3x9x9"),
        (OnnxOptions(8, channels=4, batch=2), "images of 3x8x8, not 4x8x8"),
    ):
        with pytest.raises(ModelFileError) as caught:
            onnx_from_module(program, "y", options)
        assert says in caught.value.why
    free = torch.export.export(net, (torch.ones(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    assert dims(ir.to_proto(onnx_from_module(free, "y", OnnxOptions(8))).graph.input[0])[1:] == [3, 8, 8]


def test_a_program_in_training_mode_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    for training in (True, False):
        program = torch.export.export(net.train(training), (torch.ones(2, 3, 8, 8),)).module()
        with pytest.raises(ModelFileError) if training else contextlib.nullcontext() as caught:
            onnx_from_module(program, "y", OnnxOptions(8, batch=2))
        assert not training or "training mode" in caught.value.why
