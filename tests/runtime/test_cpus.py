"""The CPUs that count are those this process may use: affinity and cgroup quotas, version 1 and 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_deploy.runtime.cpus import cpu_flags, cpu_name, cpu_quota, usable_cpus

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cgroup(root: Path, own: str, files: dict[str, str]) -> int:
    """Lay out a cgroup file system and this process's place in it, and count the CPUs."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "self").write_text(own)
    return usable_cpus(root, root / "self")


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "max 100000\n"}),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}),  # a group above limits too
        ("0::/the/hosts/path\n", {"cpu.max": "50000 100000\n"}),  # a container that sees its own mount
        ("0::/a\n", {"unified/a/cpu.max": "100000 100000\n"}),  # hybrid layout
        (
            "4:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "90000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        ),
        ("4:cpuacct,cpu:/a\n", {"cpu/cpu.cfs_quota_us": "10000", "cpu/cpu.cfs_period_us": "100000"}),
    ],
)
def test_a_quota_of_one_cpu_or_less_leaves_one(tmp_path, own, files):
    assert cgroup(tmp_path, own, files) == 1


def test_a_quota_is_not_rounded_and_the_smallest_of_all_groups_counts(tmp_path):
    cgroup(tmp_path, "0::/a\n", {"a/cpu.max": "250000 100000\n", "cpu.max": "150000 100000\n"})
    assert cpu_quota(tmp_path, tmp_path / "self") == 1.5
    assert cpu_quota(tmp_path / "nowhere", tmp_path / "self") is None


@pytest.mark.skipif(BOUND == 1, reason="bound to one CPU, which no quota can lower")
@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("", {}),
        ("0::/\n", {"cpu.max": "max 100000\n"}),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}),
        ("0::/\n", {"cpu.max": "rubbish\n"}),
        ("0::/\n", {"cpu.max": "100000 0\n"}),
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}),  # another group's
        ("3:cpuset:/a\n", {"cpuset/a/cpu.cfs_quota_us": "100000", "cpuset/a/cpu.cfs_period_us": "100000"}),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}),
    ],
)
def test_without_a_quota_affinity_counts(tmp_path, own, files):
    assert cgroup(tmp_path, own, files) == BOUND


@pytest.mark.skipif(BOUND == 1, reason="bound to one CPU, which no quota can lower")
def test_a_part_of_a_cpu_is_rounded_up(tmp_path):
    assert cgroup(tmp_path, "0::/\n", {"cpu.max": "110000 100000\n"}) == 2


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


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path):
    assert cpu_name(tmp_path / "none") == ""
    assert cpu_flags(tmp_path) == frozenset()
