"""The three rewards: worked examples, nasty strings, and what holds for any string."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stasc.tasks.rewards import F1, ExactMatch, InAccuracy, WordReward, ZeroOnError, after_last, normalise

CONF = Path(__file__).parents[2] / "conf" / "reward"
KINDS = [InAccuracy, ExactMatch, F1]
each_kind = pytest.mark.parametrize("kind", KINDS)

in_accuracy = InAccuracy(scope="whole", marker=None)
exact_match = ExactMatch(scope="whole", marker=None)
f1 = F1(scope="whole", marker=None)

# Any string, lone surrogates included, and strings made of what the rewards treat specially.
texts = st.text(st.characters()) | st.text(
    st.sampled_from("aAtThHeE nN .,-–“”¿\u0301\u0327ﷺİßﬁ\ud800\x00\u200f７"), max_size=40
)

NASTY = {
    "empty": "",
    "white space": " \t\r\n\x0b\u3000",
    "ascii punctuation": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "unicode punctuation": "“”‘’«»–—…¿¡、。・·؟",
    "NUL": "\x00",
    "lone surrogate": "\ud800",
    "right to left": "\u202eالقاهرة\u202c",
    "not a number": "nan",
    "infinity": "-inf",
    "nested braces": "{" * 10_000 + "}" * 10_000,
    "regular expression": "(a+)+$ .* [",
    "format string": "%s {0} {answer}",
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Eiffel\tTower!", ["eiffel", "tower"]),
        ("a an the theme", ["theme"]),
        ("N'Djamena", ["ndjamena"]),
        ("N’Djamena", ["ndjamena"]),
        ("“Paris” – ¿sí?", ["paris", "sí"]),
        ("Ｐａｒｉｓ", ["paris"]),
        ("Straße", ["strasse"]),
        ("cafe\u0301", ["café"]),
        ("1,000", ["1000"]),
        ("THE", ["the"]),
        ("The A.", ["the", "a"]),
        (" .-! ", []),
        ("", []),
    ],
)
def test_text_is_normalised_as_by_squad_and_for_unicode(text: str, words: list[str]) -> None:
    assert normalise(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("法国的首都是巴黎。", list("法国的首都是巴黎")),
        ("東京 Tower 2を見た", ["東", "京", "tower", "2", "を", "見", "た"]),
        ("ﾄｳｷｮｳ", list("トウキョウ")),  # NFKC
        ("か\u3099", ["が"]),
        ("กรุง เทพ", ["ก", "รุ", "ง", "เ", "ท", "พ"]),  # a vowel sign stays with its consonant
        ("ភាសា", ["ភា", "សា"]),
        ("서울은 수도", ["서울은", "수도"]),  # Korean has spaces
        ("\u2f2f𠮷", ["工", "𠮷"]),
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(text: str, words: list[str]) -> None:
    assert normalise(text) == words


@pytest.mark.parametrize(
    ("answer", "gold", "overlap"),
    [
        ("法国的首都是巴黎。", "巴黎", 2 * 2 / (8 + 2)),
        ("答えは東京です", "東京", 2 * 2 / (7 + 2)),
        ("คำตอบคือกรุงเทพ", "กรุงเทพ", 2 * 6 / (13 + 6)),
        ("Es ist 東京 (Tokyo)", "東京", 2 * 2 / (5 + 2)),
    ],
)
def test_an_answer_in_a_script_without_spaces_holds_its_reference(answer: str, gold: str, overlap: float) -> None:
    assert in_accuracy(answer, [gold]) == 1
    assert in_accuracy(gold, [answer]) == 0
    assert exact_match(answer, [gold]) == 0 and exact_match(f"{gold}。", [gold]) == 1
    assert f1(answer, [gold]) == pytest.approx(overlap)


@each_kind
@pytest.mark.parametrize("seen", ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u200e", "\ufe0f"])
def test_zero_width_characters_do_not_count(kind: type[WordReward], seen: str) -> None:
    for normalisation in kind.normalisations:
        reward = kind("whole", None, normalisation)
        assert reward(f"Par{seen}is{seen}", ["Paris"]) == reward("Paris", [f"{seen}Pari{seen}s"]) == 1
        assert reward(seen, [seen]) == reward(seen, ["Paris"]) == 0
        assert reward.problem([seen])


# The normalisations of others. Expected values: their own functions, called by hand.


@pytest.mark.parametrize(
    ("answer", "gold", "squad", "stasc", "dpr"),
    [
        ("Africa's largest country", "Africa", 0, 1, 1),
        ("N'Djamena", "N Djamena", 0, 1, 0),
        ("35", "3.5", 1, 0, 0),
        ("It is the 3.5.", "3.5", 1, 1, 1),
        ("It is 3-5", "3.5", 1, 1, 0),
        ("The Who", "Who", 1, 1, 1),
        ("Who", "The Who", 1, 1, 0),  # an article is a token of DPR's
        ("rock of the ages", "rock of ages", 1, 1, 0),
        ("“Paris”", "Paris", 1, 1, 1),
        ("Ｐａｒｉｓ", "Paris", 1, 0, 0),  # NFKC is ours alone
        ("café", "cafe\u0301", 1, 1, 1),
        ("Strasse", "Straße", 1, 0, 0),
        ("a*b", "*", 0, 0, 1),
        ("Parisian", "Paris", 0, 0, 0),
    ],
)
def test_in_accuracy_of_the_three_normalisations(
    answer: str, gold: str, squad: float, stasc: float, dpr: float
) -> None:
    found = {name: InAccuracy("whole", None, name)(answer, [gold]) for name in ("squad", "stasc", "dpr")}
    assert found == {"squad": squad, "stasc": stasc, "dpr": dpr}


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "overlap"),
    [
        ("Africa's", "Africa", 0, 2 / 3),
        ("3.5", "3 5", 1, 1),
        ("the Paris!", "paris", 1, 1),
        ("“Paris”", "Paris", 0, 0),  # ASCII punctuation alone
    ],
)
def test_exact_match_and_f1_of_the_authors_code(answer: str, gold: str, exact: float, overlap: float) -> None:
    assert ExactMatch("whole", None, "stasc")(answer, [gold]) == exact
    assert F1("whole", None, "stasc")(answer, [gold]) == pytest.approx(overlap)


def test_a_reference_without_a_word_is_right_in_no_answer_and_named() -> None:
    for kind in KINDS:
        for normalisation in kind.normalisations:
            reward = kind("whole", None, normalisation)
            assert reward("Paris , ! the", ["", " "]) == 0
            assert reward.problem(["", "Paris"]) is None
            assert "has no word" in str(reward.problem([" "]))
    assert in_accuracy.problem([",", "!!!"]) == "its reference ',' has no word, so that no answer can be right"


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_normalisation_is_refused_with_those_there_are(kind: type[WordReward]) -> None:
    known = " or ".join(kind.normalisations)
    with pytest.raises(ValueError, match=rf"reward\.normalisation=trec: expected {known}$"):
        kind("whole", None, "trec")


@pytest.mark.parametrize("kind", [ExactMatch, F1])
def test_the_match_of_tokens_is_of_in_accuracy(kind: type[WordReward]) -> None:
    with pytest.raises(ValueError, match=r"expected squad or stasc; dpr is a match of tokens, for reward=in_accuracy"):
        kind("whole", None, "dpr")


@pytest.mark.parametrize(
    ("answer", "references", "in_acc", "exact", "overlap"),
    [
        ("Paris", ["Paris"], 1, 1, 1),
        ("It is Paris.", ["Paris"], 1, 0, 1 / 2),  # precision 1/3, recall 1
        ("the PARIS!", ["paris"], 1, 1, 1),
        ("Parisian", ["Paris"], 0, 0, 0),
        ("comparison", ["paris"], 0, 0, 0),
        ("New York City", ["New York"], 1, 0, 4 / 5),  # precision 2/3, recall 1
        ("York, New", ["New York"], 0, 0, 1),
        ("New, I say, York", ["New York"], 0, 0, 2 / 3),  # precision 2/4, recall 1
        ("New", ["New York"], 0, 0, 2 / 3),  # precision 1, recall 1/2
        ("no no no", ["no"], 1, 0, 1 / 2),  # counted once: precision 1/3, recall 1
        ("no", ["no no"], 0, 0, 2 / 3),  # precision 1, recall 1/2
        ("London", ["Paris"], 0, 0, 0),
        ("London", ["Paris", "London"], 1, 1, 1),
        ("in London", ["Paris", "Greater London", "London"], 1, 0, 2 / 3),  # the best of 0, 1/2, 2/3
        ("London", [], 0, 0, 0),
        ("The Who", ["Who"], 1, 1, 1),
        ("Rock of the ages", ["rock of ages"], 1, 1, 1),
        ("Sao Tome", ["São Tomé"], 0, 0, 0),  # accents count: a reference gives both spellings
    ],
)
def test_worked_examples(answer: str, references: list[str], in_acc: float, exact: float, overlap: float) -> None:
    assert in_accuracy(answer, references) == in_acc
    assert exact_match(answer, references) == exact
    assert f1(answer, references) == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("answer", "in_acc", "exact", "overlap"),
    [("The", 1, 1, 1), ("the.", 1, 1, 1), ("The the", 1, 0, 2 / 3), ("The dog", 0, 0, 0), ("A", 0, 0, 0)],
)
def test_a_reference_of_articles_only_is_right_among_articles_only(
    answer: str, in_acc: float, exact: float, overlap: float
) -> None:
    assert in_accuracy(answer, ["The"]) == in_acc
    assert exact_match(answer, ["The"]) == exact
    assert f1(answer, ["The"]) == pytest.approx(overlap)


@each_kind
@pytest.mark.parametrize(
    "gold", ["The", "a", "nan", "0", "½", "ⅷ", "½ a", "東京", "القاهرة", "İ", "ŉ", "ß", "\u0345a", "C++"]
)
def test_a_gold_answer_scores_1_against_itself(kind: type[WordReward], gold: str) -> None:
    assert kind("whole", None)(gold, ["no", gold]) == 1
    assert kind("final", "Answer:")(f"I think so. Answer: {gold}", [gold]) == 1


@each_kind
@given(text=texts)
@example(text="\ufdfa\u0301" * 200)
def test_whatever_has_a_letter_or_digit_scores_1_against_itself(kind: type[WordReward], text: str) -> None:
    if any(unicodedata.category(character)[0] in "LN" for character in text):
        assert kind("whole", None)(text, [text]) == 1


@each_kind
@given(answer=texts, references=st.lists(texts, max_size=3))
def test_every_string_gets_a_finite_reward_from_0_to_1(
    kind: type[WordReward], answer: str, references: list[str]
) -> None:
    for reward in (kind("whole", None), kind("final", "a")):
        score = reward(answer, references)
        assert isinstance(score, float) and 0 <= score <= 1


@each_kind
@pytest.mark.parametrize("answer", NASTY.values(), ids=NASTY.keys())
def test_nasty_strings_are_scored(kind: type[WordReward], answer: str) -> None:
    assert kind("whole", None)(answer, ["Paris", *NASTY.values()]) in (0.0, 1.0)
    assert kind("whole", None)("Paris", list(NASTY.values())) == 0
    assert kind("final", "Answer:")(answer, [answer]) == 0


@each_kind
@pytest.mark.parametrize("name", ["empty", "white space", "ascii punctuation", "unicode punctuation", "nested braces"])
def test_empty_and_punctuation_only_answers_score_0_even_against_themselves(kind: type[WordReward], name: str) -> None:
    assert kind("whole", None)(NASTY[name], [NASTY[name], "", "...", "Paris"]) == 0


@each_kind
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "Answer",
            "Answer * ",
            "กำ ",
            "ab. ",
            "x",
            "\u0301\u0327",
            "e\u0301\u0327\u0323",
            "Answer: ",
            "(",
            "{",
            "{}",
            "nan ",
            "北京。",
            "é\ud800",
        ),
        *("\u202eالقاهرة\u202c ", "a\u200b", "ﷺ", "\x00", "the ", "paris", "paris "),
    ],
)
def test_a_megabyte_is_scored_in_under_a_second(kind: type[WordReward], piece: str) -> None:
    answer = piece * (1_000_000 // len(piece.encode("utf-8", "surrogatepass")))
    start = time.process_time()
    assert 0 <= kind("final", "Answer:")(answer, ["Paris"]) <= 1
    assert 0 <= kind("whole", None)(answer, ["Paris"]) <= 1
    assert time.process_time() - start < 2  # for the two


@each_kind
@pytest.mark.parametrize("piece", ["ab. ", "x", "\u0301\u0327", "the ", "a b "])
def test_a_megabyte_of_reference_is_no_slower(kind: type[WordReward], piece: str) -> None:
    gold = piece * (1_000_000 // len(piece.encode()))
    start = time.process_time()
    assert 0 <= kind("whole", None)(gold[:-2] + "!", ["Paris", gold]) <= 1
    assert time.process_time() - start < 2  # for the two texts


def test_an_error_of_a_reward_counts_0_and_is_counted_where_that_is_asked_for() -> None:
    def fragile(answer: str, references: Sequence[str]) -> float:
        return 1 / int(answer)

    reward = ZeroOnError(fragile)
    assert reward(("2", "0", "one", "4"), [()] * 4) == [0.5, 0.0, 0.0, 0.25]
    assert reward.pop_errors() == {"answers": 2, "first": "ZeroDivisionError for '0'"}
    assert reward.pop_errors() is None
    nothing = ZeroOnError(lambda answer, references: None)  # type: ignore[arg-type, return-value]
    assert nothing(["1"], [()]) == [0.0]
    assert nothing.pop_errors() is not None


def test_an_interrupt_and_a_reward_out_of_range_are_not_counted_0() -> None:
    def interrupted(answer: str, references: Sequence[str]) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ZeroOnError(interrupted)(["1"], [()])
    assert ZeroOnError(lambda answer, references: 7.0)(["1"], [()]) == [7]  # which scoring refuses


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ("Answer : 4", " 4"),
        ("**Answer:** 4", " 4"),
        ("**Answer**: 4", " 4"),
        ("__Answer:__ 4", " 4"),
        ("**Answer :** **4**", " **4**"),
        ("Answer： 4", " 4"),
        ("Answer\n: 4", " 4"),
        ("Answers: 4", None),
        ("Answer is: 4", None),
        ("Answer: 4", " 4"),
        ("It is 3.\nANSWER: 4\n", " 4\n"),
        ("Answer: 3 answer: 4", " 4"),
        ("Answer:", ""),
        ("It is 4", None),
        ("İİ Answer: 4", " 4"),  # lower case makes it longer: positions must not shift
    ],
)
def test_final_takes_what_follows_the_last_marker(text: str, tail: str | None) -> None:
    assert after_last("Answer:", text) == tail


@pytest.mark.parametrize("marker", ["Final Answer:", "final  answer:", "FINAL ANSWER :"])
@pytest.mark.parametrize("text", ["Final Answer: 4", "final answer : 4", "**Final  Answer:** 4", "**Final** Answer: 4"])
def test_a_marker_of_two_words_may_be_spaced_otherwise(marker: str, text: str) -> None:
    assert str(after_last(marker, f"So.\n{text}")).strip() == "4"
    assert after_last(marker, "FinalAnswer: 4") is None


def test_answers_without_the_marker_are_known() -> None:
    final = InAccuracy("final", "Final Answer:")
    assert [final.unmarked(text) for text in ("4", "Final Answer: 4", "**final answer :** 4", "", "Final")] == [
        *(True, False, False, True, True)
    ]
    assert InAccuracy("whole", "Final Answer:").unmarked is None


def test_a_marker_is_no_regular_expression_and_may_overlap_itself() -> None:
    assert after_last("A.*?", "A.*? 4") == " 4"
    assert after_last("A.*?", "Abc 4") is None
    assert after_last("##", "### 4") == " 4"


@each_kind
def test_final_scores_nothing_before_the_marker_and_whole_scores_all(kind: type[WordReward]) -> None:
    final, whole = kind("final", "Answer:"), kind("whole", "Answer:")
    assert final("Paris or London? Answer: London", ["London"]) == 1
    assert final("Paris. Answer: London", ["Paris"]) == 0
    assert final("London", ["London"]) == 0
    assert final("London. Answer:", ["London"]) == 0
    assert whole("London", ["London"]) == 1


@each_kind
@pytest.mark.parametrize("marker", [None, "", "  "])
def test_final_without_a_marker_is_refused_with_a_way_out(kind: type[WordReward], marker: str | None) -> None:
    with pytest.raises(ValueError, match=r"reward\.scope=final .* take prompt=cot, or set reward\.marker"):
        kind("final", marker)


@each_kind
def test_an_unknown_scope_is_refused(kind: type[WordReward]) -> None:
    with pytest.raises(ValueError, match=r"reward\.scope='last': expected whole or final"):
        kind("last", "Answer:")


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_reward_file_builds_its_class(file: Path) -> None:
    kind = {"in_accuracy": InAccuracy, "exact_match": ExactMatch, "f1": F1}[file.stem]
    config = OmegaConf.create({"prompt": {"marker": "Answer:"}, "reward": OmegaConf.load(file)})
    settings = OmegaConf.to_container(config.reward, resolve=True)
    assert isinstance(settings, dict) and settings.pop("_target_") == f"stasc.tasks.rewards.{kind.__name__}"
    built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), settings))
    assert built == kind(scope="whole", marker="Answer:")


@pytest.mark.parametrize("normalisation", ["squad", "stasc", "dpr"])
@pytest.mark.parametrize(("reference", "is_word"), [("!!!", False), (",", False), ("the", True), ("4", True)])
def test_every_normalisation_takes_the_same_rows(normalisation: str, reference: str, is_word: bool) -> None:
    """Runs that differ in it alone are asked the same questions."""
    assert (InAccuracy("whole", None, normalisation).problem([reference]) is None) == is_word


@pytest.mark.parametrize(("marker", "text"), [("\nAnswer:", "\n" * 300_000), ("** Answer", "*" * 300_000)])
def test_a_marker_is_looked_for_in_linear_time(marker: str, text: str) -> None:
    began = time.process_time()
    assert after_last(marker, text) is None
    assert str(after_last(marker, f"{text}\n** Answer: 4")).strip(" :") == "4"
    assert time.process_time() - began < 1
