"""The words of a conversation: what is filled in, in which order the turns come, and what is said of bad settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stasc.tasks.prompt import Prompt

CONF = Path(__file__).parents[2] / "conf" / "prompt"
each_file = pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)


def prompt(**changes: Any) -> Prompt:
    """A small prompt of which the test sets what it is about."""
    settings = {"system": None, "initial": "{question}", "correction": "Is it right?", "marker": None}
    return Prompt(**(settings | changes))


def build(file: Path) -> Prompt:
    built = instantiate(OmegaConf.load(file), _convert_="all")
    assert isinstance(built, Prompt)
    return built


def test_an_initial_conversation_is_the_system_text_and_the_question():
    assert prompt(system="Be brief.", initial="Q: {question}?").ask("Why") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: Why?"},
    ]


def test_a_correction_conversation_goes_on_where_the_initial_answer_ended():
    words = prompt(system="Be brief.", initial="Q: {question}?", correction="You said {answer} to {question}. Sure?")
    assert words.ask_to_correct("Why", "Because") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: Why?"},
        {"role": "assistant", "content": "Because"},
        {"role": "user", "content": "You said Because to Why. Sure?"},
    ]


@pytest.mark.parametrize("system", [None, ""])
def test_without_a_system_text_the_user_speaks_first(system: str | None):
    words = prompt(system=system)
    assert [message["role"] for message in words.ask("Why")] == ["user"]
    assert [message["role"] for message in words.ask_to_correct("Why", "So")] == ["user", "assistant", "user"]


def test_a_name_in_braces_stays_in_a_question_and_in_an_answer():
    words = prompt(initial="{question}!", correction="{answer} / {question}")
    conversation = words.ask_to_correct("what is {answer}?", "{question} {marker}")
    assert [message["content"] for message in conversation] == [
        "what is {answer}?!",
        "{question} {marker}",
        "{question} {marker} / what is {answer}?",
    ]


def test_braces_of_the_prompt_itself_that_name_nothing_stay():
    assert prompt(initial='Reply as {"a": {}}: {question} {unknown} {0}').ask("Why")[0]["content"] == (
        'Reply as {"a": {}}: Why {unknown} {0}'
    )


def test_a_placeholder_is_filled_wherever_it_stands():
    assert prompt(initial="{question}{question}").ask("ab")[0]["content"] == "abab"


@given(st.text(), st.text())
def test_question_and_answer_arrive_as_they_are(question: str, answer: str):
    conversation = prompt(correction="{question}|{answer}").ask_to_correct(question, answer)
    assert [message["content"] for message in conversation] == [question, answer, f"{question}|{answer}"]


def test_an_initial_prompt_without_the_question_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"prompt\.initial does not contain \{question\}"):
        prompt(initial="{qestion}")


@pytest.mark.parametrize("correction", ["", " \n"])
def test_an_empty_request_to_correct_is_refused_by_its_name(correction: str):
    with pytest.raises(ValueError, match=r"prompt\.correction is empty"):
        prompt(correction=correction)


@each_file
def test_each_file_asks_the_question_and_then_to_correct_the_answer(file: Path):
    system, first, answer, request = build(file).ask_to_correct("How many?", "Two.")
    assert [m["role"] for m in (system, first, answer, request)] == ["system", "user", "assistant", "user"]
    assert "How many?" in first["content"] and "How many?" in request["content"]
    assert answer["content"] == "Two."
    assert "correct" in request["content"].lower()


@each_file
def test_no_file_leaves_a_placeholder_unfilled(file: Path):
    assert "{" not in "".join(message["content"] for message in build(file).ask_to_correct("q", "a"))


def test_the_cot_prompt_asks_for_the_marker_that_rewards_look_for():
    words = build(CONF / "cot.yaml")
    assert words.marker == "Final Answer:"
    assert all(words.marker in text for text in (words.system or "", words.initial, words.correction))


def test_the_direct_prompt_has_no_marker_since_the_whole_generation_is_the_answer():
    assert build(CONF / "direct.yaml").marker is None
