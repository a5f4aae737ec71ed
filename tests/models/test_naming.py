"""Names from modules: one each, whatever the modules are called."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from densenet_deploy.models.naming import name_by_module


def _model(body: str, scopes: dict[str, list[str]], initializers: str = "") -> ir.Model:
    """A graph whose nodes, by output, were traced in those modules."""
    graph = f"g (float[2] input) => (float[2] logits) <{initializers}> {{ {body} }}"
    model = ir.from_proto(onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>' + graph))
    for node in model.graph:
        chain = scopes.get(str(node.outputs[0].name), [])
        node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", *chain, "operation"])
        node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/home/me/secret.py", line 1'
    return model


def _names(model: ir.Model) -> list[tuple[str | None, str | None]]:
    """Rename and return (node, first output); the model must stay valid."""
    name_by_module(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return [(node.name, node.outputs[0].name) for node in model.graph]


def test_the_last_node_of_a_module_has_its_path_and_the_others_add_their_operator():
    model = _model(
        "a = Neg(input)  b = Relu(a)  c = Neg(b)  logits = Relu(c)",
        {"a": ["block", "block.layer"], "b": ["block", "block.layer"], "c": ["block"], "logits": []},
    )
    assert _names(model) == [
        ("block.layer.neg", "block.layer.neg"),
        ("block.layer", "block.layer"),
        ("block.neg", "block.neg"),
        ("relu", "logits"),
    ]


def test_a_module_called_twice_is_numbered():
    scopes = {"a": ["m"], "b": ["m"], "c": ["m"]}
    model = _model("a = Neg(input)  b = Neg(a)  c = Neg(b)  logits = Relu(c)", scopes)
    assert [node for node, _ in _names(model)] == ["m.neg", "m.neg_2", "m", "relu"]


def test_a_module_may_begin_with_an_underscore():
    model = _model("a = Neg(input)  logits = Relu(a)", {"a": ["_m"], "logits": ["_m"]})
    assert [node for node, _ in _names(model)] == ["_m.neg", "_m"]


def test_nodes_whose_modules_are_not_known_are_named_after_their_operators():
    model = _model("a = Neg(input)  b = Neg(a)  c = Neg(b)  logits = Relu(c)", {})
    nodes = list(model.graph)
    notes = (None, "['operation']", "['m', 'operation']")
    for node, scopes in zip(nodes, notes, strict=False):
        node.metadata_props.clear()
        if scopes:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    assert [node for node, _ in _names(model)] == ["neg", "neg_2", "m", "relu"]


def test_a_number_given_meets_no_module_of_that_name():
    scopes = {"a": ["m"], "b": ["m"], "c": ["m", "m.neg_2"], "d": ["m"]}
    model = _model("a = Neg(input)  b = Neg(a)  c = Neg(b)  d = Neg(c)  logits = Relu(d)", scopes)
    names = [node for node, _ in _names(model)]
    assert len(set(names)) == len(names)


def test_modules_called_like_inputs_outputs_or_weights_get_another_name():
    scopes = {"a": ["input"], "b": ["logits"], "c": ["w"], "logits": ["classifier"]}
    model = _model("a = Neg(input)  b = Neg(a)  c = Add(b, w)  logits = Relu(c)", scopes, "float[2] w = {1, 2}")
    assert _names(model) == [
        ("input_2", "input_2"),
        ("logits_2", "logits_2"),
        ("w_2", "w_2"),
        ("classifier", "logits"),
    ]


def test_further_outputs_are_numbered_behind_a_colon():
    model = _model("a, b = Split<num_outputs=2>(input)  logits = Concat<axis=0>(b, a)", {"a": ["halves"]})
    _names(model)
    assert [value.name for value in next(iter(model.graph)).outputs] == ["halves", "halves:1"]


def test_the_exporters_notes_are_gone():
    model = _model("a = Neg(input)  logits = Relu(a)", {"a": ["m"]})
    model.doc_string = model.graph.doc_string = "from /home/me"
    model.metadata_props["path"] = "/home/me"
    name_by_module(model)
    assert b"/home/me" not in ir.to_proto(model).SerializeToString()
