"""A user's models, texts and templates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import json_rows, read_text
from polyloom.data.dictionaries import language_name
from polyloom.generation.decode import max_positions
from polyloom.models.load import load_model, load_tokenizer, model_kind

TEMPLATES = {
    "translate": (
        "Translate the following sentence from {{ source_lang }} to {{ target_lang }}.\n"
        "{{ source_lang }}: {{ source }}\n{{ target_lang }}:"
    ),
    "summarize": ("Summarize the following {{ source_lang }} text in {{ target_lang }}.\nText: {{ source }}\nSummary:"),
    "tag": (
        "Tag each word of the {{ target_lang }} sentence with its universal part of speech.\n"
        "Sentence: {{ source }}\nTags:"
    ),
}
URIAL_HEAD = (
    "Below is a list of conversations between a user and an expert assistant. The user asks in the section "
    '"# Query:", and the assistant answers precisely in the section "# Answer:".\n\n'
)


@dataclass(frozen=True)
class Item:
    """One input: its id, source text and, where the file has one, reference."""

    id: str
    source: str
    reference: str = ""


@dataclass(frozen=True)
class Loaded:
    """A local model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def encoder_decoder(self) -> bool:
        """Whether the prompt feeds an encoder."""
        return bool(self.model.config.is_encoder_decoder)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a prompt with the tokenizer's own special tokens: one beginning, and no end behind a causal prompt."""
        ids: list[int] = list(self.tokenizer(text, verbose=False)["input_ids"])
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if self.encoder_decoder:
            return ids
        if len(ids) > 1 and ids[-1] == eos:
            ids = ids[:-1]
        return ids or ([bos] if bos is not None else [])


def load(source: str, option: str, *, trust_remote_code: bool = False) -> Loaded:
    """Load a causal or encoder-decoder model with its tokenizer.

    Raises:
        UserError: none is named, or it cannot be read.
    """
    if not source:
        raise UserError("needs a model.", where=option, hint="Name a Hugging Face folder or hub id.")
    kind = model_kind(source, trust_remote_code=trust_remote_code)
    model = load_model(source, kind, device="auto", trust_remote_code=trust_remote_code)
    return Loaded(model, load_tokenizer(source, model, trust_remote_code=trust_remote_code))


def read_items(path: Path | None, text_field: str, reference_field: str, encoding: str = "utf-8") -> list[Item]:
    """Read inputs: JSON lines with ids and references, or plain text, one a line.

    Raises:
        UserError: none given, unreadable, empty, or a line without the field.
    """
    if path is None:
        raise UserError("no texts were given.", where="--input", hint="Name a file, or - for standard input.")
    text = sys.stdin.read() if str(path) == "-" else read_text(path, encoding)
    lines = [(n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError("holds no text.", where=str(path), hint="Give one text a line, or JSON lines.")
    if path.suffix != ".jsonl" and not lines[0][1].lstrip().startswith("{"):
        return [Item(str(n), line) for n, line in lines]
    items = []
    for number, row in json_rows(text, path):
        source = row.get(text_field)
        if not isinstance(source, str) or not source.strip():
            hint = f"Its keys are: {', '.join(map(str, row))}."
            raise UserError(f"has no text under {text_field!r}.", where=f"{path}:{number}", hint=hint)
        reference = row.get(reference_field)
        items.append(Item(str(row.get("id", number)), source, reference if isinstance(reference, str) else ""))
    return items


def read_json_lines(path: Path, encoding: str = "utf-8") -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line.

    Raises:
        UserError: unreadable, empty, or a line that is no object.
    """
    rows = [row for _, row in json_rows(read_text(path, encoding), path)]
    if not rows:
        raise UserError("holds no line.", where=str(path))
    return rows


def render_prompts(template: str, items: Sequence[Item], source_language: str, target_language: str) -> list[str]:
    """Fill a Jinja template with each source and the languages' English names.

    Raises:
        UserError: the template is broken, lacks its slot, or names something unknown; an unknown language code.
    """
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        slots = meta.find_undeclared_variables(environment.parse(template))
        if "source" not in slots:
            raise UserError("the template has no slot for the source.", where="--template", hint="Write {{ source }}.")
        compiled = environment.from_string(template)
        names = {
            "source_lang": language_name(source_language, "--source-language"),
            "target_lang": language_name(target_language) if target_language or "target_lang" in slots else "",
        }
        return [compiled.render(source=item.source, **names) for item in items]
    except TemplateError as error:
        raise UserError(
            f"the template fails: {error}.", where="--template", hint="Slots: source, source_lang, target_lang."
        ) from error


def in_context(prompts: Sequence[str], shown: Sequence[tuple[str, str]], style: str) -> list[str]:
    """Put examples in front of prompts: one after the other, or in the sections of a URIAL-like transcript.

    Args:
        prompts: the prompts.
        shown: prompt and answer of each example.
        style: `plain` or `urial`.
    """
    if style == "urial":
        head = URIAL_HEAD + "".join(f"# Query:\n{prompt}\n\n# Answer:\n{answer}\n\n" for prompt, answer in shown)
        return [f"{head}# Query:\n{prompt}\n\n# Answer:\n" for prompt in prompts]

    def joined(prompt: str, answer: str) -> str:
        return f"{prompt}{'' if prompt[-1:].isspace() else ' '}{answer}\n\n"

    head = "".join(joined(prompt, answer) for prompt, answer in shown)
    return [head + prompt for prompt in prompts]


def fit_prompts(loaded: Loaded, prompts: Sequence[list[int]], budget: int) -> tuple[list[list[int]], int]:
    """Cut prompts that leave no room for the answer at their beginning, behind the first token.

    Returns:
        The prompts, and how many were cut.
    """
    limit = max_positions(loaded.model)
    if limit is None or loaded.encoder_decoder:
        return list(prompts), 0
    room = limit - budget + 1
    if room < 2:
        hint = "Lower --max-new-tokens."
        raise UserError(
            f"a budget of {budget} tokens leaves no room in {limit} positions.", where="--max-new-tokens", hint=hint
        )
    cut = [prompt if len(prompt) <= room else [prompt[0], *prompt[len(prompt) - room + 1 :]] for prompt in prompts]
    return cut, sum(len(a) != len(b) for a, b in zip(cut, prompts, strict=True))


def first_difference(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> str:
    """Say where two tokenizers first differ: the lowest id whose token is another; empty if they are the same.

    Tokens that one of them has on top of the other's are no difference.
    """
    left, right = ({i: t for t, i in one.get_vocab().items()} for one in (a, b))
    for index in sorted(left.keys() & right.keys()):
        if left[index] != right[index]:
            return f"id {index} is {left[index]!r} in the base and {right[index]!r} in the SFT tokenizer"
    return ""
