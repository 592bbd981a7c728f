"""Private names of Hydra, in one place, as a new version may change them.

`locate` is behind the public `get_object`, which also logs its errors: with it, each of them would appear twice.
`BasicSweeper.split_arguments` gives the jobs of a sweep before any starts; Hydra has no public way to list them.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import _locate as locate

__all__ = ["BasicSweeper", "locate"]
