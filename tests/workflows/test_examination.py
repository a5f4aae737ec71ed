"""Strangers' files are read in a child first: what those do to a library is one typed error here."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from densenet_deploy.errors import CheckpointError, DensenetDeployError, ModelFileError, ResourceError
from densenet_deploy.workflows import examination
from densenet_deploy.workflows.examination import Given, Reader, examine
from tests.faults.hostile import without_end, without_measure

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals and limits")


def children() -> float:
    """CPU seconds of the children that were waited for: none is started without it."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_an_honest_file_comes_through_and_is_read_once(tiny_onnx: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"  # one that no other test let a command read
    model.write_bytes(tiny_onnx.read_bytes())
    given = Given(model, (Reader.GRAPH, Reader.SESSION))
    start = children()
    examine(given)
    examined = children()
    assert examined > start
    examine(given)
    assert children() == examined, "it is remembered"


def test_a_file_that_changed_is_read_again(tiny_onnx: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_onnx.read_bytes())
    examine(Given(model, (Reader.GRAPH,)))
    model.write_bytes(tiny_onnx.read_bytes() + b"\x72\x00")  # an empty pair of metadata
    before = children()
    examine(Given(model, (Reader.GRAPH,)))
    assert children() > before


def test_what_is_refused_without_a_library_meets_no_child(tmp_path: Path) -> None:
    damaged = {"a.onnx": b"<html>", "b.pth": b"PK\x03\x04", "c.pth": b"", "d.xml": b"<html>", "e.txt": b"text"}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
    before = children()
    examine(*(Given(tmp_path / name, tuple(Reader)) for name in (*damaged, "missing.onnx")))
    assert children() == before


def test_safetensors_and_public_names_meet_no_child(tmp_path: Path) -> None:
    before = children()
    examine(Given(Path(__file__).parents[2] / "examples/digits/densenet_digits.safetensors", (Reader.SESSION,)))
    examine(Given(Path("imagenet"), (Reader.WEIGHTS,)))
    assert children() == before


def test_what_a_library_refuses_is_left_to_the_command(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "model.onnx")
    examine(Given(tmp_path / "model.onnx", (Reader.GRAPH, Reader.SESSION)))
    torch.save({"weights": print}, tmp_path / "model.pth")
    examine(Given(tmp_path / "model.pth", ()))


@pytest.mark.skipif(sys.platform != "linux", reason="keeps no limit of address space")
def test_a_file_that_wants_all_memory_is_refused(tmp_path: Path, tiny_onnx: Path) -> None:
    hostile = without_measure(tmp_path / "hostile.onnx")
    assert hostile.stat().st_size < 300
    with pytest.raises(ModelFileError, match=r"hostile.onnx: the backend wants more than 4\d\d\d MiB"):
        examine(Given(tiny_onnx, (Reader.SESSION,), "openvino"), Given(hostile, (Reader.SESSION,), "openvino"))


def test_a_file_without_end_is_given_up(tmp_path: Path) -> None:
    hostile = without_end(tmp_path / "hostile.onnx")
    assert hostile.stat().st_size < 4000
    with pytest.raises(ModelFileError, match="the onnx package was not done with it after"):
        examine(Given(hostile, (Reader.GRAPH,)))


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (signal.SIGSEGV, CheckpointError, "PyTorch crashes on it (SIGSEGV)"),
        (signal.SIGABRT, CheckpointError, "PyTorch crashes on it (SIGABRT)"),
        (None, CheckpointError, "PyTorch crashes on it (no signal)"),
        (signal.SIGXCPU, CheckpointError, "PyTorch was not done with it after 10 s of computing"),
        (signal.SIGALRM, CheckpointError, "PyTorch was not done with it after 50 s"),
        (signal.SIGKILL, ResourceError, "was killed, as systems do when memory runs out"),
    ],
)
def test_every_death_has_its_sentence(number: int | None, kind: type[DensenetDeployError], says: str) -> None:
    limits = examination.Limits(2**32, 10, 50.0)
    error = examination._death(Path("weights.pth"), Reader.WEIGHTS, number, limits)
    assert type(error) is kind
    assert says in str(error)


def test_narrow_memory_is_the_machines_fault() -> None:
    limits = examination.Limits(2**32, 10, 50.0)
    ours = examination._no_memory(Path("a.onnx"), Reader.SESSION, limits, was_ours=True)
    theirs = examination._no_memory(Path("a.onnx"), Reader.SESSION, limits, was_ours=False)
    assert (ours.exit_code, theirs.exit_code) == (3, 6)


def test_limits_grow_with_the_weights_beside_the_file(tiny_onnx: Path, tmp_path: Path) -> None:
    small = examination._limits([Given(tiny_onnx, ())])
    model = onnx.load(tiny_onnx)
    big = helper.make_tensor("unused", TensorProto.FLOAT, [2**20], bytes(4 * 2**20), raw=True)
    model.graph.initializer.append(big)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=1024)
    large = examination._limits([Given(tmp_path / "model.onnx", ())])
    assert large.memory_bytes > small.memory_bytes + 16 * 4 * 2**20 - 2**20
    assert large.cpu_seconds > small.cpu_seconds
