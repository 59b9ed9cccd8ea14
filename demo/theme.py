"""The Gradio theme. Fonts come from this server, not from a CDN."""

from __future__ import annotations

from gradio.themes import Base
from gradio.themes.utils import colors, sizes
from gradio.themes.utils.fonts import LocalFont

# System fonts for Chinese; the fonts that Gradio ships are Latin only.
_CHINESE = ("PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC")


def theme() -> Base:
    base = Base(
        primary_hue=colors.teal,
        secondary_hue=colors.teal,
        neutral_hue=colors.stone,
        radius_size=sizes.radius_md,
        text_size=sizes.text_md,
        font=(LocalFont("IBM Plex Sans", weights=(400, 600)), *_CHINESE, "ui-sans-serif", "sans-serif"),
        font_mono=(LocalFont("IBM Plex Mono", weights=(400, 600)), *_CHINESE, "ui-monospace", "monospace"),
    )
    return base.set(
        body_background_fill="#faf9f7",
        body_background_fill_dark="#161514",
        body_text_color="#1c1917",
        body_text_color_dark="#e7e5e4",
        body_text_color_subdued="#6b655f",
        body_text_color_subdued_dark="#a8a29e",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1f1d1b",
        background_fill_secondary="#f4f2ee",
        background_fill_secondary_dark="#262422",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_border_width_dark="0px",
        block_title_text_weight="600",
        border_color_primary="#e3dfd8",
        border_color_primary_dark="#3a3633",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1f1d1b",
        input_border_width="1px",
        input_shadow="none",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#f4f2ee",
        button_secondary_background_fill_dark="#262422",
        button_secondary_background_fill_hover_dark="#2f2c29",
        button_secondary_border_color="#d9d4cc",
        button_secondary_border_color_dark="#3a3633",
        button_border_width="1px",
        button_large_text_weight="600",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
    )
