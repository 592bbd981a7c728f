"""Which questions? Each dataset takes a split's name and gives its questions, the same ones every time."""

from stasc.dataset.countries import Countries
from stasc.dataset.jsonl import Jsonl
from stasc.dataset.nq import Nq
from stasc.dataset.split import Judged, check_disjoint, describe_repeated, describe_skipped

__all__ = ["Countries", "Jsonl", "Judged", "Nq", "check_disjoint", "describe_repeated", "describe_skipped"]
