"""What a rewrite made of a tensor, written into the model and read back."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.errors import ManifestError
from densenet_deploy.graph.tensor_changes import (
    KEY,
    TensorChange,
    TensorChanges,
    pack,
    read_tensor_changes,
    written_once,
)
from tests.graph.onnx_text import model_of

THIRDS = np.array([1 / 3, 2 / 3, 4], np.float32)


@pytest.fixture
def model() -> ir.Model:
    return model_of("a = Relu(x)  y = Neg(a)", "", outputs="float[N,3,5,5] y")


def _changes_of(model: ir.Model) -> dict[str, TensorChange]:
    """Read the changes after a trip through the file's bytes."""
    return read_tensor_changes({p.key: p.value for p in ir.to_proto(model).metadata_props})


def test_a_model_without_changes_holds_no_note(model):
    TensorChanges.of(model).write_to(model)
    assert not model.metadata_props
    assert read_tensor_changes({}) == {}


def test_a_scaled_tensor_is_renamed_and_its_factor_reads_back_exactly(model):
    value = next(iter(model.graph)).outputs[0]
    changes = TensorChanges.of(model)
    changes.scale(model.graph, value, THIRDS)
    changes.write_to(model)
    assert value.name == "a:scaled"
    (change,) = _changes_of(model).values()
    assert (change.of, change.moved) == ("a", None)
    np.testing.assert_array_equal(np.array(change.factor, np.float32), THIRDS)


def test_scaling_twice_multiplies_the_factors_under_one_name(model):
    value = next(iter(model.graph)).outputs[0]
    for factor in (np.array([2, 3, 4], np.float32), np.array([5, 7, 0.5], np.float32)):
        changes = TensorChanges.of(model)
        changes.scale(model.graph, value, factor)
        changes.write_to(model)
    assert _changes_of(model) == {"a:scaled": TensorChange("a", (10, 21, 2))}


def test_a_copy_has_changes_of_its_own_and_an_origin(model):
    first, last = (node.outputs[0] for node in model.graph)
    changes = TensorChanges.of(model)
    changes.scale(model.graph, first, THIRDS)
    changes.copy("y", "a:scaled")
    assert (changes.origin("y"), changes.origin("a:scaled"), changes.origin("x")) == ("a:scaled", "a", "x")
    changes.shift(model.graph, last, THIRDS)
    changes.write_to(model)
    found = _changes_of(model)
    assert set(found) == {"a:scaled", "y:shifted"}
    assert (found["a:scaled"].of, found["a:scaled"].offset) == ("a", None)
    assert (found["y:shifted"].of, found["y:shifted"].factor) == ("a:scaled", None)


def test_shifts_and_factors_in_any_order_undo_to_the_original(model):
    relu = next(iter(model.graph))
    original = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    held, per_channel = original, (1, 3, 1, 1)
    for kind, numbers in (("shift", [1, 2, 3]), ("scale", [2, 4, 8]), ("shift", [-1, 0.5, 0]), ("scale", [4, 0.5, 1])):
        changes = TensorChanges.of(model)
        amount = np.array(numbers, np.float32)
        getattr(changes, kind)(model.graph, relu.outputs[0], amount)
        changes.write_to(model)
        held = held + amount.reshape(per_channel) if kind == "shift" else held / amount.reshape(per_channel)
    (change,) = _changes_of(model).values()
    np.testing.assert_array_equal(change.undone(held), original)
    channels = original[0, :, 1, 1]
    np.testing.assert_array_equal(change.made_from(channels), held[0, :, 1, 1])


def test_a_moved_tensor_keeps_the_factor_of_its_origin(model):
    relu, neg = model.graph
    changes = TensorChanges.of(model)
    changes.scale(model.graph, relu.outputs[0], np.array([2, 3, 4], np.float32))
    changes.move(str(neg.outputs[0].name), str(relu.outputs[0].name), "elsewhere")
    changes.write_to(model)
    assert _changes_of(model)["y"] == TensorChange("a", (2, 3, 4), "elsewhere")


def test_a_moved_tensor_whose_origin_was_not_changed_names_it(model):
    changes = TensorChanges({})
    changes.move("y", "a", "elsewhere")
    changes.write_to(model)
    assert _changes_of(model) == {"y": TensorChange("a", moved="elsewhere")}


def test_the_notes_are_one_line_of_json_with_the_shortest_numbers_and_only_what_is_known(model):
    relu, neg = model.graph
    changes = TensorChanges({})
    changes.scale(model.graph, relu.outputs[0], np.array([0.1, 1e-7, 3], np.float32))
    changes.shift(model.graph, neg.outputs[0], np.array([0.1, -2, 0], np.float32))
    changes.cut_off("b", np.array([0.3], np.float32), np.array([4], np.float32))
    changes.quantize("b:q", "b", 0.1, 7)
    changes.move("c", "d", "elsewhere")
    changes.write_to(model)
    assert model.metadata_props["densenet_deploy.tensors"] == (
        '{"a:scaled":{"of":"a","factor":[0.1,1e-07,3.0],"moved":null},'
        '"y:shifted":{"of":"y","factor":null,"moved":null,"offset":[-0.1,2.0,-0.0]},'
        '"b":{"of":"b","factor":null,"moved":null,"low":[0.3],"high":[4.0]},'
        '"b:q":{"of":"b","factor":null,"moved":null,"scale":0.1,"zero_point":7},'
        '"c":{"of":"d","factor":null,"moved":"elsewhere"}}'
    )
    assert _changes_of(model)["b:q"] == TensorChange("b", scale=0.1, zero_point=7)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (TensorChange("a"), [8, -6]),
        (TensorChange("a", factor=(2, 4)), [16, -24]),
        (TensorChange("a", offset=(1, 3)), [9, -3]),
        (TensorChange("a", factor=(2, 4), offset=(1, 3)), [17, -21]),
        (TensorChange("a", scale=0.5), [4, -3]),
        (TensorChange("a", scale=0.5, zero_point=2), [3, -4]),
        (TensorChange("a", scale=0.5, zero_point=2, factor=(2, 4), offset=(1, 3)), [7, -13]),
    ],
)
@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)], ids=["rows", "signals", "images"])
def test_the_original_is_restored(change, expected, shape):
    restored = change.undone(np.float32([8, -6]).reshape(1, *shape))
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored, np.reshape(expected, (1, *shape)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (TensorChange("a"), [8, -6]),
        (TensorChange("a", factor=(2, 4)), [4, -1.5]),
        (TensorChange("a", offset=(1, 3)), [7, -9]),
        (TensorChange("a", factor=(2, 4), offset=(1, 3)), [3.5, -2.25]),
    ],
)
def test_what_a_tensor_holds_is_made_from_its_original(change, expected):
    assert change.made_from(np.float32([8, -6])).tolist() == expected


@pytest.mark.parametrize("limits", [{"low": (0,)}, {"high": (0,)}, {}])
def test_without_both_limits_all_is_needed(limits):
    array = np.float32([[-1], [1]])
    np.testing.assert_array_equal(TensorChange("a", **limits).needed(array), array)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1), (2,), (1, 3, 2), (1, 3, 2, 2)])
def test_numbers_for_other_channels_are_refused(shape):
    for change in (TensorChange("a", factor=(1, 2)), TensorChange("a", low=(0, 0), high=(1, 1))):
        with pytest.raises(ManifestError) as caught:
            (change.undone if change.factor else change.needed)(np.ones(shape, np.float32))
        assert caught.value.subject == KEY


def test_a_new_name_avoids_those_in_use(model):
    relu, neg = model.graph
    neg.outputs[0].name = "a:scaled"
    changes = TensorChanges.of(model)
    changes.scale(model.graph, relu.outputs[0], THIRDS)
    assert relu.outputs[0].name == "a:scaled_"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[]",
        '{"a": 1}',
        '{"a": {"factor": null, "moved": null}}',
        '{"a": {"of": "b", "factor": null, "moved": null, "more": 1}}',
        '{"a": {"of": 1, "factor": null, "moved": null}}',
        '{"a": {"of": "b", "factor": null, "moved": 1}}',
        *(
            json.dumps({"a": {"of": "b", "factor": factor, "moved": None}})
            for factor in (1, [0], [-1], ["1"], [True], [None], [float("nan")], [float("inf")], [10**400])
        ),
    ],
    ids=lambda text: text[:60],
)
def test_malformed_notes_are_refused(text):
    with pytest.raises(ManifestError) as caught:
        read_tensor_changes({KEY: text})
    assert caught.value.subject == KEY


def _packed(data: bytes) -> str:
    return "zlib+base85:" + base64.b85encode(data).decode()


def test_packed_changes_read_back_and_take_little_space():
    changes = {f"c{i}": TensorChange("a", factor=tuple(range(1, 1001)), low=(-1e-3,) * 1000) for i in range(20)}
    plain = TensorChanges(changes).to_strings()
    strings = plain | {"other": "{}"}
    pack(strings)
    assert strings["other"] == "{}"
    assert strings[KEY].startswith("zlib+base85:")
    assert len(strings[KEY]) < len(plain[KEY]) / 20
    assert read_tensor_changes(strings) == changes
    once = dict(strings)
    pack(strings)
    assert strings == once


def test_without_changes_nothing_is_packed():
    strings: dict[str, str] = {}
    pack(strings)
    assert strings == {}


@pytest.mark.parametrize(
    "text",
    [
        "zlib+base85:",
        'zlib+base85:"',
        "zlib+base85:abcde",
        _packed(b"{}"),
        _packed(zlib.compress(b"{}")[:-1]),
        _packed(zlib.compress(b"{")),
        _packed(zlib.compress(b"\xff")),
    ],
)
def test_what_cannot_be_unpacked_is_refused(text):
    with pytest.raises(ManifestError, match=r"is not JSON"):
        read_tensor_changes({KEY: text})


def test_what_unpacks_to_more_than_64_mib_is_refused_before_it_is_read():
    allowed, more = (b"{}" + b" " * (64 * 2**20 - 2 + extra) for extra in (0, 1))
    assert read_tensor_changes({KEY: _packed(zlib.compress(allowed))}) == {}
    with pytest.raises(ManifestError, match=r"is not JSON"):
        read_tensor_changes({KEY: _packed(zlib.compress(more))})


@pytest.mark.parametrize(
    "fact",
    [
        '"scale":-1,"zero_point":0',
        '"scale":1,"zero_point":0.5',
        '"scale":"a","zero_point":0',
        '"scale":1',
        '"zero_point":1',
    ],
)
def test_a_scale_that_is_not_valid_is_refused(fact):
    with pytest.raises(ManifestError):
        read_tensor_changes({KEY: f'{{"x":{{"of":"y","factor":null,"moved":null,{fact}}}}}'})


def test_limits_clip_and_survive_later_changes(model):
    value = next(iter(model.graph)).outputs[0]
    changes = TensorChanges.of(model)
    changes.cut_off("a", np.array([-1, 0, -9], np.float32), np.array([1, 2, 9], np.float32))
    changes.shift(model.graph, value, np.ones(3, np.float32))
    changes.scale(model.graph, value, np.full(3, 2, np.float32))
    changes.write_to(model)
    (change,) = _changes_of(model).values()
    array = np.array([[-5, -5, -5], [5, 5, 5]], np.float32)
    np.testing.assert_array_equal(change.needed(array), [[-1, 0, -5], [1, 2, 5]])
    assert change.of == "a"


@pytest.mark.parametrize("fact", ['"offset":["a"]', '"low":3', '"high":[null]', '"offset":[1e999]'])
def test_lists_of_something_else_are_refused(fact):
    with pytest.raises(ManifestError):
        read_tensor_changes({KEY: f'{{"x":{{"of":"y","factor":null,"moved":null,{fact}}}}}'})


def test_rewrites_that_follow_each_other_share_the_changes_which_are_written_at_the_end(model):
    TensorChanges({"y": TensorChange("y", moved="before")}).write_to(model)
    before, other = dict(model.metadata_props), model_of("y = Relu(x)", "", outputs="float[N,3,5,5] y")
    with written_once(model):
        first = TensorChanges.of(model)
        first.copy("a", "b")
        first.write_to(model)
        assert dict(model.metadata_props) == before
        assert TensorChanges.of(model).items() == (("y", TensorChange("y", moved="before")), ("a", TensorChange("b")))
        assert TensorChanges.of(other).items() == ()
        first.write_to(other)
        assert set(read_tensor_changes(other.metadata_props)) == {"y", "a"}, "of another model they are written at once"
    assert _changes_of(model) == dict(first.items())
    assert TensorChanges.of(model) is not first


def test_rewrites_that_fail_leave_no_changes(model):
    with pytest.raises(IndexError), written_once(model):
        TensorChanges.of(model).shift(model.graph, model.graph[7].outputs[0], THIRDS)
    assert not model.metadata_props
    assert TensorChanges.of(model).items() == ()
