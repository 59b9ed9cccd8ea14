"""What clients are told when something is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gemma_tpu.engine.errors import ContextLengthError

_PLACE = re.compile(r"messages\[(\d+)\]((?:\.(?:content|tool_calls)\[\d+\])?): ")
_OPTION = re.compile(r"(?:tools(?:\[\d+\])?|allowed_token_ids|bad_words|logit_bias|min_tokens|stop_tokens)(?=[: ])")
_CONTINUE = ", or continue it (continue_final)"


class APIError(Exception):
    """What a client is told. `param` names the field, `code` the kind of error; `retry_after`: seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def openai_body(error: APIError, _: str) -> dict[str, Any]:
    """The error in OpenAI's shape."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(error.status, "invalid_request_error")
    kind = "server_error" if error.status >= 500 else kind
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def refused(error: ValueError, field: str, places: Sequence[int | None] | None = None) -> APIError:
    """What the library has against the prompt that came in `field`.

    `places`: where in `field` each message of the prompt is from; None for the system text, which is elsewhere.
    """
    continued = "" if field == "input" else ", or continue it (continue_final_message)"
    said, place = str(error).replace(_CONTINUE, continued), None
    if found := _PLACE.match(said):
        index = int(found[1]) if places is None else places[int(found[1])]
        place = f"{field}[{index}]{found[2]}" if index is not None else None
        said = f"{place or 'the system text'}: {said[found.end() :]}"
    elif found := _OPTION.match(said):
        place = found[0].replace("stop_tokens", "stop_token_ids")
        said = f"{place}{said[found.end() :]}"
    code = "context_length_exceeded" if isinstance(error, ContextLengthError) else "invalid_value"
    return APIError(400, said, param=place or field, code=code)
