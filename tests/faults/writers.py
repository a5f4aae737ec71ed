"""Every writer of files that outlives a command, each as three functions: write number N, look, and be content.

`python -m tests.faults.writers NAME FOLDER KILLS` forks a child that writes over and over, kills it at a random moment
(SIGKILL) and looks at what it left, KILLS times; it prints how often each number of whole writes was seen.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from densenet_deploy.artifacts import write_file
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.cache import CalibrationCache, CalibrationKey
from densenet_deploy.quantization.calibrate import Checkpoint, collect_ranges
from densenet_deploy.quantization.observers.minmax import MinMaxOptions
from densenet_deploy.quantization.observers.observer import CalibrationConfig, ChannelRanges
from densenet_deploy.runtime.engine_files import read_plan
from densenet_deploy.serving.web.site import Site
from tests.function_runner import FunctionRunner
from tests.quantization.observed import samples, two_layers
from tests.runtime.plans import plan_bytes, sidecar_of, write_engine

PLAN = CalibrationConfig("minmax", MinMaxOptions(headroom=0.0))
VERSIONS = 4


class Writer(ABC):
    """Writes one of a few versions of its files into `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def write(self, version: int) -> None:
        """Write version `version`, whole."""

    @abstractmethod
    def check(self) -> None:
        """Raise an AssertionError unless what is there, if anything is, is one whole version."""


class ArtifactWriter(Writer):
    """An ONNX file or a report: one file."""

    def content(self, version: int) -> bytes:
        return bytes([version]) * (100_000 + version)

    def write(self, version: int) -> None:
        write_file(self.folder / "model.onnx", self.content(version))

    def check(self) -> None:
        path = self.folder / "model.onnx"
        assert not path.exists() or path.read_bytes() in map(self.content, range(VERSIONS))


class EngineWriter(Writer):
    """A plan and its sidecar."""

    def content(self, version: int) -> bytes:
        return plan_bytes(body=bytes([version]) * (50_000 + version))

    def write(self, version: int) -> None:
        write_engine(self.folder / "model.engine", self.content(version), sidecar_of(self.content(version)))

    def check(self) -> None:
        path = self.folder / "model.engine"
        assert not path.exists() or read_plan(path).data in map(self.content, range(VERSIONS))


class CacheWriter(Writer):
    """Ranges of a key, each key with its own."""

    def key(self, version: int) -> CalibrationKey:
        return CalibrationKey("ab" * 32, {"a.png": f"{version:064}"}, Preprocessing(), PLAN)

    def ranges(self, version: int) -> ChannelRanges:
        low = np.full(5000, -version, np.float32)
        return ChannelRanges(low, low + 10)

    def write(self, version: int) -> None:
        CalibrationCache(self.folder).store(self.key(version), {"tensor": self.ranges(version)})

    def check(self) -> None:
        for version in range(VERSIONS):
            found = CalibrationCache(self.folder).lookup(self.key(version))
            if not isinstance(found, str):
                np.testing.assert_array_equal(found["tensor"].low, self.ranges(version).low)


class CheckpointWriter(Writer):
    """The run of a calibration, resumed from wherever it was left."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._samples = samples(40)
        self._expected = collect_ranges(FunctionRunner(two_layers), self._samples, PLAN)

    def write(self, version: int) -> None:
        checkpoint = Checkpoint(self.folder / "run.partial.npz", "identity", every=1)
        found = collect_ranges(FunctionRunner(two_layers), self._samples, PLAN, checkpoint)
        for name, ranges in self._expected.items():
            np.testing.assert_array_equal(found[name].low, ranges.low)
            np.testing.assert_array_equal(found[name].high, ranges.high)

    def check(self) -> None:
        path = self.folder / "run.partial.npz"
        if path.exists():
            data = path.read_bytes()
            assert hashlib.sha256(data[32:]).digest() == data[:32]
        self.write(0)


class PageWriter(Writer):
    """A web page: a folder for each version, and the file that names the one that is shown."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._sites = [Site.of("page", {"model.onnx": bytes([version]) * 50_000}) for version in range(VERSIONS)]

    def write(self, version: int) -> None:
        self._sites[version].write(self.folder)

    def check(self) -> None:
        page = self.folder / "index.html"
        if not page.exists():
            return
        (shown,) = (site for site in self._sites if site.files["index.html"] == page.read_bytes())
        for name, data in shown.files.items():
            assert (self.folder / name).read_bytes() == data, name


WRITERS: dict[str, type[Writer]] = {
    "artifact": ArtifactWriter,
    "engine": EngineWriter,
    "cache": CacheWriter,
    "checkpoint": CheckpointWriter,
    "page": PageWriter,
}


def _write_for_ever(writer: Writer) -> None:
    number = 0
    while True:
        writer.write(number % VERSIONS)
        number += 1


def kill_often(writer: Writer, kills: int, seed: int = 0) -> None:
    """Kill a child that writes, at `kills` random moments, and look each time."""
    rng = random.Random(seed)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            _write_for_ever(writer)
        time.sleep(rng.uniform(0.001, 0.04))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it ended before it was killed"
        writer.check()


if __name__ == "__main__":
    kill_often(WRITERS[sys.argv[1]](Path(sys.argv[2])), int(sys.argv[3]))
    print("whole")
