"""What is free: the machine's available memory, or less in a container."""

from pathlib import Path

import pytest
import torch
from cdvft_server.service.memory import free_on_device, free_on_host


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path, Path]:
    """1,000 KiB available; this process in the group app of slice, without limits."""
    (tmp_path / "meminfo").write_text("MemTotal:  4000 kB\nMemAvailable:    1000 kB\n")
    (tmp_path / "cgroup").write_text("1:name=systemd:/\n0::/slice/app\n")
    (tmp_path / "groups/slice/app").mkdir(parents=True)
    return tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "groups"


def limit(group: Path, most: str, used: int, inactive: int = 0) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_without_limits_it_is_what_is_available(machine: tuple[Path, Path, Path]) -> None:
    assert free_on_host(*machine) == 1000 * 1024
    limit(machine[2] / "slice", "max", 10)
    assert free_on_host(*machine) == 1000 * 1024


def test_the_tightest_group_around_the_process_counts(machine: tuple[Path, Path, Path]) -> None:
    limit(machine[2] / "slice", "60000", 10_000, inactive=4000)
    assert free_on_host(*machine) == 54_000
    limit(machine[2] / "slice/app", "50000", 20_000)
    assert free_on_host(*machine) == 30_000
    limit(machine[2], "20000", 30_000)
    assert free_on_host(*machine) == 0


@pytest.mark.parametrize("which", [0, 1])
def test_a_machine_that_does_not_tell(machine: tuple[Path, Path, Path], which: int) -> None:
    machine[which].write_text("")
    assert free_on_host(*machine) == 0


def test_this_machine() -> None:
    assert free_on_device(torch.device("cpu")) > 0
