"""Untrusted files are loaded in a child process first: what they do to a library is one typed error here."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from densenet_deploy.errors import CheckpointError, DensenetDeployError, ModelFileError, ResourceError
from densenet_deploy.worker import Limits
from densenet_deploy.workflows.sandbox import (
    Loader,
    Sandbox,
    UntrustedFile,
    death_error,
    limits_for,
    memory_error,
    preflight,
)
from tests.faults.hostile import without_end, without_measure

pytestmark = [
    pytest.mark.usefixtures("sandbox"),
    pytest.mark.skipif(sys.platform == "win32", reason="has no such signals and limits"),
]


def children() -> float:
    """CPU seconds of the children that were waited for: none is started without it."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_valid_file_passes_and_is_loaded_once(tiny_onnx: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"  # one that no other test let a command read
    model.write_bytes(tiny_onnx.read_bytes())
    given = UntrustedFile(model, (Loader.GRAPH, Loader.SESSION))
    start = children()
    preflight(given)
    examined = children()
    assert examined > start
    preflight(given)
    assert children() == examined, "it is remembered"


def test_a_file_that_changed_is_loaded_again(tiny_onnx: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_onnx.read_bytes())
    preflight(UntrustedFile(model, (Loader.GRAPH,)))
    model.write_bytes(tiny_onnx.read_bytes() + b"\x72\x00")  # an empty pair of metadata
    before = children()
    preflight(UntrustedFile(model, (Loader.GRAPH,)))
    assert children() > before


def test_a_file_that_fails_a_check_without_a_library_starts_no_child(tmp_path: Path) -> None:
    damaged = {"a.onnx": b"<html>", "b.pth": b"PK\x03\x04", "c.pth": b"", "d.xml": b"<html>", "e.txt": b"text"}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
    before = children()
    preflight(*(UntrustedFile(tmp_path / name, tuple(Loader)) for name in (*damaged, "missing.onnx")))
    assert children() == before


def test_safetensors_and_public_names_start_no_child(tmp_path: Path) -> None:
    before = children()
    weights = Path(__file__).parents[2] / "examples/digits/densenet_digits.safetensors"
    preflight(UntrustedFile(weights, (Loader.SESSION,)))
    preflight(UntrustedFile(Path("imagenet"), (Loader.WEIGHTS,)))
    assert children() == before


@pytest.mark.slow
def test_a_file_that_a_library_refuses_is_left_to_the_command(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "model.onnx")
    preflight(UntrustedFile(tmp_path / "model.onnx", (Loader.GRAPH, Loader.SESSION)))
    torch.save({"weights": print}, tmp_path / "model.pth")
    preflight(UntrustedFile(tmp_path / "model.pth", ()))


@pytest.mark.parametrize(
    ("value", "is_zip", "loaders"),
    [
        (torch.ones(1), True, ["NumPy"]),
        (torch.ones(1), False, ["NumPy", "PyTorch"]),
        (torch.eye(2).to_sparse(), True, ["NumPy", "PyTorch"]),
    ],
    ids=["zip", "bare pickle", "sparse"],
)
def test_what_only_pytorch_reads_is_loaded_by_pytorch(
    value: torch.Tensor, is_zip: bool, loaders: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"weight": value}, path, _use_new_zipfile_serialization=is_zip)
    with caplog.at_level("INFO", "densenet_deploy"):
        Sandbox().preflight(UntrustedFile(path))
    assert caplog.messages == [f"{path} is loaded by {loader} in a child process" for loader in loaders]


def test_a_sandbox_that_is_off_starts_no_child(tiny_onnx: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_onnx.read_bytes())
    sandbox, before = Sandbox(is_enabled=False), children()
    sandbox.preflight(UntrustedFile(model, (Loader.GRAPH,)))
    assert children() == before
    sandbox.is_enabled = True
    sandbox.preflight(UntrustedFile(model, (Loader.GRAPH,)))
    assert children() > before


@pytest.mark.skipif(sys.platform != "linux", reason="does not enforce a limit of address space")
def test_a_file_that_needs_all_memory_is_refused(tmp_path: Path, tiny_onnx: Path) -> None:
    hostile = without_measure(tmp_path / "hostile.onnx")
    assert hostile.stat().st_size < 300
    with pytest.raises(ModelFileError) as caught:
        preflight(
            UntrustedFile(tiny_onnx, (Loader.SESSION,), "openvino"),
            UntrustedFile(hostile, (Loader.SESSION,), "openvino"),
        )
    assert caught.value.subject == str(hostile)


@pytest.mark.slow
def test_a_file_that_never_ends_is_given_up(tmp_path: Path) -> None:
    hostile = without_end(tmp_path / "hostile.onnx")
    assert hostile.stat().st_size < 4000
    with pytest.raises(ModelFileError) as caught:
        preflight(UntrustedFile(hostile, (Loader.GRAPH,)))
    assert caught.value.subject == str(hostile)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (signal.SIGSEGV, CheckpointError),
        (signal.SIGABRT, CheckpointError),
        (None, CheckpointError),
        (signal.SIGXCPU, CheckpointError),
        (signal.SIGALRM, CheckpointError),
        (signal.SIGKILL, ResourceError),
    ],
)
def test_a_death_is_the_fault_of_the_file_unless_the_system_killed_it(
    number: int | None, kind: type[DensenetDeployError]
) -> None:
    error = death_error(Path("weights.pth"), Loader.WEIGHTS, number, Limits(2**32, 10, 50.0))
    assert (type(error), error.subject) == (kind, "weights.pth")


def test_memory_below_the_own_limit_is_the_fault_of_the_machine() -> None:
    limits = Limits(2**32, 10, 50.0)
    ours = memory_error(Path("a.onnx"), Loader.SESSION, limits, is_own_limit=True)
    theirs = memory_error(Path("a.onnx"), Loader.SESSION, limits, is_own_limit=False)
    assert (ours.exit_code, theirs.exit_code) == (3, 6)


def test_limits_grow_with_the_weights_beside_the_file(tiny_onnx: Path, tmp_path: Path) -> None:
    small = limits_for([UntrustedFile(tiny_onnx, ())])
    model = onnx.load(tiny_onnx)
    big = helper.make_tensor("unused", TensorProto.FLOAT, [2**20], bytes(4 * 2**20), raw=True)
    model.graph.initializer.append(big)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=1024)
    large = limits_for([UntrustedFile(tmp_path / "model.onnx", ())])
    assert large.memory_bytes > small.memory_bytes + 16 * 4 * 2**20 - 2**20
    assert large.cpu_seconds > small.cpu_seconds
