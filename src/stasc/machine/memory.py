"""Out-of-memory errors, and the memory that a Linux control group (cgroup) still allows.

Containers and job schedulers set such limits. The kernel kills a process that exceeds one, so batches have to be sized
to the limit beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# By cgroup version: the files of limit and usage, and the field of `memory.stat` that counts reclaimable page cache.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def ran_out(error: BaseException | None) -> bool:
    """Whether an error reports that a device or the CPU is out of memory."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def cgroup_free_bytes(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the bytes that this process's cgroup and its parents still allow; None without cgroups or limits.

    Version 1 writes "no limit" as a huge limit.
    """
    return min(_free_by_group(groups, mounted), default=None)


def _free_by_group(groups: Path, mounted: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                base, files = mounted / "memory", _V1
            elif not controllers:
                base, files = mounted, _V2
            else:
                continue
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(base):
                    with suppress(OSError, ValueError):  # a container does not see the parents of its own group
                        yield _free(folder, files)


def _free(folder: Path, files: tuple[str, str, str]) -> int:
    """Returns the free bytes of one group. Raises: OSError or ValueError if it has no limit."""
    limit, usage = (int((folder / name).read_text(encoding="utf-8")) for name in files[:2])
    cached = 0
    with suppress(OSError, ValueError):
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        cached = int(stat.get(files[2], 0))
    return max(0, limit - usage + cached)
