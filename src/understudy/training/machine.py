"""What a machine offers to a run: cores and memory, within the limits of a container or a job."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path("/")
"""Below it lie ``proc`` and ``sys``; tests have their own."""


RUNS_AT_ONCE: int = 1
"""Runs that share this machine's memory, one in each process of a study; a process of a study sets it."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory that a process computes in.

    Attributes:
        total: bytes that the machine, the limit of its container or job, or the GPU has.
        free: bytes of it that nothing uses yet.
        kind: what it is called.
    """

    total: int
    free: int
    kind: str = "memory"


@dataclass(frozen=True, slots=True)
class Machine:
    """What one process of a run computes with.

    Attributes:
        device: of the process.
        processes: number of processes of the run.
        cores: that this process may use.
        memory: None: the system does not tell.
    """

    device: torch.device
    processes: int
    cores: int
    memory: Memory | None

    @classmethod
    def of(cls, device: torch.device, processes: int = 1, here: int = 1) -> "Machine":
        """Look at this machine.

        Args:
            device: of this process.
            processes: of the run.
            here: those of them on this machine, which share its cores and its memory.
        """
        memory = _gpu_memory(device) if device.type == "cuda" else memory_of_host()
        if memory and device.type != "cuda":
            memory = Memory(memory.total // here, memory.free // here)
        return cls(device, processes, max(1, available_cores() // here), memory)


def _gpu_memory(device: torch.device) -> Memory:
    free, total = torch.cuda.mem_get_info(device)
    return Memory(total, free, "GPU memory")


def available_cores() -> int:
    """Return how many cores this process may use: those that it is bound to, within the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        files = [group / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        limit = _text(group / "cpu.max").split() or [_text(file).strip() for file in files]
        if all(word.isdecimal() for word in limit):  # without a limit, the quota is "max" or -1
            quota, period = map(int, limit)
            cores = min(cores, max(1, round(quota / period)))
    return cores


def memory_of_host() -> Memory | None:
    """Return the machine's memory, within the limits of all control groups of this process; None: it is not known."""
    found = _meminfo()
    if "MemTotal" not in found:
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # Windows
            return None
        return Memory(total, total)  # macOS does not tell what is free
    total, free = found["MemTotal"], found.get("MemAvailable", found["MemTotal"])
    for group in _groups("memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit and limit < found["MemTotal"]:  # without a limit, a number beyond any memory
            used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
            total, free = min(total, limit), min(free, limit - used + _cached(group))
    return Memory(total, max(free, 0))


def memory_of_process() -> int:
    """Return the bytes of memory that this process holds; 0 where the system does not tell."""
    pages = _text(ROOT / "proc/self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _meminfo() -> dict[str, int]:
    """Return the lines of ``/proc/meminfo`` in bytes; none on another system."""
    rows = [line.split() for line in _text(ROOT / "proc/meminfo").splitlines()]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1}


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process' control groups, the innermost first, of version 2 and of version 1."""
    for line in _text(ROOT / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = ROOT / "sys/fs/cgroup" / (controllers if controllers else "")
        if controllers and not root.is_dir():
            root = ROOT / "sys/fs/cgroup" / controller
        inner = root / path.strip("/")
        # In a container, the path is often that of the host, and the container's own group is mounted as the root.
        yield from (group for group in (inner, *inner.parents) if group.is_relative_to(root) and group.is_dir())


def _cached(group: Path) -> int:
    """Return the bytes of a group's usage that hold files, and are given up when memory is needed."""
    rows = [line.split() for line in _text(group / "memory.stat").splitlines()]
    found = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    return found.get("inactive_file", 0) + found.get("active_file", 0)


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
