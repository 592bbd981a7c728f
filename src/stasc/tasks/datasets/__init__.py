"""Datasets: the questions of a split, the same ones every time."""

from stasc.tasks.datasets.countries import Countries
from stasc.tasks.datasets.interface import describe_skipped, load
from stasc.tasks.datasets.jsonl import Jsonl
from stasc.tasks.datasets.nq import Nq
from stasc.tasks.datasets.split import check_disjoint, no_problem

__all__ = ["Countries", "Jsonl", "Nq", "check_disjoint", "describe_skipped", "load", "no_problem"]
