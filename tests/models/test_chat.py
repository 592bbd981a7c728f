"""Prompts and training targets decode to the expected text, for the template of each model family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from templates import (
    CHATML_INITIAL,
    CORRECTION,
    FAMILIES,
    GEMMA,
    INITIAL,
    LLAMA3,
    LLAMA3_2,
    MISTRAL,
    MISTRAL_V3,
    PHI3_MEDIUM,
    QWEN2_5,
    QWEN3_THINKING,
    SMOLLM2,
    Family,
    byte_tokenizer,
    chatml,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stasc.models.chat import Chat
from stasc.tasks.prompt import Message

ANSWERS = {
    "plain": "Paris",
    "unicode and two lines": "déjà vu 🏝\nسلام",
    "leading spaces": "  Paris",
    "leading newline": "\nParis",
    "leading blank lines": "\n\n\nParis",
    "trailing space and newline": "Paris  \n",
    "braces": "{answer} {{ eos_token }} {% if %}",
    "only a newline": "\n",
    "empty": "",
}
CONVERSATIONS = {"initial": INITIAL, "correction": CORRECTION}

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_answer = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
each_conversation = pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())


def make_chat(family: Family) -> Chat:
    return Chat(family.tokenizer(), None, family.args)


def ids_of(chat: Chat, *tokens: str) -> set[int]:
    ids = chat.tokenizer.convert_tokens_to_ids(list(tokens))
    assert None not in ids
    return set(ids)


def spell(chat: Chat, ids: tuple[int, ...]) -> str:
    """Returns the text of ids, special tokens included."""
    return str(chat.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def user(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


@each_family
def test_prompt_ids_are_the_rendered_prompt(family: Family):
    chat = make_chat(family)
    assert spell(chat, chat.prompt(INITIAL)) == family.initial
    assert spell(chat, chat.prompt(CORRECTION)) == family.correction


@each_family
@each_conversation
@each_answer
def test_trained_tokens_are_the_answer_and_one_end_of_turn(family: Family, messages: list[Message], answer: str):
    chat = make_chat(family)
    *text, end = chat.completion(messages, answer)
    assert spell(chat, tuple(text)) == family.trained(answer)
    assert {end} == ids_of(chat, family.end)


@each_family
@each_conversation
@each_answer
def test_no_special_token_but_the_last_is_trained(family: Family, messages: list[Message], answer: str):
    chat = make_chat(family)
    completion = chat.completion(messages, answer)
    assert ids_of(chat, *family.special) & set(completion[:-1]) == set()
    assert ids_of(chat, *family.special) & set(chat.completion(messages, answer, ended=False)) == set()


@each_family
@each_conversation
@each_answer
def test_an_answer_cut_off_by_the_token_limit_is_trained_without_its_end(
    family: Family, messages: list[Message], answer: str
):
    chat = make_chat(family)
    assert spell(chat, chat.completion(messages, answer, ended=False)) == family.trained(answer)


@each_family
@each_conversation
def test_tokens_sampled_decoded_and_trained_are_the_same_tokens(family: Family, messages: list[Message]):
    chat = make_chat(family)
    sampled = chat.completion(messages, "Paris, déjà vu")
    assert chat.completion(messages, chat.decode(sampled)) == sampled


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.adds_bos], ids=lambda family: family.name)
@each_conversation
def test_the_beginning_of_text_is_written_once(family: Family, messages: list[Message]):
    chat = make_chat(family)
    (bos,) = ids_of(chat, str(family.bos))
    prompt = chat.prompt(messages)
    assert prompt[0] == bos
    assert prompt.count(bos) == 1
    assert bos not in chat.completion(messages, "Paris")


@each_family
def test_the_end_of_turn_stops_an_answer_beside_the_tokens_given(family: Family):
    tokenizer = family.tokenizer()
    (end,) = tokenizer.convert_tokens_to_ids([family.end])
    chat = Chat(tokenizer, None, family.args, stop_ids=[tokenizer.eos_token_id])
    assert chat.end_id == end
    assert chat.stop_ids == {end, tokenizer.eos_token_id}


@pytest.mark.parametrize("family", [GEMMA, MISTRAL, PHI3_MEDIUM, MISTRAL_V3], ids=lambda family: family.name)
def test_where_system_turns_are_refused_dropped_or_moved_the_text_heads_the_first_question(family: Family):
    chat = make_chat(family)
    folded = chat.prompt(user("Be brief.\n\nWhy?"))
    assert chat.prompt([{"role": "system", "content": "Be brief."}, *user("Why?")]) == folded


def test_the_gemma_template_itself_refuses_a_system_turn():
    with pytest.raises(Exception, match="System role not supported"):
        GEMMA.tokenizer().apply_chat_template(INITIAL, tokenize=False)


def test_a_refused_conversation_is_reported_with_the_words_of_the_template():
    chat = make_chat(MISTRAL)
    with pytest.raises(ValueError, match=r"must alternate.*set model\.chat_template"):
        chat.prompt([*user("one"), *user("two")])


def test_template_args_reach_the_template():
    chat = Chat(LLAMA3_2.tokenizer(), None, {"date_string": "2 May 2026"})
    assert "Today Date: 2 May 2026\n" in spell(chat, chat.prompt(INITIAL))


def test_a_default_system_text_of_the_template_gives_way_to_the_prompts():
    chat = make_chat(QWEN2_5)
    assert "created by Alibaba Cloud" in spell(chat, chat.prompt(user("Why?")))
    assert "created by Alibaba Cloud" not in spell(chat, chat.prompt(INITIAL))


def test_a_reasoned_answer_is_trained_with_its_reasoning_as_it_was_sampled():
    chat = make_chat(QWEN3_THINKING)
    answer = "<think>\nÎle?\nThen Paris.\n</think>\n\nParis"
    assert spell(chat, chat.completion(CORRECTION, answer)) == answer + "<|im_end|>"


# The prompt has to be what the whole conversation begins with.


OPENS_A_THOUGHT = chatml("").replace("assistant\n' }}", "assistant\n<think>\n' }}")


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(OPENS_A_THOUGHT, id="the prompt opens a thought that the conversation lacks"),
        pytest.param(
            "{% for m in messages %}{{ m.role + (':' if loop.last else ';') + m.content + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
            id="a turn changes when another follows",
        ),
        pytest.param(
            "{% for m in messages[-2:] %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
            id="only the last two turns are kept",
        ),
    ],
)
def test_a_template_whose_prompt_is_not_a_prefix_is_refused_before_any_sampling(template: str):
    tokenizer = SMOLLM2.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=r"not a prefix of the whole conversation.*model\.chat_template"):
        Chat(tokenizer, None, {})


def test_a_prefix_that_breaks_for_one_answer_only_is_refused_there():
    tokenizer = SMOLLM2.tokenizer()
    tokenizer.chat_template = "{{ 'odd ' if 'odd' in messages[-1].content }}" + chatml("")
    chat = Chat(tokenizer, None, {})
    assert chat.completion(user("Why?"), "even")
    with pytest.raises(ValueError, match="not a prefix"):
        chat.completion(user("Why?"), "odd")


# Tokens that reach over the boundary of prompt and answer.


@pytest.mark.parametrize("ended", [True, False])
def test_a_token_across_the_boundary_leaves_the_prompt_as_sampled_and_trains_exactly_the_answer(ended: bool):
    tokenizer = byte_tokenizer(SMOLLM2.special, eos="<|im_end|>", merges=[("Ċ", "Ċ")])
    tokenizer.chat_template = chatml("")
    chat = Chat(tokenizer, None, {})
    prompt = chat.prompt(INITIAL)
    assert spell(chat, prompt) == CHATML_INITIAL
    whole = tuple(tokenizer(CHATML_INITIAL + "\nParis", add_special_tokens=False)["input_ids"])
    assert whole[: len(prompt)] != prompt, "the case is not the one that is meant"

    completion = chat.completion(INITIAL, "\nParis", ended=ended)

    assert spell(chat, completion) == "\nParis" + "<|im_end|>" * ended
    assert spell(chat, prompt + completion) == CHATML_INITIAL + "\nParis" + "<|im_end|>" * ended


@pytest.mark.parametrize("answer", ["Paris", "(Paris)", "\nParis"])
def test_a_sentencepiece_tokenizer_trains_exactly_the_answer(answer: str):
    pieces = ["<unk>", "<s>", "</s>", "▁", "\n", "](", *sorted(set("▁[INST] Why?[/INST](Paris)") - {"▁", " "})]
    bpe = Tokenizer(
        models.BPE(vocab={piece: id_ for id_, piece in enumerate(pieces)}, merges=[("]", "(")], unk_token="<unk>")
    )
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    tokenizer.chat_template = MISTRAL.template
    chat = Chat(tokenizer, None, {})

    *text, end = chat.completion(user("Why?"), answer)

    assert chat.decode(text) == answer
    assert end == tokenizer.eos_token_id


@given(st.lists(st.text(st.sampled_from("aé 🏝\n\tPris"))).map("".join))
def test_any_text_is_trained_as_it_was_decoded(answer: str):
    *text, end = SMOL.completion(CORRECTION, answer)
    assert SMOL.decode(text) == answer == SMOL.decode([*text, end])


SMOL = make_chat(SMOLLM2)


def test_decoding_leaves_spaces_before_punctuation_alone():
    pieces = [(piece, -1.0) for piece in ["<unk>", "</s>", "▁", *"Paris,?"]]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    unigram.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram, eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=True
    )
    text = "Paris , Paris ?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == "Paris, Paris?", "the tokenizer would tidy up"
    assert Chat(tokenizer, "plain", {}).decode(ids) == text


# Base models, and templates from elsewhere.


def base_tokenizer(*, adds_bos: bool) -> PreTrainedTokenizerFast:
    return byte_tokenizer(("<s>", "</s>"), eos="</s>", bos="<s>", adds_bos=adds_bos, merges=[(":", "Ġ"), ("Ċ", "Ċ")])


def test_a_tokenizer_without_template_says_which_setting_gives_one():
    with pytest.raises(ValueError, match=r"no chat template.*set model\.chat_template=plain"):
        Chat(base_tokenizer(adds_bos=True), None, {})


@pytest.mark.parametrize(("adds_bos", "begin"), [(True, "<s>"), (False, "")])
def test_plain_writes_question_and_answer_lines_and_a_bos_only_if_the_tokenizer_adds_one(adds_bos: bool, begin: str):
    chat = Chat(base_tokenizer(adds_bos=adds_bos), "plain", {})
    first = begin + "Réponds\nbrièvement.\n\nQuestion: Où est l'île\n{x}?\nAnswer:"
    assert spell(chat, chat.prompt(INITIAL)) == first
    assert spell(chat, chat.prompt(CORRECTION)) == first + " Là-bas 🏝\nQuestion: Vérifie.\nAnswer:"
    assert spell(chat, chat.prompt(user("Why?"))) == begin + "Question: Why?\nAnswer:"


@each_answer
def test_plain_trains_the_answer_after_a_space_and_the_end_of_text(answer: str):
    chat = Chat(base_tokenizer(adds_bos=True), "plain", {})
    assert spell(chat, chat.completion(CORRECTION, answer)) == f" {answer.strip()}</s>"
    assert spell(chat, chat.completion(CORRECTION, answer, ended=False)) == f" {answer.strip()}"
    assert chat.stop_ids == ids_of(chat, "</s>")


def test_a_jinja_file_replaces_the_tokenizers_template(tmp_path: Path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}«{{ m.role }}»{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}«assistant»{% endif %}",
        encoding="utf-8",
    )
    tokenizer = base_tokenizer(adds_bos=False)
    tokenizer.chat_template = LLAMA3.template
    chat = Chat(tokenizer, str(file), {})
    assert spell(chat, chat.prompt(user("Why?"))) == "«user»Why?</s>«assistant»"
    assert spell(chat, chat.completion(user("Why?"), "So")) == "So</s>"


def test_a_path_that_is_not_there_is_named_with_its_setting(tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(f"model.chat_template={tmp_path}/no.jinja: neither 'plain' nor")):
        Chat(base_tokenizer(adds_bos=True), f"{tmp_path}/no.jinja", {})


def test_a_file_that_is_no_text_is_named_with_its_setting(tmp_path: Path):
    (tmp_path / "weights.bin").write_bytes(b"\x80\xff")
    with pytest.raises(ValueError, match=re.escape(f"model.chat_template={tmp_path}/weights.bin: neither 'plain'")):
        Chat(base_tokenizer(adds_bos=True), f"{tmp_path}/weights.bin", {})


def test_a_template_with_a_syntax_error_is_reported_with_its_setting(tmp_path: Path):
    (tmp_path / "bad.jinja").write_text("{% for m in %}")
    with pytest.raises(ValueError, match=r"set model\.chat_template"):
        Chat(base_tokenizer(adds_bos=True), f"{tmp_path}/bad.jinja", {})


def test_a_template_without_an_end_takes_the_tokenizers_end_of_text():
    tokenizer = base_tokenizer(adds_bos=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
    chat = Chat(tokenizer, None, {})
    assert chat.end_id == tokenizer.eos_token_id
    assert chat.completion(user("Why?"), "So")[-1] == tokenizer.eos_token_id


def test_an_answer_that_could_never_end_is_refused():
    tokenizer = byte_tokenizer((), eos=None)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
    with pytest.raises(ValueError, match=r"no answer would ever end: set model\.chat_template"):
        Chat(tokenizer, None, {})
