"""One file adds a backend or a graph pass: it is imported, and nothing else has to change."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from densenet_deploy.errors import MissingPackageError, UsageError
from densenet_deploy.graph.graph_pass import apply_passes, graph_passes
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.runner import backends, open_runner

BACKEND = '''
"""Scores an image by the mean of each channel, with weights from a text file behind a line <net …>."""

import numpy as np

from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.runner import Placement, Runner, backends


@backends.register("means")
class MeansRunner(Runner):
    name = "means"
    suffixes = (".xml",)
    requires = "{requires}"
    extra = "means"

    @classmethod
    def open(cls, source, device, options):
        float32 = np.dtype(np.float32)
        return cls(
            np.loadtxt(source.path, comments="<"),
            (TensorSpec("input", (None, 3, 8, 8), float32),),
            (TensorSpec("logits", (None, 3), float32),),
            Placement("means", np.__version__, "cpu", "numpy", "fp32", 1),
            source.manifest,
        )

    @classmethod
    def probe(cls):
        return np.__version__, ("cpu",)

    def _run(self, handle, feeds):
        return {{"logits": (feeds["input"].mean(axis=(2, 3)) * handle).astype(np.float32)}}
'''

GRAPH_PASS = '''
"""Remove Identity: what it gives is what it takes."""

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import GraphPass, PassOutcome, graph_passes
from densenet_deploy.graph.nodes import is_operator


@graph_passes.register("drop-same")
class DropSame(GraphPass):
    """Let the readers of an Identity read its input."""

    def call(self, model):
        """Rewrite `model` in place."""
        identities = [node for node in model.graph if is_operator(node, "Identity")]
        for node in identities:
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            model.graph.remove(node, safe=True)
        return PassOutcome.of(model, [str(node.name) for node in identities])
'''

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Import a plug-in from a file of its own; afterwards the registries hold what they held."""

    def load_file(text: str) -> ModuleType:
        path = tmp_path / "toy_plugin.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("toy_plugin", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    with backends.restored(), graph_passes.restored():
        yield load_file
    assert "toy_plugin" not in sys.modules


@pytest.fixture
def means(tmp_path: Path) -> Path:
    """A model file of the toy backend, which weighs red, green and blue 1, 2 and 3."""
    path = tmp_path / "means.xml"
    np.savetxt(path, [1.0, 2.0, 3.0], header='<net name="means">', comments="")  # an .xml file has to begin so
    return path


def test_a_backend_in_one_file_opens_through_the_one_door(load, means):
    load(BACKEND.format(requires="numpy"))
    with open_runner(means, "means") as runner:
        logits = runner.run({"input": np.ones((2, 3, 8, 8), np.float32)})["logits"]
    np.testing.assert_array_equal(logits, [[1, 2, 3], [1, 2, 3]])


def test_a_backend_in_one_file_classifies(load, means, tmp_path):
    load(BACKEND.format(requires="numpy"))
    Image.new("RGB", (8, 8), (0, 0, 255)).save(tmp_path / "blue.png")
    with Classifier.open(means, "means") as classify:
        assert classify(tmp_path / "blue.png", top_k=1).top[0].index == 2


def test_a_backend_without_its_package_names_the_command(load, means):
    load(BACKEND.format(requires="no_such_package"))
    with pytest.raises(MissingPackageError) as caught:
        open_runner(means, "means")
    assert caught.value.subject == "no_such_package"


def test_a_name_that_is_taken_is_refused(load):
    load(BACKEND.format(requires="numpy"))
    with pytest.raises(UsageError) as caught:
        load(BACKEND.format(requires="numpy"))
    assert caught.value.subject == "means"


def test_a_graph_pass_in_one_file_runs_by_name(load):
    load(GRAPH_PASS)
    text = '<ir_version: 9, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { i = Identity(x)  y = Relu(i) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    (report,) = apply_passes(model, ["drop-same"])
    assert len(report.changed) == 1
    assert [node.op_type for node in model.graph] == ["Relu"]


def test_the_registries_hold_nothing_of_the_plug_ins_afterwards():
    assert "means" not in backends.names()
    assert "drop-same" not in graph_passes.names()
