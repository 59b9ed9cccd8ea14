"""Log-probabilities of an answer's tokens in OpenAI's shapes."""

from __future__ import annotations

import itertools
import math
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

    As in OpenAI's API, the likeliest tokens are by their text, and the one that was drawn is among them. A
    log-probability that is NaN is null.
    """
    texts = [_spelled(tokenizer, one.token) for one in tokens]
    tops = []
    for one in tokens:
        likeliest = sorted([*one.top, (one.token, one.logprob)], key=lambda pair: pair[1])
        top = {_spelled(tokenizer, token): logprob for token, logprob in likeliest}
        tops.append(None if math.isnan(one.logprob) else top)
    return {
        "tokens": texts,
        "token_logprobs": [None if math.isnan(one.logprob) else one.logprob for one in tokens],
        "top_logprobs": tops,
        "text_offset": list(itertools.accumulate(map(len, texts), initial=offset))[:-1],
    }


def prompt_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any] | None]:
    """Of a prompt, in vLLM's shape: by ids, the prompt's own token first; None where there is none.

    A `rank` is 1 for the likeliest, and null for a token that is not among those asked for.
    """

    def entries(one: TokenLogprob) -> dict[str, Any] | None:
        if math.isnan(one.logprob):
            return None
        ranks = {token: rank for rank, (token, _) in enumerate(one.top, 1)}
        return {
            str(token): {"logprob": logprob, "rank": ranks.get(token), "decoded_token": _spelled(tokenizer, token)}
            for token, logprob in dict([(one.token, one.logprob), *one.top]).items()
        }

    return [entries(one) for one in tokens]


def _spelled(tokenizer: Tokenizer, token: int) -> str:
    ((text, name),) = tokenizer.spell([token])
    return name or text.decode(errors="replace")
