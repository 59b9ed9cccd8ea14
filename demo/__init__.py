"""The Gradio demo: `python -m demo`. It uses only the public API of gemma_tpu."""
