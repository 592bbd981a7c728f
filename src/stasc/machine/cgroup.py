"""How much more memory a control group of Linux lets its processes have. Containers and job schedulers set such limits.

What a process beyond the limit gets is no error but its end, so this has to be known before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class _Files(NamedTuple):
    """Names of the files of a group, by version of control groups, and of what in `memory.stat` can be had again."""

    limit: str
    usage: str
    cached: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def free_bytes(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What this process's group and those around it leave; None if there is no limit, or no control groups.

    The first version of these says that there is no limit by a huge one.
    """
    return min(_left(groups, mounted), default=None)


def _left(groups: Path, mounted: Path) -> Iterator[int]:
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
                    with suppress(OSError, ValueError):  # within a container, groups around its own are not seen
                        yield _left_by(folder, files)


def _left_by(folder: Path, files: _Files) -> int:
    """Raises: OSError or ValueError if the group has no limit."""
    limit, usage = (int((folder / name).read_text(encoding="utf-8")) for name in (files.limit, files.usage))
    cached = 0
    with suppress(OSError, ValueError):
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        cached = int(stat.get(files.cached, 0))
    return max(0, limit - usage + cached)
