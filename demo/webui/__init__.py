"""static/webui_demo.html, the page that replays recorded runs: `record` makes the recording, `build` the page."""
