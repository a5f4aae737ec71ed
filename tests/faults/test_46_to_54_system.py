"""Cases 46 to 54: signals, odd paths and streams, no network, missing packages, recipes, caches and manifests.

Signals in the middle of benchmark, tune and build-trt are in `tests/cli/`; two writers on one output (47) in
`tests/test_disks.py` and `tests/cli/test_build_trt.py`; paths and streams that work (48, 49) in
`tests/cli/test_contract.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from densenet_deploy.errors import install_command
from densenet_deploy.manifest import PREFIX
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.sidecar import sidecar_path
from tests.conftest import DIGITS
from tests.faults.harness import (
    Commands,
    Ended,
    arguments,
    require_contract,
    run_process,
    start_process,
    stopped_at,
)
from tests.runtime.simulated_tensorrt import RTX, simulated_gpu, write_simulated_engine

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
FAST = ("--recipe", "onnxruntime", "--no-never-slower")

# Sends this process a signal the moment it begins to import a module.
EARLY = """
import os, sys
class Trap:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(sys.argv[1]))
sys.meta_path.insert(0, Trap())
from densenet_deploy.cli import main
sys.exit(main(["inspect", "--variant", "121"]))
"""


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("module", ["densenet_deploy.cli.app", "typer", "densenet_deploy.analysis.cost"])
def test_46_a_signal_while_the_command_is_still_imported(tmp_path: Path, number: signal.Signals, module: str) -> None:
    ended = run_process([sys.executable, "-c", EARLY, str(int(number)), module], tmp_path)
    require_contract(ended, CODES[number], "stopped by a signal")


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_46_signals_end_an_export_within_seconds(tmp_path: Path, number: signal.Signals) -> None:
    ended = stopped_at("build: ", number, "export", "--variant", "121", "-o", tmp_path, folder=tmp_path)
    assert ended.seconds < 5
    require_contract(ended, CODES[number], "stopped by a signal")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_46_signals_end_a_calibration_within_seconds(tmp_path: Path, tiny_onnx: Path, number: signal.Signals) -> None:
    samples = np.random.default_rng(0).standard_normal((4000, 3, 32, 32), np.float32)
    np.save(tmp_path / "samples.npy", samples)
    words = ("quantize", tiny_onnx, "--calibration", "samples.npy", "--samples", "4000", *FAST, "-o", "out.onnx")
    process = start_process(arguments(*words), tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    while not list(tmp_path.rglob("*.partial.npz")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, number)
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    seconds = time.monotonic() - start
    assert seconds < 5
    require_contract(Ended(process.returncode, out, err, seconds), CODES[number], "stopped by a signal")
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no child is left in its group


ODD_NAMES = [b"two words", b"two\nlines", "\N{CAT}".encode(), b"\xff\xfe", b"\x1b[31m"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_48_odd_paths_in_one_printable_line(commands: Commands, tiny_onnx: Path, name: bytes) -> None:
    folder = commands.folder / os.fsdecode(name)
    folder.mkdir()
    (folder / "text.onnx").write_text("text")
    (folder / "text.jpg").write_text("text")
    commands.refused("run", folder / "missing.onnx", "image.png", says="missing.onnx")
    commands.refused("inspect", folder / "text.onnx", says="text.onnx")
    commands.refused("run", tiny_onnx, folder / "text.jpg", says="text.jpg")


@pytest.mark.slow
def test_48_an_export_into_an_odd_folder(commands: Commands) -> None:
    folder = commands.folder / os.fsdecode(ODD_NAMES[3]) / "two\nlines"
    weights = DIGITS / "densenet_digits.safetensors"
    answer = commands.answer("export", "--weights", weights, "-o", folder / "digits.onnx")
    assert Path(str(answer["onnx"])) == folder / "digits.onnx"
    assert (folder / "digits.onnx").is_file()


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}])
def test_49_no_escape_codes_without_a_terminal(tmp_path: Path, environment: dict[str, str]) -> None:
    for words, code in ((("inspect", "--variant", "121"), 0), (("inspect", "--varient", "121"), 2)):
        ended = run_process(arguments(*words), tmp_path, **environment)
        assert ended.code == code
        assert "\x1b" not in ended.out + ended.err


def _has_networks() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "-rn", "true"]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _has_networks(), reason="this system gives no network namespaces (unshare -rn)")
def test_50_no_network(tmp_path: Path) -> None:
    words = arguments("export", "--weights", "imagenet", "-o", "out/")
    ended = run_process(["unshare", "-rn", *words], tmp_path, TORCH_HOME=str(tmp_path / "torch"))
    require_contract(ended, 6, "densenet121", "check the network, or give a file")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


MISSING = {
    "onnxsim": ("export", ("export", "--variant", "cifar-40-12", "--exporter", "torch", "-o", "new/")),
    "torch": ("export", ("inspect", "weights.pth")),
    "onnxscript": ("export", ("simplify", "tiny.onnx", "-o", "new/")),
    "openvino": ("openvino", ("run", "tiny.onnx", "image.png", "--backend", "openvino")),
    "onnxruntime": ("onnxruntime", ("run", "tiny.onnx", "image.png", "--backend", "onnxruntime")),
    "matplotlib": ("plot", ("plot", "growth", "--variant", "121", "-o", "new/a.png")),
}


@pytest.mark.parametrize("package", MISSING)
def test_51_a_missing_package_names_the_command_that_installs_it(
    commands: Commands, tiny_onnx: Path, image: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    (commands.folder / "tiny.onnx").write_bytes(tiny_onnx.read_bytes())
    (commands.folder / "weights.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to say that there is none
    extra, words = MISSING[package]
    commands.refused(*words, code=5, says=(package, install_command(extra)))


WITHOUT_ONNX = {
    "quantize": ("quantize", "tiny.onnx", "--calibration", "few"),
    "sensitivity": ("sensitivity", "tiny.onnx", "--calibration", "few"),
    "build-trt": ("build-trt", "tiny.onnx", "--int8", "--calibration", "few", "--flavour", "rtx"),
}


@pytest.mark.parametrize("command", WITHOUT_ONNX)
def test_51_without_onnx_at_all(commands: Commands, tiny_onnx: Path, image: Path, command: str) -> None:
    """In a process of its own: a module that was imported before would not be missed."""
    (commands.folder / "few").mkdir()
    (commands.folder / "few" / "one.png").write_bytes(image.read_bytes())
    (commands.folder / "tiny.onnx").write_bytes(tiny_onnx.read_bytes())
    hide = "import sys; sys.modules |= {'onnx': None, 'onnx_ir': None}; from densenet_deploy.cli import main"
    script = f"{hide}; sys.exit(main({list(WITHOUT_ONNX[command])!r}))"
    ended = run_process([sys.executable, "-c", script], commands.folder)
    require_contract(ended, 5, "onnx", install_command("export"))


@pytest.mark.parametrize(("key", "nearest"), [("obsrver", "observer"), ("sample", "samples"), ("weight", "weights")])
def test_52_an_unknown_key_in_a_recipe_names_the_nearest(
    commands: Commands, tiny_onnx: Path, key: str, nearest: str
) -> None:
    (commands.folder / "mine.toml").write_text(f'base = "onnxruntime"\n{key} = 3\n')
    words = ("quantize", tiny_onnx, "--calibration", ".", "--recipe", "mine.toml", "-o", "new/out.onnx")
    commands.refused(*words, code=2, says=(key, f"did you mean '{nearest}'"))


def test_53_a_corrupt_cache_is_rebuilt(
    commands: Commands, tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    np.save("samples.npy", np.random.default_rng(0).standard_normal((32, 3, 32, 32), np.float32))
    words = ("quantize", tiny_onnx, "--calibration", "samples.npy", *FAST, "-o", "out.onnx", "--force")
    commands.answer(*words)
    whole = (commands.folder / "out.onnx").read_bytes()
    (entry,) = cache.rglob("*.npz")
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)
    assert any("damaged" in note for note in commands.answer(*words)["notes"])
    assert (commands.folder / "out.onnx").read_bytes() == whole
    assert any("from the cache" in note for note in commands.answer(*words)["notes"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "records": {}}'])
def test_53_54_a_corrupt_or_newer_sidecar_is_refused(
    commands: Commands, tiny_onnx: Path, image: Path, text: str
) -> None:
    with simulated_gpu(RTX) as gpu:
        engine = write_simulated_engine(commands.folder, tiny_onnx, RTX)
        sidecar_path(engine).write_text(text)
        for trust in ((), ("--trust-engine",)):
            commands.refused("run", engine, image, *trust, says=sidecar_path(engine).name)
        assert gpu.calls == []


@pytest.mark.parametrize("command", ["run", "inspect", "simplify", "benchmark", "validate"])
def test_54_a_manifest_of_a_newer_schema(commands: Commands, tiny_onnx: Path, image: Path, command: str) -> None:
    model = onnx.load(tiny_onnx)
    for pair in model.metadata_props:
        pair.value = "999" if pair.key == PREFIX + "schema" else pair.value
    (commands.folder / "newer.onnx").write_bytes(model.SerializeToString())
    more = {"run": (image,), "validate": ("newer.onnx",)}.get(command, ())
    commands.refused(command, "newer.onnx", *more, says=("metadata", "999"))


def test_54_and_in_a_checkpoint(commands: Commands) -> None:
    data = (DIGITS / "densenet_digits.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"][PREFIX + "schema"] = "999"
    text = json.dumps(header).encode()
    (commands.folder / "newer.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    commands.refused("inspect", "newer.safetensors", says="999")


@pytest.mark.skipif(not is_installed("torch"), reason="PyTorch is not installed")
def test_memory_that_runs_out_is_exit_6(tmp_path: Path) -> None:
    """Less address space than PyTorch's libraries take: the loader says so, in an ImportError."""
    command = " ".join(arguments("export", "--variant", "cifar-40-12"))
    ended = run_process(["bash", "-c", f"ulimit -v 1500000; exec {command}"], tmp_path)
    assert re.search("memory: ran out", require_contract(ended, 6, "ulimit -v"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not is_installed("torch"), reason="PyTorch is not installed")
@pytest.mark.parametrize("command", ["inspect", "benchmark"])
def test_memory_that_runs_out_on_a_checkpoint_is_exit_6(
    tmp_path: Path, state: dict[str, torch.Tensor], command: str
) -> None:
    """PyTorch is imported beside the child first, and by a candidate's worker: both report what was missing."""
    torch.save(state, tmp_path / "weights.pth")
    words = " ".join(arguments(command, "weights.pth"))
    ended = run_process(["bash", "-c", f"ulimit -v 1500000; exec {words}"], tmp_path)
    require_contract(ended, 6, "memory", "ran out")


def test_49_a_traceback_also_with_both_short_options(tmp_path: Path) -> None:
    loud, quiet = (run_process(arguments("inspect", "no.onnx", option), tmp_path) for option in ("-qv", "-q"))
    assert "Traceback" in loud.err
    assert "Traceback" not in quiet.err
