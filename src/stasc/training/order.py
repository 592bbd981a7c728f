"""The order of examples: which of them each optimizer step trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count, islice

import torch

from stasc.models.lengths import grouped
from stasc.prefix_tree.batch import Example
from stasc.training.methods import Method


def batches(examples: Sequence[Example], method: Method, seed: int) -> Iterator[list[Example]]:
    """Yields the examples of each optimizer step.

    The last batch of an epoch may be smaller. With `steps_match`, batches run on across epochs, and all are full.
    """
    epochs = _epochs(examples, method, seed)
    if method.steps_match is not None:
        epochs = iter([chain.from_iterable(epochs)])
    return islice(_batches(epochs, examples, method.batch_size), method.steps(len(examples)))


def _batches(epochs: Iterator[Iterator[int]], examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    for epoch in epochs:
        # torch's DataLoader draws a number at the start of each epoch. Models trained with one, by `Trainer` of
        # transformers, have their dropout from the generator's state after it.
        torch.empty((), dtype=torch.int64).random_()
        while batch := [examples[index] for index in islice(epoch, size)]:
            yield batch


def _epochs(examples: Sequence[Example], method: Method, seed: int) -> Iterator[Iterator[int]]:
    """Yields permutations of the examples without end; those of one prompt stay together with `shuffle=prompts`."""
    generator = torch.Generator().manual_seed(seed)
    prompts = method.shuffle == "prompts"
    groups = grouped([example.prompt for example in examples] if prompts else range(len(examples)))
    for epoch in count():
        if not prompts and method.steps_match is None:
            generator.manual_seed(seed + epoch)  # as `Trainer` of transformers does
        permutation = torch.randperm(len(groups), generator=generator).tolist()
        yield chain.from_iterable(groups[group] for group in permutation)
