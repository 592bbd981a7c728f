"""Stop strings: where they cut an answer, and which tokens remain."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import byte_tokenizer

from stasc.engines.stop import StopStrings
from stasc.models.chat import Chat

CHAT = Chat(
    byte_tokenizer(["</s>", "<s>"], eos="</s>", merges=[("Ċ", "Ċ"), (".", "Ċ"), ("Q", "u"), ("n", "Ċ")]), "plain", {}
)


def stop(*strings: str) -> StopStrings:
    return StopStrings(strings, CHAT)


def tokens(ids: Sequence[int]) -> list[str]:
    return [CHAT.tokenizer.convert_ids_to_tokens(id_) for id_ in ids]


@pytest.mark.parametrize(
    ("text", "strings", "kept", "left"),
    [
        ("Rom\nQuestion: Who?", ["\nQuestion:"], "Rom", ["R", "o", "m"]),  # begins with a token
        ("Rom\n\nQuestion: Who?", ["\nQuestion:"], "Rom\n", ["R", "o", "m", "Ċ"]),  # begins within ĊĊ
        ("Rom.\nQuestion:", ["\nQuestion:"], "Rom.", ["R", "o", "m", "."]),
        ("Rome Quiz", ["ui"], "Rome Q", ["R", "o", "m", "e", "Ġ", "Q"]),  # within Qu
        ("Rome\nParis", ["Paris", "\n"], "Rome", ["R", "o", "m", "e"]),  # the first of the text, not of the list
        ("\nQuestion:", ["\nQuestion:"], "", []),
        ("é\nQuestion:", ["\nQuestion:"], "é", ["Ã", "©"]),
        ("Milan\n", ["\n"], "Milan", ["M", "i", "l", "a", "n"]),
    ],
)
def test_text_and_tokens_are_cut_where_the_first_stop_string_begins(
    text: str, strings: list[str], kept: str, left: list[str]
) -> None:
    cut = stop(*strings).cut(CHAT.encode(text))
    assert cut is not None
    assert cut[0] == kept
    assert tokens(cut[1]) == left


def test_without_a_stop_string_nothing_is_cut() -> None:
    assert stop("\nQuestion:").cut(CHAT.encode("Rome\nQuest")) is None
    assert stop("\nQuestion:").cut(()) is None


def test_a_stop_string_is_met_by_the_token_that_completes_it() -> None:
    ids = CHAT.encode("Rome\nQuestion: Who?")
    met = [stop("\nQuestion:").met(ids[:end]) for end in range(1, len(ids) + 1)]
    assert CHAT.decode(ids[: met.index(True) + 1]) == "Rome\nQuestion:"


def test_only_the_end_of_a_long_answer_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = CHAT.decode
    monkeypatch.setattr(CHAT, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    assert not stop("\nQuestion:").met(CHAT.encode("a" * 5_000))
    assert sum(decoded) < 20


@given(st.lists(st.integers(0, len(CHAT.tokenizer) - 1), max_size=60), st.text("\nQu.é", min_size=1, max_size=3))
@settings(deadline=None)
def test_any_tokens_are_cut_to_the_text_before_the_stop_string(ids: list[int], string: str) -> None:
    text, cut = CHAT.decode(ids), stop(string).cut(ids)
    if string not in text:
        assert cut is None
        return
    assert cut is not None
    assert cut[0] == text.partition(string)[0]
    left = CHAT.decode(cut[1])
    assert cut[0].startswith(left.rstrip("\ufffd")) and (left == cut[0] or "\ufffd" in text)


class Spaced:
    """Encodes with a leading space, which decoding drops, as some tokenizers do."""

    vocabulary = ("\u2581Dhak", "a.\n", "Q:", "\u2581a.", "\u2581Dhaka.", "\u2581")

    def __init__(self, *known: str) -> None:
        self.known = known

    def encode(self, text: str) -> tuple[int, ...]:
        whole = "\u2581" + text.replace(" ", "\u2581")
        return (self.vocabulary.index(whole),) if whole in self.known else (self.vocabulary.index("\u2581"),)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.vocabulary[id_] for id_ in ids).replace("\u2581", " ").removeprefix(" ")


@pytest.mark.parametrize(
    ("known", "kept", "left"),
    [(("\u2581a.", "\u2581Dhaka."), "Dhaka.", ["\u2581Dhaka."]), (("\u2581a.",), "Dhak", ["\u2581Dhak"])],
)
def test_the_text_of_a_cut_answer_is_the_text_of_its_tokens(known: tuple[str, ...], kept: str, left: list[str]) -> None:
    """A tokenizer that writes a space before "a." cannot give the end of "Dhaka." by itself."""
    codec = Spaced(*known)
    cut = StopStrings(("\nQ:",), codec).cut((0, 1, 2))
    assert cut == (kept, tuple(map(codec.vocabulary.index, left)))
    assert codec.decode(cut[1]) == cut[0]
