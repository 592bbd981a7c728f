"""The chat templates of the model families, and what each makes of the same two conversations, written out by hand.

The templates are the published ones for conversations of text without tools, in a shorter form. Each family has a
byte-level tokenizer with its special tokens, so that everything that is encoded can be decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stasc.tasks.prompt import Message

INITIAL: list[Message] = [
    {"role": "system", "content": "Réponds\nbrièvement."},
    {"role": "user", "content": " Où est l'île\n{x}? "},
]
CORRECTION: list[Message] = [
    *INITIAL,
    {"role": "assistant", "content": "  Là-bas 🏝\n"},
    {"role": "user", "content": "Vérifie."},
]


@dataclass(frozen=True)
class Family:
    """A chat template, its tokenizer's special tokens, and what is expected of both.

    `initial` and `correction` are the prompts of INITIAL and CORRECTION. `trained` says what is left of an answer, and
    `end` is the token after it. `swallows` are special tokens that take the white space after them. `thinking` tokens
    are added but not special, as in Qwen3.
    """

    name: str
    template: str
    special: tuple[str, ...]
    end: str
    eos: str
    initial: str
    correction: str
    trained: Callable[[str], str]
    bos: str | None = None
    adds_bos: bool = False
    swallows: tuple[str, ...] = ()
    thinking: tuple[str, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        fast = byte_tokenizer(
            [AddedToken(text, special=True, normalized=False, rstrip=text in self.swallows) for text in self.special],
            eos=self.eos,
            bos=self.bos,
            adds_bos=self.adds_bos,
            merges=[("Ċ", "Ċ"), ("P", "a"), ("Pa", "r"), ("i", "s"), ("Ġ", "Ġ"), ("Ġ", "P")],
        )
        fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in self.thinking])
        fast.chat_template = self.template
        return fast


def byte_tokenizer(
    special: Sequence[AddedToken | str],
    *,
    eos: str | None,
    bos: str | None = None,
    adds_bos: bool = False,
    merges: Sequence[tuple[str, str]] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the `merges` given. They cross words, since the text is not split before."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    bpe = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(alphabet)}, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(special))
    if adds_bos:
        assert bos is not None
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, bos_token=bos)


def chatml(initial_system: str) -> str:
    """Turns of <|im_start|> to <|im_end|>, begun by `initial_system` where the conversation has no system turn."""
    return (
        "{% if messages[0].role != 'system' %}<|im_start|>system\n" + initial_system + "<|im_end|>\n{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


CHATML_INITIAL = (
    "<|im_start|>system\nRéponds\nbrièvement.<|im_end|>\n"
    "<|im_start|>user\n Où est l'île\n{x}? <|im_end|>\n"
    "<|im_start|>assistant\n"
)
CHATML_CORRECTION = (
    "<|im_start|>system\nRéponds\nbrièvement.<|im_end|>\n"
    "<|im_start|>user\n Où est l'île\n{x}? <|im_end|>\n"
    "<|im_start|>assistant\n  Là-bas 🏝\n<|im_end|>\n"
    "<|im_start|>user\nVérifie.<|im_end|>\n"
    "<|im_start|>assistant\n"
)

SMOLLM2 = Family(
    name="SmolLM2",
    template=chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos="<|im_start|>",  # by name only: the tokenizer does not add it
    eos="<|im_end|>",
    end="<|im_end|>",
    initial=CHATML_INITIAL,
    correction=CHATML_CORRECTION,
    trained=lambda answer: answer,
)

QWEN2_5 = Family(
    name="Qwen2.5",
    template=chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    end="<|im_end|>",
    initial=CHATML_INITIAL,
    correction=CHATML_CORRECTION,
    trained=lambda answer: answer,
)

# An answer is split at </think>; its reasoning is kept only after the last question, where there always is a block.
QWEN3_TEMPLATE = """\
{%- set last = namespace(query=messages|length - 1, found=false) -%}
{%- for m in messages|reverse -%}
{%- if m.role == 'user' and not last.found -%}
{%- set last.found = true -%}{%- set last.query = messages|length - 1 - loop.index0 -%}
{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- set content, reasoning = m.content, '' -%}
{%- if m.role == 'assistant' and '</think>' in content -%}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.role == 'assistant' and loop.index0 > last.query -%}
{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') -}}
{%- else -%}
{{- content -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' -}}{% endif -%}
{%- endif -%}
"""

QWEN3 = Family(
    name="Qwen3",
    template=QWEN3_TEMPLATE,
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    thinking=("<think>", "</think>"),
    args={"enable_thinking": False},
    eos="<|im_end|>",
    end="<|im_end|>",
    initial=CHATML_INITIAL + "<think>\n\n</think>\n\n",
    correction=CHATML_CORRECTION + "<think>\n\n</think>\n\n",
    trained=lambda answer: answer.lstrip("\n"),
)

QWEN3_THINKING = Family(
    name="Qwen3, thinking",
    template=QWEN3_TEMPLATE,
    special=QWEN3.special,
    thinking=QWEN3.thinking,
    eos="<|im_end|>",
    end="<|im_end|>",
    initial=CHATML_INITIAL,
    correction=CHATML_CORRECTION,
    trained=lambda answer: "<think>\n\n</think>\n\n" + answer.lstrip("\n"),  # of an answer without a block of its own
)

LLAMA3_TURNS = (
    "{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content|trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

LLAMA3 = Family(
    name="Llama-3",
    template="{{ bos_token }}" + LLAMA3_TURNS,
    special=LLAMA3_SPECIAL,
    bos="<|begin_of_text|>",
    adds_bos=True,
    eos="<|end_of_text|>",  # as first released: the turn ends in another token than the text
    end="<|eot_id|>",
    initial=(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nRéponds\nbrièvement.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nOù est l'île\n{x}?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    correction=(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nRéponds\nbrièvement.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nOù est l'île\n{x}?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nLà-bas 🏝<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nVérifie.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    trained=lambda answer: answer.strip(),
)

LLAMA3_2 = Family(
    name="Llama-3.2",
    template=(
        "{{ bos_token }}"
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{% if messages[0].role == 'system' %}"
        "{% set system, messages = messages[0].content|trim, messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' }}"
        "{{ date_string + '\n\n' + system + '<|eot_id|>' }}" + LLAMA3_TURNS
    ),
    special=LLAMA3_SPECIAL,
    args={"date_string": "1 Apr 2025"},
    bos="<|begin_of_text|>",
    adds_bos=True,
    eos="<|eot_id|>",
    end="<|eot_id|>",
    initial=(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 1 Apr 2025\n\nRéponds\nbrièvement.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nOù est l'île\n{x}?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    correction=(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 1 Apr 2025\n\nRéponds\nbrièvement.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nOù est l'île\n{x}?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nLà-bas 🏝<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nVérifie.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    trained=lambda answer: answer.strip(),
)

PHI3_SPECIAL = ("<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|user|>", "<|end|>")

# The newline after a role's token, and all white space before an answer, is part of that token.
PHI3 = Family(
    name="Phi-3-mini",
    template=(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    special=PHI3_SPECIAL,
    swallows=("<|assistant|>", "<|system|>", "<|user|>", "<|end|>"),
    bos="<s>",  # neither the tokenizer nor the template writes it
    eos="<|endoftext|>",
    end="<|end|>",
    initial="<|system|>Réponds\nbrièvement.<|end|><|user|>Où est l'île\n{x}? <|end|><|assistant|>",
    correction=(
        "<|system|>Réponds\nbrièvement.<|end|><|user|>Où est l'île\n{x}? <|end|><|assistant|>"
        "Là-bas 🏝\n<|end|><|user|>Vérifie.<|end|><|assistant|>"
    ),
    trained=lambda answer: answer.lstrip(),
)

# It has no system turns and drops them; the assistant's turn is opened by the user's.
PHI3_MEDIUM = Family(
    name="Phi-3-medium",
    template=(
        "{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n<|assistant|>\n' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + '<|end|>\n' }}{% endif %}"
        "{% endfor %}"
    ),
    special=PHI3_SPECIAL,
    swallows=("<|assistant|>", "<|system|>", "<|user|>", "<|end|>"),
    bos="<s>",
    eos="<|endoftext|>",
    end="<|end|>",
    initial="<|user|>Réponds\nbrièvement.\n\n Où est l'île\n{x}? <|end|><|assistant|>",
    correction=(
        "<|user|>Réponds\nbrièvement.\n\n Où est l'île\n{x}? <|end|><|assistant|>"
        "Là-bas 🏝\n<|end|><|user|>Vérifie.<|end|><|assistant|>"
    ),
    trained=lambda answer: answer.lstrip(),
)

MUST_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)

GEMMA = Family(
    name="Gemma",
    template=(
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}" + MUST_ALTERNATE + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content|trim + '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    adds_bos=True,
    eos="<eos>",
    end="<end_of_turn>",
    initial=(
        "<bos><start_of_turn>user\nRéponds\nbrièvement.\n\n Où est l'île\n{x}?<end_of_turn>\n<start_of_turn>model\n"
    ),
    correction=(
        "<bos><start_of_turn>user\nRéponds\nbrièvement.\n\n Où est l'île\n{x}?<end_of_turn>\n"
        "<start_of_turn>model\nLà-bas 🏝<end_of_turn>\n"
        "<start_of_turn>user\nVérifie.<end_of_turn>\n<start_of_turn>model\n"
    ),
    trained=lambda answer: answer.strip(),
)

MISTRAL = Family(
    name="Mistral-v0.2",
    template=(
        "{{ bos_token }}{% for m in messages %}" + MUST_ALTERNATE + "{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
        "{% endfor %}"
    ),
    special=("<unk>", "<s>", "</s>"),
    bos="<s>",
    adds_bos=True,
    eos="</s>",
    end="</s>",
    initial="<s>[INST] Réponds\nbrièvement.\n\n Où est l'île\n{x}?  [/INST]",
    correction=(
        "<s>[INST] Réponds\nbrièvement.\n\n Où est l'île\n{x}?  [/INST]  Là-bas 🏝\n</s>[INST] Vérifie. [/INST]"
    ),
    trained=lambda answer: answer,
)

# The system text stands in the last user turn, and is gone once an answer follows: not where it would be sampled.
MISTRAL_V3 = Family(
    name="Mistral-v0.3",
    template=(
        "{% if messages[0].role == 'system' %}{% set system, messages = messages[0].content, messages[1:] %}{% endif %}"
        "{{ bos_token }}{% for m in messages %}" + MUST_ALTERNATE + "{% if m.role == 'user' %}"
        "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}"
        "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content|trim + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
        "{% endfor %}"
    ),
    special=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    bos="<s>",
    adds_bos=True,
    eos="</s>",
    end="</s>",
    initial="<s>[INST] Réponds\nbrièvement.\n\n Où est l'île\n{x}? [/INST]",
    correction=("<s>[INST] Réponds\nbrièvement.\n\n Où est l'île\n{x}? [/INST] Là-bas 🏝</s>[INST] Vérifie.[/INST]"),
    trained=lambda answer: " " + answer.strip(),
)

FAMILIES = (
    SMOLLM2,
    QWEN2_5,
    QWEN3,
    QWEN3_THINKING,
    LLAMA3,
    LLAMA3_2,
    PHI3,
    PHI3_MEDIUM,
    GEMMA,
    MISTRAL,
    MISTRAL_V3,
)
