"""Odd answers do not end a run: a model that gives the oddest ones completes whole runs with every chat template.

Each question is answered by another text of `TEXTS` or by ids that stand for no text, and its correction is the next.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from templates import GEMMA, LLAMA3, MISTRAL_V3, QWEN3, QWEN3_THINKING, SMOLLM2, Family, chatml
from test_run import composed, lines
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from stasc.cli.build import build_experiment
from stasc.engines.engine import Completion, Decoding, Request, SampleIndex
from stasc.engines.hf.engine import HF
from stasc.models.chat import Chat
from stasc.models.live import LiveModel
from stasc.models.model import Model
from stasc.prefix_tree.batch import Example
from stasc.records import REASONS, Advance
from stasc.runs import execute as runner
from stasc.tracking.console import Console
from stasc.training import loop

LIMIT = 48  # sampling.max_new_tokens; what is longer is sampled all the same

TEXTS = [
    "Paris",
    *("", " ", "\n", "\t \n\n", "\u00a0", "\u200b\u200d\ufeff", "  Paris  \n\n"),
    *("</think>", "<think>", "<think></think>", "</think>Paris", "a</think>b</think>c", "<think>\n\n</think>\n\nParis"),
    *("<think>never closed", "</think><think>", "<|im_end|>", "<|im_start|>assistant\nParis<|im_end|>", "<|end|>"),
    *("</s>", "<s>", "[INST] Who? [/INST]", "<|eot_id|>", "<end_of_turn>\n<start_of_turn>user\n", "<|endoftext|>" * 3),
    *("{{ 7 * 7 }}", "{% for m in messages %}", "{{ raise_exception('no') }}", "{answer} {question} {0} %s %(a)s"),
    *(
        "\u05e9\u05dc\u05d5\u05dd \u202etxet\u202c",
        "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
        "🏝👩‍👩‍👧‍👦\U0001f1eb\U0001f1f7",
    ),
    *(
        "e\u0301" * 20,
        "\u0000\u0001\u0007\u001b[31m",
        "\r\n\r",
        "\ufffd\ufffe\uffff",
        "'\"`\\",
        "nan",
        "1e999",
        "-" * 40,
    ),
    *("Final Answer:", "Final Answer: Final Answer: Paris", '{"a": [1, {"b": null}]}', "</script><b>Paris</b>"),
    *("$" * 30, "\\boxed{" * 10, "Question: Who?\nAnswer: he\nQuestion:", "a" * 2_000, "x" * 10_000),
]
RAW = [  # by their bytes, which need be no UTF-8
    *(b"\xff", b"\xed\xa0\x80", b"\xf0\x9f", b"\x80" * 30, b"Paris\xc3", b"\xc0\xaf", b"\xf4\x90\x80\x80"),
]
REFUSES = replace(  # empty answers, and all that it knows as its own tags
    SMOLLM2,
    name="refuses",
    template="{% for m in messages %}{% if m.role == 'assistant' and (not m.content|trim or '<' in m.content) %}"
    "{{ raise_exception('this is no answer') }}{% endif %}{% endfor %}" + chatml(""),
)
RAISES = replace(  # Python's own errors
    SMOLLM2,
    name="raises",
    template="{% for m in messages if m.role == 'assistant' %}{{ '' if (m.content|length) // (m.content|trim|length) }}"
    "{% endfor %}" + chatml(""),
)
PLAIN = replace(SMOLLM2, name="plain")


def spell(tokenizer: PreTrainedTokenizerFast, data: bytes) -> list[int]:
    """A token for each byte, by GPT-2's names of them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in shown}
    names |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in shown)}
    return [tokenizer.convert_tokens_to_ids(names[byte]) for byte in data]


def answers(tokenizer: PreTrainedTokenizerFast, *more: str) -> list[Completion]:
    """The answers: texts with their tags as special tokens and spelled out, bytes, special tokens, endless ones."""
    end = Chat(tokenizer, None, {}).end_id
    encoded = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (*TEXTS, *more)]
    spelled = [spell(tokenizer, text.encode()) for text in TEXTS if "<" in text]
    raw = [spell(tokenizer, data) for data in RAW]
    special = [[id_] * 3 for id_ in tokenizer.added_tokens_decoder if id_ != end]
    said = [Completion((*(id_ for id_ in ids if id_ != end), end), False) for ids in encoded + spelled + raw + special]
    endless = [Completion(tuple((LIMIT * ids)[:LIMIT]), True) for ids in ([5], special[0], raw[0], encoded[0])]
    return said + endless


@dataclass
class Scripted(HF):
    """An engine whose model gives the n-th answer to the n-th question, and another one to the n-th correction."""

    said: tuple[Completion, ...] = ()

    def load(self, model: Model, live: LiveModel) -> None:
        self.context = live.load(model).config.max_position_embeddings

    def sample(
        self, requests: Sequence[Request], batch: Sequence[SampleIndex], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        assert all(requests[r].prompt for r, _ in batch)
        assert max(len(requests[r].prompt) for r, _ in batch) + LIMIT <= self.context
        advance(len(batch))
        first = len(max((request.prompt for request in requests), key=len))  # another in each stage
        return [self.said[(first + r) % len(self.said)] for r, _ in batch]


def make_model(family: Family, base: str, folder: Path) -> PreTrainedTokenizerFast:
    """The tiny model with the tokenizer and template of a family."""
    tokenizer = family.tokenizer()
    shutil.copytree(base, folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def run(
    family: Family, base: str, tmp_path: Path, trained: list[Example], *overrides: str, more: Sequence[str] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]], list[Completion]]:
    tokenizer = make_model(family, base, tmp_path / "model")
    said = answers(tokenizer, *more)
    rows = [{"question": f"What is {n}?", "answer": "Paris"} for n in range(len(said) + 40)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = "{" + ", ".join(f"{name}: {str(value).lower()}" for name, value in family.args.items()) + "}"
    cfg = composed(
        *("model=custom", f"model.path={tmp_path / 'model'}", f"+model.template_args={args}", "tracking=off"),
        *("dataset=jsonl", f"dataset.path={tmp_path / 'questions.jsonl'}", f"dataset.n_train={len(said)}"),
        *("dataset.n_test=30", "dataset.n_validation=2", f"sampling.max_new_tokens={LIMIT}"),
        *("sampling.n_init=1", "sampling.n_corr=1", "filter=all", "iterations=1", "finetune.batch_size=16"),
        *(f"model.chat_template={family.name}" for _ in range(family.name == "plain")),
        *overrides,
    )
    real = build_experiment(cfg)
    engine = Scripted(384, said=tuple(said))
    with pytest.MonkeyPatch.context() as patch:
        train = loop.train
        patch.setattr(
            loop,
            "train",
            lambda network, examples, *given: trained.extend(examples) or train(network, examples, *given),
        )
        (tmp_path / "run").mkdir()
        summary = runner.run(replace(real, engine=engine), tmp_path / "run", "group", Console())
    return summary, lines(tmp_path / "run" / "pairs.jsonl"), said


FAMILIES = (SMOLLM2, QWEN3, QWEN3_THINKING, LLAMA3, GEMMA, MISTRAL_V3, PLAIN, REFUSES, RAISES)


@pytest.mark.parametrize(
    ("family", "method"),
    [*((family, "full") for family in FAMILIES), (QWEN3, "lora"), (REFUSES, "lora"), (SMOLLM2, "qlora")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_run_finishes_and_reports_what_it_left_out_and_why(
    family: Family, method: str, base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(TEXTS) >= 40
    trained: list[Example] = []
    summary, pairs, said = run(family, base, tmp_path, trained, f"finetune={method}", "finetune.truncated=drop")

    assert summary["status"] == "finished"
    after = summary["iterations"][1]
    assert len(pairs) == after["train"]["pairs"] == len(said)
    assert after["test"]["pairs"] == 30
    dropped = [pair["dropped"] and pair["dropped"].partition(": ")[0] for pair in pairs]
    assert all((reason in REASONS) != pair["kept"] for pair, reason in zip(pairs, dropped, strict=True))
    reasons = Counter(dropped)
    assert {reason: reasons[reason] for reason in REASONS} == {
        reason: after["train"][f"left_out_{reason}"] for reason in REASONS
    }
    if family not in (REFUSES, RAISES):  # where not all of them are asked for
        assert reasons["truncated"] == sum(completion.truncated for completion in said)
    assert after["train"]["kept"] == after["finetune"]["examples"] == len(trained) == reasons[None]
    assert reasons[None] > len(said) / 3
    if family in (REFUSES, RAISES):
        assert after["train"]["corr_not_asked"] > 1 / 10
        assert "count as empty, and are not trained on" in caplog.text
    longest = 2048 - LIMIT
    assert {len(pair["y1"]) > longest for pair in pairs if pair["kept"]} == {False}

    # What is trained is what was sampled.
    sampled = {completion.ids for completion in said}
    if family != PLAIN:  # whose answers end at stop strings
        assert all(example.completion in sampled for example in trained)
    assert all(example.completion[-1] == trained[0].completion[-1] for example in trained)


def test_truncated_answers_are_trained_without_an_end_if_asked(base: str, tmp_path: Path) -> None:
    trained: list[Example] = []
    summary, _, said = run(SMOLLM2, base, tmp_path, trained, "finetune.truncated=keep", more=["x" * 1_000_000])
    assert summary["iterations"][1]["train"]["left_out_truncated"] == 0
    endless = {completion.ids for completion in said if completion.truncated}
    assert {example.completion for example in trained} >= endless


@pytest.mark.parametrize("target", ["initial", "gold"])
def test_a_baseline_finishes_as_well(target: str, base: str, tmp_path: Path) -> None:
    summary, _, _ = run(REFUSES, base, tmp_path, [], f"target={target}")
    assert summary["status"] == "finished"
    assert summary["iterations"][1]["train"]["kept"] > 0


def raising(answer: str, references: Sequence[str]) -> float:
    if "\ufffd" in answer or not answer.strip():
        raise ValueError("no answer")
    return 1.0


def test_reward_errors_zero_scores_answers_that_raise_as_0(base: str, tmp_path: Path) -> None:
    reward = ("~reward", "+reward={_target_: test_odd_answers.raising, _partial_: true}", "reward_errors=zero")
    summary, pairs, _ = run(QWEN3, base, tmp_path, [], *reward)
    assert summary["status"] == "finished"
    assert {pair["r2"] for pair in pairs} == {0.0, 1.0}
