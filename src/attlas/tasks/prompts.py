"""Chat prompts as token pieces around free contents: the tokenizer's template, or plain text."""

from typing import Any

from attlas._common.errors import UsageError

__all__ = ["encode", "plain_pieces", "prompt_pieces"]

_SLOT = "attlasslot{}end"


def encode(tokenizer: Any, text: str, *, special: bool = False) -> tuple[int, ...]:
    """Token ids of `text` and nothing added; `special`: special tokens written in it count as such."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not special, verbose=False).input_ids
    return tuple(int(token) for token in ids)


def prompt_pieces(tokenizer: Any, turns: int) -> list[tuple[int, ...]]:
    """The 2 * turns + 1 fixed pieces of a chat: p0 user1 p1 answer1 p2 user2 p3 answer2 ... p_last.

    With a chat template it is rendered once with slots for the contents and cut at them, so that a long
    context can be inserted as token ids. Without: `plain_pieces`.
    Raises UsageError if the template does not show every message once and in order.
    """
    if turns < 1:
        raise ValueError(f"turns must be >= 1, got {turns}")
    if not getattr(tokenizer, "chat_template", None):
        return plain_pieces(tokenizer, turns)
    roles = ("user", "assistant")
    slots = [_SLOT.format(index) for index in range(2 * turns)]
    messages = [{"role": roles[index % 2], "content": slot} for index, slot in enumerate(slots)]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:
        raise UsageError(f"the tokenizer's chat template fails: {error}; {_REMEDY}") from error
    pieces = []
    for slot in slots:
        if text.count(slot) != 1:
            raise UsageError(f"the tokenizer's chat template drops, repeats or reorders messages; {_REMEDY}")
        before, text = text.split(slot)
        pieces.append(before)
    return [encode(tokenizer, piece, special=True) for piece in [*pieces, text]]


_REMEDY = "set tokenizer.chat_template = None to use plain question-and-answer prompts"


def plain_pieces(tokenizer: Any, turns: int) -> list[tuple[int, ...]]:
    """The same pieces for a model without chat template: "Question:" and "Answer:" lines."""
    start = [token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id]
    middle, between = encode(tokenizer, "\nAnswer:"), encode(tokenizer, "\n\nQuestion:")
    return [tuple(start), *[middle if index % 2 == 0 else between for index in range(2 * turns - 1)], ()]
