"""Pictures as the model sees them: the whole one, and crops of one that is far from square."""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any

import pydantic
from PIL import Image

import gemma_tpu
from gemma_tpu import Model

# Any other string would be read as a path on this machine.
Picture = Annotated[str, pydantic.StringConstraints(pattern=r"^data:")]


class SeenRequest(pydantic.BaseModel):
    """A picture as a data URL; `pan_and_scan`: with its crops."""

    picture: Picture
    pan_and_scan: bool = False


def seen(model: Model, request: SeenRequest) -> dict[str, Any]:
    """The views of a picture as PNG data URLs of the size that the vision tower takes, and the side of the grid of its
    soft tokens. ValueError if it cannot be read, or the model sees none.
    """
    vision = model.config.vision
    if vision is None:
        raise ValueError("this model has no vision tower: it takes text only")
    picture = gemma_tpu.load_image(request.picture)
    views = [picture, *(gemma_tpu.pan_and_scan(picture) if request.pan_and_scan else [])]
    return {
        "width": picture.width,
        "height": picture.height,
        "side": vision.image_size,
        "grid": round(vision.num_soft_tokens**0.5),
        "views": [
            _png(view.resize((vision.image_size, vision.image_size), Image.Resampling.BILINEAR)) for view in views
        ],
    }


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
