"""Cases 42 to 44: where results go. The file systems are real ones: permissions would prove nothing for root.

Most commands are given calibration data that cannot be used, and still speak of the disk: it was looked at first. A
disk that fills up in the middle of a write is in `tests/test_disks.py`, where the one writer is tested.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from densenet_deploy.packages import is_installed
from densenet_deploy.variants import find_variant
from tests.conftest import DIGITS
from tests.faults.harness import Commands, Ended, require_contract, run_process
from tests.test_disks import _has_namespaces

FILES: dict[str, tuple[str, ...]] = {
    "export": ("export", "--weights", "digits.safetensors", "-o", "{}/new/a.onnx"),
    "simplify": ("simplify", "tiny.onnx", "-o", "{}/new/a.onnx"),
    "quantize": ("quantize", "tiny.onnx", "--calibration", ".", "-o", "{}/new/a.onnx"),
    "cast": ("cast", "tiny.onnx", "--fp16", "--calibration", ".", "-o", "{}/new/a.onnx"),
    "sensitivity": ("sensitivity", "tiny.onnx", "--calibration", ".", "-o", "{}/new/a.json"),
    "benchmark": ("benchmark", "tiny.onnx", "--seconds", "0", "--rounds", "3", "-o", "{}/new/a.json"),
    "plot": ("plot", "growth", "--variant", "121", "-o", "{}/new/a.png"),
}
FOLDERS = {"web": ("web", "tiny.onnx", "-o", "{}/new/site")}
if is_installed("tensorrt_rtx"):
    FILES["build-trt"] = ("build-trt", "tiny.onnx", "--fp32", "--flavour", "rtx", "-o", "{}/new/a.engine")

PREPARE = {"full": "dd if=/dev/zero of=filler bs=64k 2>/dev/null; true", "read-only": "mount -o remount,ro ."}
SAYS = {"full": "no space left on device", "read-only": "read-only file system"}


@pytest.fixture(scope="module", params=["full", pytest.param("read-only", marks=pytest.mark.slow)])
def disk(
    request: pytest.FixtureRequest, tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, dict[str, object]]]:
    """What became of every command on a disk that is full or read-only: 4 MiB of memory, mounted for one process."""
    if not _has_namespaces():
        pytest.skip("this system gives no mount namespaces (unshare -rm)")
    folder = tmp_path_factory.mktemp("disk")
    place = folder / "mounted"
    place.mkdir()
    script = 'mount -t tmpfs -o size=4m none "$1" && cd "$1" && cp "$2" tiny.onnx && cp "$3" digits.safetensors && '
    script += f'{{ {PREPARE[request.param]}; }} && "$4" -m tests.faults.many "$1" "$5"'
    words = json.dumps([[word.format(place) for word in command] for command in (FILES | FOLDERS).values()])
    weights = DIGITS / "densenet_digits.safetensors"
    arguments = ["sh", str(place), str(tiny_onnx), str(weights), sys.executable, words]
    ended = run_process(["unshare", "-rm", "sh", "-c", script, *arguments], folder, XDG_CACHE_HOME=str(folder / "c"))
    assert ended.err == "", "native code prints nothing either"
    return request.param, dict(zip(FILES | FOLDERS, map(json.loads, ended.out.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("command", FILES | FOLDERS)
def test_42_43_a_disk_that_takes_nothing_is_found_before_the_work(
    disk: tuple[str, dict[str, dict[str, object]]], command: str
) -> None:
    kind, found = disk
    facts = found[command]
    assert facts.pop("unchanged"), "not even an empty folder is left"
    require_contract(Ended(**facts), 6, SAYS[kind])  # type: ignore[arg-type]


@pytest.fixture
def inputs(commands: Commands, tiny_onnx: Path) -> Commands:
    (commands.folder / "tiny.onnx").write_bytes(tiny_onnx.read_bytes())
    (commands.folder / "digits.safetensors").write_bytes((DIGITS / "densenet_digits.safetensors").read_bytes())
    (commands.folder / "new").mkdir()
    return commands


@pytest.mark.parametrize("command", FILES)
def test_44_what_stands_in_the_way_survives(inputs: Commands, command: str) -> None:
    words = [word.format(inputs.folder) for word in FILES[command]]
    out = Path(words[-1])
    out.write_bytes(b"mine")
    inputs.refused(*words, says=(out.name, "--force"))


NAMES = {
    "export": f"{find_variant('cifar-40-12').artifact_name}.onnx",
    "simplify": "tiny.simplified.onnx",
    "quantize": "tiny.int8.onnxruntime.onnx",
    "cast": "tiny.fp16.onnx",
    "sensitivity": "tiny.sensitivity.json",
    "benchmark": "benchmark.json",
    "plot": "densenet121.growth.png",
    "build-trt": "tiny.fp32.engine",
}


@pytest.mark.parametrize("command", FILES)
def test_44_a_folder_in_the_way_survives_force(inputs: Commands, command: str) -> None:
    """`-o` that is a folder means a place inside it, and there a folder has the file's own name."""
    words = FILES[command][:-1]
    if command == "export":
        words = ("export", "--variant", "cifar-40-12", "-o")
    if command == "quantize":
        words = (*words[:-1], "--recipe", "onnxruntime", "-o")
    (inputs.folder / "new" / NAMES[command]).mkdir()
    inputs.refused(*words, inputs.folder / "new", "--force", says=(NAMES[command], "is a folder"))
