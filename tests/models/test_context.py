"""Questions that are too long for the model are refused; lengths are counted by hand, as a token is a byte here."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_model import config
from test_run import experiment
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig

from stasc.models import sources
from stasc.models.chat import Chat, Refused
from stasc.models.checkpoint import check_context, context_limit
from stasc.models.config import load_chat
from stasc.records import Question, Split
from stasc.runs.execute import run
from stasc.settings.sections import Evaluation, Sampling
from stasc.tasks.prompt import Message, Prompt
from stasc.tracking.console import Console


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sources.fetch("tiny:0", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def chat(base: str) -> Chat:
    return load_chat(config(base), base)


# 3 marks around an initial question, 7 in the conversation of a correction, whose request is 5 bytes long
QUESTION = "a question of 25 bytes..."
ASKED = 3 + 25
CORRECTED = 7 + 25 + 5


def check(
    chat: Chat,
    limit: int | None,
    train: str = "short",
    test: str = "short",
    correction: str = "Sure?",
    new: int = 10,
    evaluated: int | None = None,
    prompt: Any = None,
) -> None:
    check_context(
        limit,
        chat,
        prompt or Prompt(None, "{question}", correction, None),
        Split("train", (Question("t/1", "short", ("a",)), Question("t/2", train, ("a",)))),
        Split("test", (Question("e/1", test, ("a",)),)),
        Sampling(n_init=1, n_corr=1, temperature=1.0, top_p=1.0, max_new_tokens=new, stop=[]),
        Evaluation("test", n_init=1, temperature=None, top_p=None, max_new_tokens=evaluated, batch=None),
    )


def test_a_correction_may_fill_the_context_and_not_exceed_it(chat: Chat) -> None:
    needed = CORRECTED + 2 * 10  # the answer that is corrected, and the correction
    check(chat, needed, train=QUESTION)
    message = rf"question t/2 \(.*\): the prompt of its correction takes up to {needed - 10} tokens, which with "
    with pytest.raises(ValueError, match=rf"{message}sampling\.max_new_tokens=10 .* context of {needed - 1} tokens"):
        check(chat, needed - 1, train=QUESTION)


def test_an_answer_that_the_request_repeats_counts_twice(chat: Chat) -> None:
    needed = 7 + 25 + len("Not ?") + 3 * 10
    check(chat, needed, train=QUESTION, correction="Not {answer}?")
    with pytest.raises(ValueError, match=r"question t/2 \(.*\): the prompt of its correction"):
        check(chat, needed - 1, train=QUESTION, correction="Not {answer}?")


@dataclass(frozen=True)
class Own:
    """A prompt of a user's own, with no more than the two methods of the protocol."""

    def ask(self, question: str) -> list[Message]:
        return [{"role": "user", "content": question}]

    def ask_to_correct(self, question: str, y1: str) -> list[Message]:
        return [{"role": "user", "content": f"{question} {y1} or {y1}?"}]


def test_a_prompt_of_ones_own_counts_the_answer_as_often_as_it_repeats_it(chat: Chat) -> None:
    needed = 3 + 25 + len("  or ?") + 3 * 10
    check(chat, needed, train=QUESTION, prompt=Own())
    with pytest.raises(ValueError, match=r"question t/2 \(.*\): the prompt of its correction"):
        check(chat, needed - 1, train=QUESTION, prompt=Own())


def test_an_initial_prompt_that_does_not_fit_is_said_to_be_that(chat: Chat) -> None:
    with pytest.raises(ValueError, match=rf"question t/2 \(.*\): its prompt takes up to {ASKED} tokens"):
        check(chat, ASKED + 9, train=QUESTION)
    with pytest.raises(ValueError, match=r"question t/2 \(.*\): the prompt of its correction"):
        check(chat, ASKED + 10, train=QUESTION)


@pytest.mark.parametrize(
    ("evaluated", "setting"),
    [(None, r"sampling\.max_new_tokens=10 "), (10, r"evaluation\.max_new_tokens=10 ")],
)
def test_the_setting_named_is_the_one_that_applies(chat: Chat, evaluated: int | None, setting: str) -> None:
    with pytest.raises(ValueError, match=rf"question e/1 \(.*\): .* with {setting}.*lower {setting[:-4]}"):
        check(chat, CORRECTED + 19, test=QUESTION, evaluated=evaluated)
    with pytest.raises(ValueError, match=r"question t/2 \(.*\): .* with sampling\.max_new_tokens=10 "):
        check(chat, CORRECTED + 19, train=QUESTION, evaluated=evaluated)


def test_a_split_is_checked_with_its_own_length_of_answers(chat: Chat) -> None:
    check(chat, CORRECTED + 2 * 3, test=QUESTION, new=2, evaluated=3)
    with pytest.raises(ValueError, match=r"question e/1 \(.*\): .*evaluation\.max_new_tokens=4"):
        check(chat, CORRECTED + 2 * 3, test=QUESTION, new=2, evaluated=4)


def test_a_model_without_a_limit_takes_any_question(chat: Chat) -> None:
    check(chat, None, train="long " * 10_000)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(LlamaConfig(max_position_embeddings=77), 77), (GPT2Config(n_positions=78), 78), (MambaConfig(), None)],
)
def test_the_limit_is_the_one_of_the_model_s_configuration(kind: Any, expected: int | None, tmp_path: Path) -> None:
    kind.save_pretrained(tmp_path)
    assert context_limit(AutoConfig.from_pretrained(tmp_path)) == expected


def test_a_megabyte_of_a_question_ends_the_run_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read the weights"))
    file = tmp_path / "questions.jsonl"
    texts = [f"What is {i} + {i}?" for i in range(9)] + ["long " * 200_000]
    file.write_text("".join(json.dumps({"question": text, "answer": "a"}) + "\n" for text in texts))
    built = experiment("dataset=jsonl", f"dataset.path={file}", "dataset.n_validation=0", "dataset.n_train=7")
    began = time.process_time()
    with pytest.raises(
        ValueError, match=r"question [0-9a-f]{16} \('(long ){11}lo\.\.\.'\): its prompt takes up to 1000\d\d\d tokens"
    ):
        run(built, tmp_path, "group", Console())
    assert time.process_time() - began < 10
    assert not (tmp_path / "summary.json").exists()


def test_without_a_limit_too_a_question_that_the_template_refuses_is_named(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(messages: object) -> tuple[int, ...]:
        raise Refused("the chat template refuses a conversation")

    monkeypatch.setattr(chat, "prompt", refuses)
    with pytest.raises(
        ValueError, match=r"^question .*: its prompt: the chat template refuses .* leave the question out"
    ):
        check(chat, None)
