"""Bodies of requests → checked values, or an error that names the field."""

from __future__ import annotations

import json
import logging
from typing import Any, TypeVar

import pydantic

from gemma_tpu.server.errors import APIError
from gemma_tpu.server.fields import UNSUPPORTED

_LOG = logging.getLogger(__name__)
_CODES = {UNSUPPORTED: "unsupported_parameter", "extra_forbidden": "unknown_parameter"}
_CODES["missing"] = "missing_required_parameter"
RequestT = TypeVar("RequestT", bound=pydantic.BaseModel)


def parse(body: bytes, kind: type[RequestT], *, lenient: bool = False) -> RequestT:
    """APIError for a body that is no JSON object or not of this kind.

    With `lenient`, fields that OpenAI's API does not have are left out, and a warning names them.
    """
    try:
        given = json.loads(body, parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(given, ensure_ascii=False).encode()  # fails for half a surrogate pair, which is no text
    except UnicodeEncodeError as error:
        raise APIError(400, "the body has half a surrogate pair", code="invalid_json") from error
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is no JSON: {error}", code="invalid_json") from error
    if not isinstance(given, dict):
        raise APIError(400, f"the body must be a JSON object, got {type(given).__name__}", code="invalid_json")
    try:
        try:
            return kind.model_validate(given)
        except pydantic.ValidationError as error:
            if not lenient or not _without_unknown(given, error):
                raise
        return kind.model_validate(given)
    except pydantic.ValidationError as error:
        raise _explained(error, kind) from None  # whose message repeats what was sent


def _without_unknown(given: dict[str, Any], error: pydantic.ValidationError) -> bool:
    """Removes the fields from `given` that are not known, if there are any."""
    unknown = [found["loc"] for found in error.errors(include_url=False) if found["type"] == "extra_forbidden"]
    for place in map(_keys, unknown):
        *path, last = place
        holder: Any = given
        for key in path:
            holder = holder[key]
        del holder[last]
        _LOG.warning("ignored the unknown field %r", _name(place)[:100])
    return bool(unknown)


def _explained(error: pydantic.ValidationError, kind: type[pydantic.BaseModel]) -> APIError:
    found = error.errors(include_url=False)[0]
    place = _keys(found["loc"])
    if not place and found["type"] in kind.model_fields:  # of several fields together
        place = (found["type"],)
    param, said = _name(place), found["msg"]
    if found["type"] == "extra_forbidden":
        said = "is not a field of this request"
    return APIError(400, f"{param}: {said}", param=param or None, code=_CODES.get(found["type"], "invalid_value"))


def _keys(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Without pydantic's tags of unions, which are in <>, and what it calls a key of an object."""
    return tuple(key for key in place if not (isinstance(key, str) and (key.startswith("<") or key == "[key]")))


def _name(place: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") → "messages[0].content"."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
