"""The loss of a batch is that of the corrections and of nothing else, however it is padded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from finetuning import END, EXAMPLES, assert_same, nll, read
from torch import Tensor, nn

from stasc.finetune import IGNORE, Example, collate, loss_sum

# A batch.


def batch_of(*conversations: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, Tensor]:
    """The batch of these prompts and completions."""
    return collate([Example("", prompt, completion) for prompt, completion in conversations])


def test_a_batch_is_padded_on_the_left_and_labels_are_the_completions():
    batch = batch_of(((5, 6), (7, END)), ((8,), (9, 10, END)))
    assert batch["input_ids"].tolist() == [[5, 6, 7, END], [8, 9, 10, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 7, END], [IGNORE, 9, 10, END]]


def test_padding_is_masked_and_positions_count_from_the_first_token():
    batch = batch_of(((5, 6, 7), (8, END)), ((9,), (END,)))
    assert batch["input_ids"].tolist()[1][-2:] == [9, END]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORE, 8, END], [IGNORE, IGNORE, END]]


def test_the_labels_of_any_batch_are_the_completions_and_never_stand_in_the_first_column():
    batch = collate(EXAMPLES)
    assert batch["labels"].shape == (len(EXAMPLES), 1 + 8)
    assert (batch["labels"][:, 0] == IGNORE).all()
    assert [tuple(row[row != IGNORE].tolist()) for row in batch["labels"]] == [e.completion for e in EXAMPLES]
    trained = batch["labels"] != IGNORE
    assert (batch["input_ids"][:, -9:][trained] == batch["labels"][trained]).all()


@pytest.mark.parametrize(("prompt", "completion"), [((5,), ()), ((), (5,)), ((), ())])
def test_an_example_without_prompt_or_completion_is_named(prompt: tuple[int, ...], completion: tuple[int, ...]):
    with pytest.raises(ValueError, match="question 7, answer 0: no token to train on"):
        collate([EXAMPLES[0], Example("question 7, answer 0", prompt, completion), EXAMPLES[1]])


# The loss.


def test_the_loss_of_a_ragged_batch_is_the_sum_over_examples_computed_one_by_one(base: str):
    network, other = read(base), read(base)
    loss = loss_sum(network, collate(EXAMPLES))
    expected = sum(nll(other, example) for example in EXAMPLES)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=0, abs=1e-10)

    loss.backward()
    expected.backward()

    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert_same(gradients, {name: parameter.grad for name, parameter in other.named_parameters()}, atol=1e-10)


def test_the_prompt_carries_no_loss(base: str):
    """By the chain rule, the likelihoods of a completion's two halves multiply, wherever the prompt ends."""
    network = read(base)
    prompt, first, second = (1, 40, 41, 3), (70, 71), (72, 73, END)

    def loss(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
        return loss_sum(network, batch_of((prompt, completion))).item()

    whole = loss(prompt, first + second)
    assert whole == pytest.approx(loss(prompt, first) + loss(prompt + first, second), rel=0, abs=1e-10)


class Uniform(nn.Module):
    """Gives every token of a vocabulary of 7 the same probability, and notes how many logits were asked for."""

    def forward(self, input_ids: Tensor, logits_to_keep: int, **_: object) -> Any:
        self.kept = logits_to_keep
        self.logits = torch.zeros(*input_ids.shape, 7, dtype=torch.bfloat16)[:, -logits_to_keep:]
        return self


def test_each_trained_token_of_a_clueless_model_costs_the_log_of_the_vocabulary():
    loss = loss_sum(Uniform(), batch_of(((1, 2, 3), (4, 5)), ((6,), (0, 1, 2))))
    assert loss.item() == pytest.approx(5 * math.log(7), rel=1e-6)
    assert loss.dtype == torch.float32


def test_logits_are_computed_for_the_completions_alone():
    network = Uniform()
    loss_sum(network, batch_of(((1,) * 500, (4, 5)), ((6,), (0, 1, 2))))
    assert network.kept == 3 + 1
