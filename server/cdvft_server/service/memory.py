"""How much memory is free, where defaults are shares of it."""

from pathlib import Path

import torch

__all__ = ["free_on_device", "free_on_host"]

FILES = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_on_device(device: torch.device) -> int:
    """In bytes; a CPU's is the machine's."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_on_host()


def free_on_host(meminfo: Path = FILES[0], cgroup: Path = FILES[1], groups: Path = FILES[2]) -> int:
    """In bytes: what programs may still take without swapping, and no more than this container has left. 0 where the
    machine does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
        own = cgroup.read_text().splitlines()[-1].rpartition(":")[2].lstrip("/")
    except (OSError, KeyError, ValueError, IndexError):
        return 0
    return min([free, *(left for group in _upwards(groups, own) if (left := _left(group)) is not None)])


def _upwards(groups: Path, own: str) -> list[Path]:
    """The process's control group and those around it."""
    group = groups / own
    return [group, *(outer for outer in group.parents if outer == groups or groups in outer.parents)]


def _left(group: Path) -> int | None:
    """Bytes below the group's limit; None without one. Cached files count as free."""
    try:
        most, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(most - used + int(counts.get("inactive_file", 0)), 0)
    except (OSError, ValueError):
        return None
