"""Facts of a machine: what is known, what is not, and what the driver's tool reports."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from densenet_deploy.bench.machine import Machine, busy_cpus, gpu_memory_used_bytes, gpus
from densenet_deploy.runtime.cpus import has_vnni
from densenet_deploy.runtime.nvidia import Gpu

SMI = """#!/bin/sh
case "$1" in
  *memory.used*) printf '512\\n1024\\n' ;;
  *) echo 'NVIDIA X1, 575.51, 9.0, 81559, 345, 1980, 31, Enabled'
     echo 'Orin, 540.4, 8.7, [N/A], 918, [N/A], [N/A], Disabled' ;;
esac
"""


@pytest.fixture
def only_on_path(tmp_path, monkeypatch):
    """Put a program into a path that holds nothing else."""

    def install(text: str | None) -> None:
        if text is not None:
            program = tmp_path / "nvidia-smi"
            program.write_text(text)
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin" if text else str(tmp_path))

    return install


def test_this_machine_is_described_in_plain_facts():
    machine = Machine.this("numpy", "no-such-package")
    facts = json.loads(json.dumps(dataclasses.asdict(machine), allow_nan=False))
    assert facts["cpu"]
    assert facts["usable_cpus"] >= 1
    assert set(facts["versions"]) == {"numpy"}
    assert machine.cpu in str(machine)
    assert facts["vnni"] is has_vnni()


def test_a_busy_machine_is_noted_and_a_quiet_one_is_not():
    machine = Machine("cpu", 2, "system", "3", {}, "2026-01-01", busy_cpus=0.5)
    assert machine.notes == ("other programs use 0.50 CPUs; the figures are preliminary",)
    assert dataclasses.replace(machine, busy_cpus=0.05).notes == ()
    assert dataclasses.replace(machine, busy_cpus=None).notes == ()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux counts ticks")
def test_the_work_of_others_is_counted():
    assert busy_cpus(0.1) >= 0


def test_a_quota_is_named_where_there_is_one():
    machine = Machine("cpu", 2, "system", "3", {}, "2026-01-01", None, cpu_quota=1.5, cpu_mhz=2600.0)
    assert str(machine) == "cpu, 2 usable CPUs, quota 1.5, 2600 MHz"
    assert str(dataclasses.replace(machine, vnni=True)) == "cpu, 2 usable CPUs, quota 1.5, with VNNI, 2600 MHz"
    assert dataclasses.replace(machine, vnni=False).processor == "cpu, 2 usable CPUs, quota 1.5, without VNNI"


def test_other_hardware_is_told_apart_and_another_clock_is_not():
    machine = Machine("cpu", 2, "system", "3", {}, "2026-01-01", None, cpu_mhz=2600.0)
    gpu = Gpu(0, "X1", "9.0", "575")
    other = dataclasses.replace(machine, cpu="new", usable_cpus=4, cpu_quota=1.5, gpus=(gpu,))
    words = ["cpu cpu, now new", "usable cpus 2, now 4", "cpu quota None, now 1.5", "no GPU, now X1, driver 575"]
    assert machine.other_hardware(other) == words
    assert machine.other_hardware(dataclasses.replace(machine, cpu_mhz=800.0, system="s", vnni=True)) == []
    with_vnni, without = (dataclasses.replace(machine, vnni=vnni) for vnni in (True, False))
    assert with_vnni.other_hardware(without) == ["with VNNI, now without VNNI"]


def test_gpus_are_those_the_driver_lists_and_what_it_does_not_tell_is_none(only_on_path):
    only_on_path(SMI)
    big, small = gpus()
    assert big == Gpu(0, "NVIDIA X1", "9.0", "575.51", 81559 * 2**20, 345.0, 1980.0, 31.0, persistent=True)
    assert (small.memory_bytes, small.clock_mhz, small.highest_clock_mhz) == (None, 918.0, None)
    assert not small.persistent
    assert gpu_memory_used_bytes() == 1536 * 2**20


@pytest.mark.parametrize("program", [None, "#!/bin/sh\nexit 9\n", "#!/bin/sh\necho No devices were found\n"])
def test_without_a_driver_that_answers_there_is_no_gpu(only_on_path, program):
    only_on_path(program)
    assert gpus() == ()
    assert gpu_memory_used_bytes() is None
