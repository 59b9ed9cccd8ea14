"""The Gradio demo: `python -m demo`. It uses the public API of gemma_tpu alone."""
