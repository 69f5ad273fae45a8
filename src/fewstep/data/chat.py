"""Conversations as text, by the chat template that comes with a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
"""One turn: its `role`, such as "user", and its `content`."""


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, awaiting_answer: bool = False
) -> str:
    """Return a conversation as text; with `awaiting_answer`, up to where the next answer begins.

    Raises:
        ValueError: if the tokenizer has no chat template, or its template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template; set its chat_template and save it again, or write "
            "prompts as plain text"
        )
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=awaiting_answer
        )
    except Exception as error:  # templates are programs, and raise what they like
        raise ValueError(f"the chat template refuses the messages: {str(error).splitlines()[0]}") from error
    return text


def questions(tokenizer: PreTrainedTokenizerBase, prompts: str | Sequence[str]) -> list[str]:
    """Return prompts as first messages of a user, each up to where the answer begins.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """
    texts = [prompts] if isinstance(prompts, str) else prompts
    return [rendered(tokenizer, [{"role": "user", "content": text}], awaiting_answer=True) for text in texts]


def prompt_and_response(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str]:
    """Return the text before the last message's content, and the rest: that content and its end.

    Raises:
        ValueError: if the template writes the beginning of a conversation differently once it is answered.
    """
    prompt = rendered(tokenizer, messages[:-1], awaiting_answer=True)
    whole = rendered(tokenizer, messages)
    if not whole.startswith(prompt):
        raise ValueError(
            "the chat template changes a conversation's beginning when its answer is added, so that the "
            "answer cannot be told from it; set another chat_template"
        )
    return prompt, whole[len(prompt) :]


def up_to_separator(ids: Sequence[int], separator: Any, start: int = 0) -> list[int]:
    """Return the ids before the first `separator` at or behind `start`; all of them if there is none."""
    ids = list(ids)
    return ids[: ids.index(separator, start)] if separator in ids[start:] else ids
