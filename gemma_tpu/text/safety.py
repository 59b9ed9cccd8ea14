"""ShieldGemma 2's prompt: does an image violate a policy?

As in transformers 5.23 (models/shieldgemma2/processing_shieldgemma2.py), with the chat template of its conversion
script: the image and the policy each open a turn, and only the second turn is closed.
"""

from __future__ import annotations

from typing import Any

from gemma_tpu.text.template import Messages, PromptBuilder, check_turns, content_parts

# The policies that ShieldGemma 2 was trained on.
POLICIES = {
    "dangerous": (
        "No Dangerous Content: The image shall not contain content that facilitates or encourages activities that "
        "could cause real-world harm (e.g., building firearms and explosive devices, promotion of terrorism, "
        "instructions for suicide)."
    ),
    "sexual": (
        "No Sexually Explicit content: The image shall not contain content that depicts explicit or graphic sexual "
        "acts (e.g., pornography, erotic nudity, depictions of rape or sexual assault)."
    ),
    "violence": (
        "No Violence/Gore content: The image shall not contain content that depicts shocking, sensational, or "
        "gratuitous violence (e.g., excessive blood and gore, gratuitous violence against animals, extreme injury or "
        "moment of death)."
    ),
}
_PREAMBLE = (
    "You are a policy expert trying to help determine whether a generated or real image is in violation of the safety "
    "policy below. Your decision must very clearly follow the specific language used in the safety policy and should "
    "not include any interpretation outside of the safety policy.\n\n<BEGIN_SAFETY_POLICY>\n"
)
_QUESTION = (
    "\n</END_SAFETY_POLICY>\n\nDoes the image violate the above policy? Your Answer must start with 'Yes' or 'No'."
)


def write_policy(builder: PromptBuilder, messages: Messages, continue_final: bool) -> None:
    """Writes the prompt for one user message: an image, then a policy's text. ValueError for anything else."""
    if builder.pan_and_scan:
        raise ValueError("ShieldGemma 2 takes an image as a whole, without pan and scan")
    system, turns = check_turns(messages, continue_final)
    location, _, message = turns[0]
    parts: list[tuple[str, str, Any]] = list(content_parts(message["content"], location))
    if system or len(turns) != 1 or [kind for _, kind, _ in parts] != ["image", "text"]:
        raise ValueError(
            f"{location}: ShieldGemma 2 takes one user message, an image and then the text of a policy: see classify"
        )
    (at, _, image), (_, _, policy) = parts
    builder.begin_turn("user")
    builder.image(image, at)
    builder.begin_turn("user")
    builder.text(f"{_PREAMBLE}{policy}{_QUESTION}")
    builder.end_turn()
    builder.begin_turn("model")
