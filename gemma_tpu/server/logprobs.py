"""Log-probabilities of an answer's tokens in OpenAI's shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from gemma_tpu.options import TokenLogprob
from gemma_tpu.text import Tokenizer


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Of a chat's choice. A token may be part of a character: its `bytes` are exact."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        ((text, name),) = tokenizer.spell([token])
        return {"token": name or text.decode(errors="replace"), "logprob": logprob, "bytes": list(text)}

    content = [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(*other) for other in one.top]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """Of a completion's choice; `offset`: characters of its tokens before these.

    As in OpenAI's API, the likeliest tokens are by their text, and the one that was drawn is among them.
    """

    def spelled(token: int) -> str:
        ((text, name),) = tokenizer.spell([token])
        return name or text.decode(errors="replace")

    texts = [spelled(one.token) for one in tokens]
    tops = []
    for one in tokens:
        likeliest = [*one.top, (one.token, one.logprob)]
        tops.append({spelled(token): logprob for token, logprob in sorted(likeliest, key=lambda pair: pair[1])})
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": tops,
        "text_offset": list(itertools.accumulate(map(len, texts), initial=offset))[:-1],
    }
