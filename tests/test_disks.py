"""Files on real file systems: one that is full or read-only, and one that two processes write to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_of_two_writers_one_wins_whole(tmp_path):
    path = tmp_path / "model.onnx"
    code = (
        "import sys; from pathlib import Path; from densenet_deploy.artifacts import write_file\n"
        "for _ in range(20): write_file(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def _has_namespaces() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_namespaces(), reason="this system gives no mount namespaces (unshare -rm)")
class TestRealFileSystems:
    """A small tmpfs of their own: permissions would prove nothing where the tests run as root."""

    def _run(self, folder: Path, prepare: str) -> str:
        """Overwrite `folder`/model.onnx (holding `old`) after `prepare`; return what happened and what is left."""
        code = (
            "import os; from pathlib import Path\n"
            "from densenet_deploy.artifacts import write_file\n"
            "from densenet_deploy.errors import DensenetDeployError\n"
            "try: write_file(Path('model.onnx'), bytes(2**20))\n"
            "except DensenetDeployError as exc: print(exc.exit_code, exc)\n"
            "print(os.listdir(), Path('model.onnx').read_text())"
        )
        script = (
            f'mount -t tmpfs -o size=64k none "$1" && cd "$1" && printf old > model.onnx && {prepare} && "$2" -c "$3"'
        )
        command = ["unshare", "-rm", "sh", "-c", script, "sh", str(folder), sys.executable, code]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
        assert done.stderr == ""
        return done.stdout

    def test_a_disk_that_fills_up_keeps_no_new_folder(self, tmp_path):
        code = (
            "import os; from pathlib import Path\n"
            "from densenet_deploy.artifacts import write_file\n"
            "from densenet_deploy.errors import ResourceError\n"
            "try: write_file(Path('new/deep/model.onnx'), bytes(2**20))\n"
            "except ResourceError: print(os.listdir())"
        )
        script = 'mount -t tmpfs -o size=64k none "$1" && cd "$1" && "$2" -c "$3"'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
        assert (done.stdout, done.stderr) == ("[]\n", "")

    def test_a_full_disk_keeps_the_old_file_and_no_other(self, tmp_path):
        assert self._run(tmp_path, "true").splitlines() == [
            "6 resource: model.onnx: no space left on device; free some space or choose another folder with -o",
            "['model.onnx'] old",
        ]

    def test_a_read_only_disk_is_said_to_be_one(self, tmp_path):
        assert self._run(tmp_path, "mount -o remount,ro .").splitlines() == [
            "6 resource: model.onnx: read-only file system; choose a writable folder with -o",
            "['model.onnx'] old",
        ]
