"""Free memory by cgroup limits, read from folders laid out as on Linux."""

from __future__ import annotations

from pathlib import Path

import pytest

from stasc.machine import memory


def group(folder: Path, limit: str, usage: int, version: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, value in zip(names, (limit, str(usage)), strict=True):
        (folder / name).write_text(f"{value}\n")
    stat = {1: f"cache 5\ninactive_file 1\ntotal_inactive_file {cached}\n", 2: f"file 5\ninactive_file {cached}\n"}
    (folder / "memory.stat").write_text(stat[version])


def free(tmp_path: Path, lines: str) -> int | None:
    (tmp_path / "self").write_text(lines)
    return memory.cgroup_free_bytes(tmp_path / "self", tmp_path / "fs")


def test_the_tightest_of_nested_groups_counts_and_cached_files_can_be_had_again(tmp_path: Path) -> None:
    group(tmp_path / "fs/job", "1000", 700, 2, cached=100)
    group(tmp_path / "fs/job/step", "max", 600, 2)
    group(tmp_path / "fs/job/step/task", "900", 100, 2)
    assert free(tmp_path, "0::/job/step/task\n") == 400
    assert free(tmp_path, "0::/job/step\n") == 400
    group(tmp_path / "fs/job/step/task", "300", 350, 2)
    assert free(tmp_path, "0::/job/step/task\n") == 0


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path / "fs", "1000", 300, 2)
    assert free(tmp_path, "0::/\n") == 700
    group(tmp_path / "fs/memory", "1000", 100, 1, cached=50)
    assert free(tmp_path, "5:cpu,cpuacct:/\n4:memory:/docker/1f\n") == 950


@pytest.mark.parametrize("lines", ["", "0::/\n", "4:memory:/gone\n0::/\n", "5:cpu:/job\n", "\nno group\n"])
def test_where_there_is_no_limit_there_is_none(tmp_path: Path, lines: str) -> None:
    assert free(tmp_path, lines) is None
    group(tmp_path / "fs", "max", 300, 2)
    assert free(tmp_path, lines) is None
    assert memory.cgroup_free_bytes(tmp_path / "nothing") is None


def test_a_limit_counts_though_nothing_is_said_of_cached_files(tmp_path: Path) -> None:
    group(tmp_path / "fs", "1000", 300, 2)
    (tmp_path / "fs/memory.stat").unlink()
    assert free(tmp_path, "0::/\n") == 700
