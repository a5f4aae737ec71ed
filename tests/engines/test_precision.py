"""The precision of convolutions is read back, compared with what was asked, and never guessed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from densenet_deploy.engines.precision import (
    EngineConvolution,
    EnginePrecision,
    activation_bytes,
    from_inspector,
    from_rtx_plan,
    one_of_each,
    precision_of,
    require_precision,
)
from densenet_deploy.errors import GateError
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.engine_files import Plan, checked_header
from tests.runtime.plans import plan_bytes, sidecar_of

# The shape of a program in a plan of TensorRT-RTX 1.7: made up, but for its keys.
PROGRAM = b"""\
header {
  accelerators={sm86 }
}
descriptors {
  tensor={ alignment=128 dims={ 1 8 16 16 } name="x.1" offset=0 type=int8 }
  tensor={ alignment=128 dims={ "batch" 24 16 16 } name="y.1" offset=0 type=half }
  tensor={ alignment=128 const_payload_size=9 dims={ 24 8 3 3 } name="w" offset=0 type=int8 }
  tensor={ alignment=128 dims={ 1 32 24 } name="gemm_w" offset=0 type=half }
  sub_tensor={ base="y.1" const_offset=0 dims={ 1 24 256 } name="y^deref" offset=0 type=half }
  tensor={ alignment=128 dims={ 1 32 256 } name="z" offset=0 type=half }
}
main {
  corrltn={ name="a.conv_U3" output={"y.1" } input={"x.1" "w" "c" } relu=true x=1 bias=false y=2 layers="[ONNX \
Layer: a.conv][ONNX Layer: a.conv.extra][ONNX Layer: a.relu]" }
  fully_connected={ name="__m" output={"z" } input={"gemm_w" "y^deref" } relu=false bias=false layers="[ONNX Layer: \
b.conv]__gemm_from_conv1x1" }
  fully_connected={ name="classifier" output={"z" } input={"gemm_w" "y^deref" } layers="[ONNX Layer: classifier]" }
}
"""


def test_a_program_is_read() -> None:
    found = from_rtx_plan(b"\0weights\0" + PROGRAM + b"\0more")
    assert found.source == "the plan's text"
    assert found.convolutions == (
        EngineConvolution("a.conv", "int8", "fp16", 24 * 8 * 9 * 256, relu=True),
        EngineConvolution("b.conv", "fp16", "fp16", 32 * 24 * 256),
    )
    assert found.counts == {"int8": 1, "fp16": 1}
    assert sum(found.summary().share_of_macs.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "plan",
    [
        b"",
        b"vtrt and nothing else",
        PROGRAM.replace(b"header {", b"heading {"),
        PROGRAM.replace(b"corrltn", b"convolve").replace(b"__gemm_from_conv1x1", b""),
        b"\xff" * 1000,
    ],
)
def test_without_the_pattern_nothing_is_concluded(plan: bytes) -> None:
    found = from_rtx_plan(plan)
    assert found.convolutions == ()
    assert found.source == "unknown"
    assert found.summary().share_of_macs == {}
    assert "unknown" in str(found.summary())


def test_a_type_that_is_not_known_is_unknown() -> None:
    for change in ((b"type=int8", b"type=int3"), (b'name="w"', b'name="v"'), (b"type=int8 }", b"type=half }", 1)):
        found = from_rtx_plan(PROGRAM.replace(*change))
        assert found.convolutions[0].precision == "unknown"


def test_of_several_profiles_the_widest_counts() -> None:
    wide = PROGRAM.replace(b"type=int8", b"type=half")
    for plan in (PROGRAM + b"\0" + wide, wide + b"\0" + PROGRAM):
        assert from_rtx_plan(plan).counts == {"fp16": 2}
    assert one_of_each([EngineConvolution("a", "unknown"), EngineConvolution("a", "int8")])[0].precision == "int8"


def test_a_layer_that_runs_in_another_precision_is_named() -> None:
    found = from_rtx_plan(PROGRAM)
    assert require_precision("a.engine", "int8", {"a.conv": "int8", "b.conv": "fp16"}, found) == ()
    with pytest.raises(GateError) as caught:
        require_precision("a.engine", "int8", {"a.conv": "int8", "b.conv": "int8"}, found)
    assert (caught.value.exit_code, caught.value.subject) == (4, "a.engine")
    assert "b.conv" in caught.value.why
    assert "a.conv" not in caught.value.why


def test_an_engine_with_many_wrong_layers_names_the_first() -> None:
    many = EnginePrecision(tuple(EngineConvolution(f"conv{index}", "fp32") for index in range(20)))
    with pytest.raises(GateError) as caught:
        require_precision("a.engine", "int8", dict.fromkeys((f"conv{index}" for index in range(20)), "int8"), many)
    assert "conv7" in caught.value.why
    assert "conv8" not in caught.value.why


@pytest.mark.parametrize("convolutions", [(), (EngineConvolution("a.conv", "fp16"),)])
def test_int8_without_a_convolution_in_int8_is_a_failed_gate(convolutions: tuple[EngineConvolution, ...]) -> None:
    """Every layer runs as the graph asks, and the graph asks for INT8 nowhere."""
    asked, found = {"a.conv": "fp16"}, EnginePrecision(convolutions)
    with pytest.raises(GateError) as caught:
        require_precision("a.engine", "int8", asked, found)
    assert caught.value.exit_code == 4
    require_precision("a.engine", "fp16", asked, found)


def test_an_engine_that_names_no_layer_is_not_a_failed_gate() -> None:
    (note,) = require_precision("a.engine", "int8", {"a.conv": "int8"}, EnginePrecision())
    assert note.startswith("precision unknown")


def test_a_layer_that_the_engine_does_not_name_is_unknown() -> None:
    (note,) = require_precision("a.engine", "int8", {"a.conv": "int8", "c.conv": "int8"}, from_rtx_plan(PROGRAM))
    assert "1 convolutions" in note


def test_the_layers_survive_json() -> None:
    found = from_rtx_plan(PROGRAM)
    assert from_plain(EnginePrecision, json.loads(json.dumps(to_plain(found)))) == found


def test_the_inspectors_json_is_read() -> None:
    """Keys as TensorRT's documentation gives them for engines of detailed verbosity."""
    layers = [
        {
            "Name": "a.conv + a.relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Int8 NC/32HW32"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Half NHWC8"}],
            "Activation": "RELU",
            "Metadata": "[ONNX Layer: a.conv]\u001e[ONNX Layer: a.relu]",
        },
        {"Name": "b.conv", "LayerType": "Convolution", "Inputs": [], "Metadata": ""},
        {"Name": "pool", "LayerType": "CaskPooling"},
        "a name alone",
    ]
    found = from_inspector(json.dumps({"Layers": layers}))
    assert found.convolutions == (
        EngineConvolution("a.conv", "int8", "fp16", relu=True),
        EngineConvolution("b.conv", "unknown"),
    )
    assert found.summary().share_of_macs == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["conv1", "conv2"]}', "not json"])
def test_an_inspector_that_says_nothing(text: str) -> None:
    assert from_inspector(text) == EnginePrecision()


def test_weights_are_not_searched_for_programs() -> None:
    """A plan of TensorRT-RTX names its sections; bytes of the weights are not a program."""
    other = PROGRAM.replace(b"a.conv", b"c.conv")
    head = b"vtrt".ljust(64, b"\0")
    size = len(head) + 24 + len(PROGRAM)
    plan = head + struct.pack("<4s4xQQ", b"NGNE", len(head) + 24, len(PROGRAM)) + PROGRAM + other
    assert {conv.name for conv in from_rtx_plan(plan).convolutions} == {"a.conv", "b.conv"}
    beyond = plan.replace(struct.pack("<Q", len(PROGRAM)), struct.pack("<Q", size + len(plan)), 1)
    for unknown in (plan.replace(b"NGNE", b"NGIN"), beyond):
        assert {conv.name for conv in from_rtx_plan(unknown).convolutions} == {"a.conv", "b.conv", "c.conv"}


def test_the_memory_of_the_largest_program_counts() -> None:
    region = b"region = { name=devmem size=%d alignment=128 }\n"
    small, large = (PROGRAM.replace(b"main {", region % size + b"main {") for size in (1024, 2048))
    assert activation_bytes(small + b"\0" + large) == 2048
    assert activation_bytes(PROGRAM) is None


def test_a_matrix_product_of_unknown_sizes_counts_no_macs() -> None:
    found = from_rtx_plan(PROGRAM.replace(b'name="z"', b'name="elsewhere"'))
    assert found.convolutions[1] == EngineConvolution("b.conv", "fp16", "unknown", 0)


def plan_of(data: bytes, **facts: object) -> Plan:
    path = Path("a.engine")
    return Plan(path, data, checked_header(data, path), sidecar_of(data, **facts) if facts else None)


def test_the_precision_of_an_engine_of_full_tensorrt_is_what_its_sidecar_recorded() -> None:
    data = plan_bytes(b"ftrt", mask=0, body=PROGRAM)
    recorded = precision_of(plan_of(data, convolutions={"a.conv": "int8", "b.conv": "fp16"}))
    assert recorded.convolutions == (EngineConvolution("a.conv", "int8"), EngineConvolution("b.conv", "fp16"))
    assert "built" in recorded.source
    for unknown in (plan_of(data), plan_of(data, convolutions={})):
        assert precision_of(unknown) == EnginePrecision()


def test_the_precision_of_an_rtx_engine_is_in_its_bytes_whatever_its_sidecar_recorded() -> None:
    data = plan_bytes(body=PROGRAM)
    assert precision_of(plan_of(data, convolutions={"a.conv": "fp32"})).counts == {"int8": 1, "fp16": 1}
