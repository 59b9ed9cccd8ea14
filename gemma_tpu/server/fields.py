"""Types of the fields of requests."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

UNSUPPORTED = "unsupported"  # type of a pydantic error


def only(*neutral: Any) -> Any:
    """The type of a field that is not supported. null and `neutral` ask for nothing, and are accepted."""

    def check(value: Any) -> None:
        if value is not None and value not in neutral:
            raise PydanticCustomError(UNSUPPORTED, "is not supported by this server: leave it out")

    return Annotated[Any, AfterValidator(check), Field(default=None)]


def either(text: Any, items: Any) -> Any:
    """A string, or a list or an object. The tags, in the places of errors, are left out by `gemma_tpu.server.body`."""
    text, items = Annotated[text, Tag("<text>")], Annotated[items, Tag("<list>")]
    return Annotated[
        text | items,  # pyright: ignore[reportOperatorIssue]
        Discriminator(lambda value: "<list>" if isinstance(value, list | dict) else "<text>"),
    ]


class Strict(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
