"""The CPUs that count are those this process may use: affinity and cgroup quotas, version 1 and 2."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_deploy.runtime.cpus import cpu_flags, cpu_name, cpu_quota, has_vnni, usable_cpus, whole_cpus

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def quota(root: Path, own: str, files: dict[str, str]) -> float | None:
    """The quota in a cgroup file system with these files, of which this process is in the groups `own`."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "self").write_text(own)
    return cpu_quota(root, root / "self")


V1 = {"cpu.cfs_quota_us": "90000", "cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "1 100000\n"}, 1e-5),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "max 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),  # a group above
        ("0::/a\n", {"a/cpu.max": "250000 100000\n", "cpu.max": "150000 100000\n"}, 1.5),  # the smallest
        ("0::/a\n", {"a/cpu.max": "150000 100000\n", "cpu.max": "250000 100000\n"}, 1.5),
        ("0::/the/hosts/path\n", {"cpu.max": "50000 100000\n"}, 0.5),  # a container that sees its own mount
        ("0::/a\n", {"unified/a/cpu.max": "100000 100000\n"}, 1),  # hybrid layout
        ("4:cpu,cpuacct:/a\n", {f"cpu,cpuacct/a/{name}": text for name, text in V1.items()}, 0.9),
        ("4:cpuacct,cpu:/a\n", {f"cpu/{name}": text for name, text in V1.items()}, 0.9),
        ("9:name=systemd:/\n3:cpuset:/a\n4:cpu:/a\n", {f"cpu/a/{name}": text for name, text in V1.items()}, 0.9),
    ],
)
def test_the_smallest_quota_of_all_groups_counts(tmp_path, own, files, cpus):
    assert quota(tmp_path, own, files) == cpus
    assert usable_cpus(tmp_path, tmp_path / "self") == min(BOUND, math.ceil(cpus))


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("", {}),
        ("0::/\n", {"cpu.max": "max 100000\n"}),
        ("0::/\n", {"cpu.max": "rubbish\n"}),
        ("0::/\n", {"cpu.max": "100000\n"}),
        ("0::/\n", {"cpu.max": "100000 100000 100000\n"}),
        ("0::/\n", {"cpu.max": "100000 0\n"}),
        ("0::/\n", {"cpu.max": "0 100000\n"}),
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}),  # another group's
        ("3:cpuset:/a\n", {"cpuset/a/cpu.cfs_quota_us": "100000", "cpuset/a/cpu.cfs_period_us": "100000"}),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}),
    ],
)
def test_where_no_quota_is_set_there_is_none(tmp_path, own, files):
    assert quota(tmp_path, own, files) is None
    assert usable_cpus(tmp_path, tmp_path / "self") == BOUND


@pytest.mark.parametrize(
    ("bound", "quota", "cpus"),
    [(8, None, 8), (1, None, 1), (8, 8.0, 8), (8, 7.1, 8), (8, 1.0, 1), (8, 1.1, 2), (8, 0.01, 1), (2, 99.0, 2)],
)
def test_a_part_of_a_cpu_is_rounded_up_and_the_bound_kept(bound, quota, cpus):
    assert whole_cpus(bound, quota) == cpus


def test_a_system_without_affinity_has_all_its_cpus(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, cpus in ((5, 5), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert usable_cpus(tmp_path, tmp_path / "none") == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_affinity_is_read_from_the_process(tmp_path):
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from densenet_deploy.runtime.cpus import usable_cpus; print(usable_cpus())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "1\n"


X86 = """processor\t: 0
model name\t: Some(R) CPU @ 2.00GHz
flags\t\t: fpu avx2 avx512_vnni
processor\t: 1
flags\t\t: other
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t\t: Some Board\n"


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (X86, "Some(R) CPU @ 2.00GHz", {"fpu", "avx2", "avx512_vnni"}),
        (ARM, "Some Board", {"fp", "asimd", "asimddp"}),
        ("", "", set()),
    ],
)
def test_name_and_flags_are_those_of_the_first_cpu(tmp_path, text, name, flags):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert cpu_name(cpuinfo) == name
    assert cpu_flags(cpuinfo) == frozenset(flags)


def test_text_in_another_encoding_is_no_obstacle(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_bytes(b"vendor : \xff\nmodel name : One\n")
    assert cpu_name(cpuinfo) == "One"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux has such files")
def test_the_files_are_those_of_this_system():
    assert cpu_name() == cpu_name(Path("/proc/cpuinfo"))
    assert cpu_flags() == cpu_flags(Path("/proc/cpuinfo"))
    assert cpu_quota() == cpu_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path):
    assert cpu_name(tmp_path / "none") == ""
    assert cpu_flags(tmp_path) == frozenset()


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_x86_has_vnni_or_not_and_of_other_cpus_nothing_is_said(flag):
    assert has_vnni(frozenset({"sse2", flag})) is True
    assert has_vnni(frozenset({"sse2", "avx512f"})) is False
    assert has_vnni(frozenset({"asimddp"})) is None
    assert has_vnni() is has_vnni(cpu_flags())
