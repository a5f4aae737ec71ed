"""Untrusted files are loaded in a child process first: what they do to a library is one typed error here."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from densenet_deploy.errors import CheckpointError, DensenetDeployError, ModelFileError, ResourceError
from densenet_deploy.worker import Limits
from densenet_deploy.workflows.sandbox import (
    Loader,
    Sandbox,
    UntrustedFile,
    _identity,
    _is_whole,
    _modules,
    death_error,
    limits_for,
    load,
    memory_error,
    preflight,
    prepare,
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


@pytest.mark.parametrize("is_enabled", [True, False])
def test_what_is_to_be_done_meanwhile_is_done_once(is_enabled: bool, tiny_onnx: Path, tmp_path: Path) -> None:
    model, done = tmp_path / "model.onnx", list[int]()
    model.write_bytes(tiny_onnx.read_bytes())
    sandbox = Sandbox(is_enabled=is_enabled)
    for times in (1, 2):  # the second time, the file is known
        sandbox.preflight(UntrustedFile(model, (Loader.GRAPH,)), meanwhile=lambda: done.append(1))
        assert len(done) == times
    sandbox.preflight(meanwhile=lambda: done.append(1))
    assert len(done) == 3


def test_a_file_is_not_passed_by_what_fails_meanwhile(tiny_onnx: Path, tmp_path: Path) -> None:
    model, sandbox = tmp_path / "model.onnx", Sandbox()
    model.write_bytes(tiny_onnx.read_bytes())
    given = UntrustedFile(model, (Loader.GRAPH,))
    with pytest.raises(KeyError):
        sandbox.preflight(given, meanwhile=lambda: {}["missing"])
    before = children()
    sandbox.preflight(given)
    assert children() > before


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


@pytest.mark.slow
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


def test_a_graph_without_facts_is_read_by_the_onnx_package_first_as_every_command_does(
    tiny_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "bare.onnx"
    model = onnx.load(tiny_onnx)
    del model.metadata_props[:]
    onnx.save(model, bare)
    ours = tmp_path / "ours.onnx"
    ours.write_bytes(tiny_onnx.read_bytes())
    with caplog.at_level("INFO", "densenet_deploy"):
        Sandbox().preflight(UntrustedFile(bare, (Loader.SESSION,)), UntrustedFile(ours, (Loader.SESSION,)))
        Sandbox().preflight(UntrustedFile(bare, (Loader.GRAPH, Loader.SESSION)))
    both = [(bare, "the onnx package"), (bare, "the backend")]
    expected = [*both, (ours, "the backend"), *both]
    assert caplog.messages == [f"{path} is loaded by {loader} in a child process" for path, loader in expected]


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


# -- the child's side, in this process


def refusals(caplog: pytest.LogCaptureFixture, *facts: tuple[Path, list[str], str | None]) -> tuple[list, int]:
    """The steps that the child announces, and how many of them end in a refusal."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "densenet_deploy.workflows.sandbox"):
        steps = list(load([(str(path), loaders, backend) for path, loaders, backend in facts]))
    return steps, sum(record.msg.startswith("refused") for record in caplog.records)


GRAPHS = ["GRAPH", "SIMPLIFIER", "SESSION"]


def test_every_loader_reads_the_file_and_what_it_refuses_is_left_to_the_command(
    tiny_onnx: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = [(0, "WEIGHTS"), *((1, name) for name in GRAPHS)]
    assert refusals(caplog, (checkpoint, ["WEIGHTS"], None), (tiny_onnx, GRAPHS, "onnxruntime")) == (steps, 0)
    weights, graph = tmp_path / "weights.pth", tmp_path / "graph.onnx"
    weights.write_bytes(checkpoint.read_bytes()[:-200])
    graph.write_bytes(tiny_onnx.read_bytes()[:-200])
    assert refusals(caplog, (weights, ["WEIGHTS"], None), (graph, GRAPHS, "onnxruntime")) == (steps, 4)


@pytest.mark.parametrize("loader", ["GRAPH", "SIMPLIFIER", "SESSION"])
def test_a_loader_is_the_library_that_it_names(
    tiny_onnx: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    import onnxsim

    def refuse(*_args: object, **_options: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(onnxsim, "simplify", refuse)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    assert refusals(caplog, (tiny_onnx, [loader], "onnxruntime"))[1] == (loader != "GRAPH")


def test_memory_that_runs_out_is_not_a_refusal(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_args: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(onnxruntime, "InferenceSession", run_out)
    with pytest.raises((MemoryError, ResourceError)):
        list(load([(str(tiny_onnx), ["SESSION"], "onnxruntime")]))


def test_what_a_loader_needs_is_imported_before(tiny_onnx: Path, checkpoint: Path, tmp_path: Path) -> None:
    modules = [_modules(loader, tiny_onnx, None) for loader in (Loader.GRAPH, Loader.SIMPLIFIER, Loader.SESSION)]
    assert modules == [
        ("densenet_deploy.graph.foreign",),
        ("onnxsim", "densenet_deploy.graph.simplify"),
        ("onnxruntime",),
    ]
    assert _modules(Loader.SESSION, tiny_onnx, "openvino") == ("openvino",)
    assert _modules(Loader.SESSION, tmp_path / "missing.onnx", None) == ()
    assert _modules(Loader.WEIGHTS, checkpoint, None) == ("torch", "densenet_deploy.sources.checkpoint_file")


@pytest.mark.parametrize(("error", "is_raised"), [("ImportError", False), ("OSError", False), ("MemoryError", True)])
def test_what_is_not_installed_is_not_imported_but_memory_has_to_suffice(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, is_raised: bool
) -> None:
    (tmp_path / "onnxsim.py").write_text(f"import sys; sys.imported_by_a_test.append(1); raise {error}")
    tried: list[int] = []
    monkeypatch.setattr(sys, "imported_by_a_test", tried, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxsim", raising=False)
    facts = [(str(tiny_onnx), ["SIMPLIFIER"], None)]
    if is_raised:
        with pytest.raises(MemoryError):
            prepare(facts)
    else:
        prepare(facts)
    assert tried == [1]


def test_a_checkpoint_of_old_is_whole_although_it_is_not_a_zip(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(2)}, tmp_path / "new.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "new.pth").read_bytes()[:-30])
    names = ("old.pth", "new.pth", "cut.pth", "missing.pth")
    assert [_is_whole(UntrustedFile(tmp_path / name, (Loader.ARRAYS,))) for name in names] == [
        True,
        True,
        False,
        False,
    ]


def test_what_is_remembered_of_a_file_is_how_it_was_loaded(tiny_onnx: Path, tmp_path: Path) -> None:
    one, same = (_identity(UntrustedFile(tiny_onnx, (Loader.GRAPH,))) for _ in range(2))
    assert one == same
    assert one != _identity(UntrustedFile(tiny_onnx, (Loader.SESSION,)))
    assert one != _identity(UntrustedFile(tiny_onnx, (Loader.GRAPH,), "openvino"))
    assert _identity(UntrustedFile(tmp_path / "gone.onnx", (Loader.GRAPH,))) is None
