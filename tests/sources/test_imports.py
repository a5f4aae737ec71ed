"""What a source does not need is not imported."""

import subprocess
import sys

import pytest

GRAPH = """
import sys, onnx
from onnx import TensorProto, helper
from densenet_deploy.sources import load
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [value("x")], [value("y")])
loaded = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
assert loaded.artifact.kind == "onnx"
sys.exit("torch" in sys.modules)
"""

VARIANT = """
import sys
from densenet_deploy.sources import load
load("cifar-7-1")
sys.exit("torchvision" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [GRAPH, VARIANT], ids=["a graph without torch", "a variant without torchvision"])
def test_a_network_is_loaded(code):
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
