"""Cores and memory, with the limits of containers in both versions of control groups."""

from pathlib import Path

import pytest
import torch

from understudy.training import machine
from understudy.training.machine import Machine, available_cores, memory_of_host, memory_of_process

GIB = 2**30


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A machine with 64 GiB, 40 of them free, and 16 cores."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    kib = GIB // 1024
    write(tmp_path / "proc/meminfo", f"MemTotal: {64 * kib} kB\nMemFree: 1 kB\nMemAvailable: {40 * kib} kB\n")
    return tmp_path


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_without_limits_it_is_the_machine_s(root):
    memory = memory_of_host()
    assert memory is not None
    assert (memory.total, memory.free, available_cores()) == (64 * GIB, 40 * GIB, 16)


def test_the_innermost_and_the_outer_limits_of_version_2_count(root):
    write(root / "proc/self/cgroup", "0::/jobs/one")
    groups = root / "sys/fs/cgroup"
    write(groups / "jobs/one/memory.max", "max")
    write(groups / "jobs/memory.max", 16 * GIB)
    write(groups / "jobs/memory.current", 6 * GIB)
    write(groups / "jobs/memory.stat", f"anon {5 * GIB}\ninactive_file {GIB}\nactive_file 0")
    write(groups / "jobs/one/cpu.max", "250000 100000")
    memory = memory_of_host()
    assert memory is not None
    assert (memory.total, memory.free, available_cores()) == (16 * GIB, 11 * GIB, 2)


def test_version_1_and_a_path_of_the_host(root):
    write(root / "proc/self/cgroup", "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", 8 * GIB)
    write(root / "sys/fs/cgroup/memory/memory.usage_in_bytes", 3 * GIB)
    write(root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", -1)
    write(root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", 100000)
    memory = memory_of_host()
    assert memory is not None
    assert (memory.total, memory.free, available_cores()) == (8 * GIB, 5 * GIB, 16)


def test_a_limit_beyond_the_memory_is_none(root):
    write(root / "proc/self/cgroup", "4:memory:/")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    memory = memory_of_host()
    assert memory is not None
    assert memory.total == 64 * GIB


def test_processes_of_a_machine_share_it(root):
    found = Machine.of(torch.device("cpu"), processes=8, here=4)
    assert found.memory is not None
    assert (found.processes, found.cores, found.memory.total) == (8, 4, 16 * GIB)


def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr("os.sysconf", lambda _: 2**10)
    memory = memory_of_host()
    assert memory is not None
    assert (memory.total, memory.free, memory_of_process()) == (2**20, 2**20, 0)
    monkeypatch.setattr("os.sysconf", raising)
    assert memory_of_host() is None


def raising(_: str) -> int:
    raise ValueError("unknown")


def test_this_process_holds_memory():
    assert memory_of_process() > 2**26
