"""static/webui_demo.html, a page that replays recorded runs: `record` records them, `build` builds the page."""
