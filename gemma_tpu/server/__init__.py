"""An OpenAI-compatible HTTP server on one model: `gemma-tpu serve`, or `build_app` for an app of one's own."""

from gemma_tpu.server.app import build_app as build_app
from gemma_tpu.server.run import Server as Server
from gemma_tpu.server.run import listen as listen
from gemma_tpu.server.settings import Settings as Settings
from gemma_tpu.server.settings import model_name as model_name
