"""Which questions? Each dataset takes a split's name and gives its questions, the same ones every time."""

from stasc.tasks.datasets.countries import Countries
from stasc.tasks.datasets.jsonl import Jsonl
from stasc.tasks.datasets.nq import Nq
from stasc.tasks.datasets.split import Judged, check_disjoint, describe_repeated, describe_skipped

__all__ = ["Countries", "Jsonl", "Judged", "Nq", "check_disjoint", "describe_repeated", "describe_skipped"]
