"""The lock of a folder: one driver at a time, whatever became of the last one; without locks it is said."""

import errno
import os
import platform
import signal
import subprocess
import sys

import pytest

from densenet_deploy.errors import InputError, OutputExistsError
from densenet_deploy.serving.batch.folder_lock import LOCK, locked

fcntl = pytest.importorskip("fcntl")

HOLDER = """
import pathlib, sys
from densenet_deploy.serving.batch.folder_lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "rows"`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "rows")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_holds_is_refused_with_its_number(tmp_path, holder) -> None:
    with pytest.raises(OutputExistsError) as caught, locked(tmp_path / "rows"):
        pass
    assert (caught.value.exit_code, caught.value.subject) == (3, str(tmp_path / "rows"))
    assert caught.value.why == f"is being written by process {holder.pid} on {platform.node()}"
    assert (tmp_path / "rows" / LOCK).exists()
    holder.communicate()
    assert list((tmp_path / "rows").iterdir()) == []
    with locked(tmp_path / "rows") as notes:
        assert notes == ()


def test_the_lock_of_a_process_that_was_killed_bars_nobody(tmp_path, holder) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "rows" / LOCK).exists()
    with locked(tmp_path / "rows") as notes:
        assert notes == ()
        assert (tmp_path / "rows" / LOCK).read_text() == f"process {os.getpid()} on {platform.node()}\n"
        with pytest.raises(OutputExistsError, match=f"process {os.getpid()} on"), locked(tmp_path / "rows"):
            pass
    assert list((tmp_path / "rows").iterdir()) == []


def test_a_folder_stays_with_what_was_put_into_it_and_goes_where_the_work_failed_before(tmp_path) -> None:
    with locked(tmp_path / "a" / "rows"):
        (tmp_path / "a" / "rows" / "part").touch()
    assert list((tmp_path / "a" / "rows").iterdir()) == [tmp_path / "a" / "rows" / "part"]
    with pytest.raises(KeyError), locked(tmp_path / "b" / "rows"):
        raise KeyError
    assert not (tmp_path / "b").exists()


def test_a_lock_that_its_holder_removed_meanwhile_is_taken_again(tmp_path, monkeypatch) -> None:
    flock, calls = fcntl.flock, []

    def removed_first(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(OutputExistsError), locked(tmp_path):
            pass


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch) -> None:
    def refused(_descriptor, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with locked(tmp_path) as (note,):
        assert note == f"{tmp_path} cannot be locked (no locks available): a second job there would not be noticed"
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path) as (note,):
        assert "no flock" in note


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(InputError), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "text"
