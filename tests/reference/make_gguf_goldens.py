"""Makes tests/goldens/gguf: GGUF files that llama.cpp's converter writes, and what llama.cpp says of the same model.

In an environment with this package, torch, transformers, gguf and xllamacpp (llama.cpp as a wheel); the converter is in
the source distribution of llama-cpp-python:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-*.tar.gz
    PYTHONPATH=. python tests/reference/make_gguf_goldens.py llama_cpp_python-*/vendor/llama.cpp/convert_hf_to_gguf.py

`model-q8_0.gguf` and `mmproj-f16.gguf` are what the converter makes with --outtype q8_0, and with --mmproj --outtype
f16, of the Hugging Face directory of `gguf_models`. `llama_cpp.npz` has the log-probabilities of the token that follows
each prompt, by llama.cpp with weights in float32, and `llama_cpp.json` the ids that it makes of texts.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import gguf_models as models

GOLDENS = Path(__file__).parents[1] / "goldens" / "gguf"


def convert(converter: str, source: Path, path: Path, *options: str) -> Path:
    subprocess.run([sys.executable, converter, str(source), "--outfile", str(path), *options], check=True)
    return path


def post(address: str, body: dict) -> dict:
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode())) as answer:
        return json.load(answer)


def serve(model: Path, mmproj: Path | None) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    if mmproj is not None:
        params.mmproj.path = str(mmproj)
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def ask(server: Any, prompt: Any) -> np.ndarray:
    """Log-probabilities of the token that follows a prompt."""
    rows = models.CONFIG.vocab_size + 64
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": rows, "temperature": 0.0, "cache_prompt": False}
    found = post(f"{server.listening_address}/completion", asked)["completion_probabilities"][0]["top_logprobs"]
    answer = np.full(rows, -np.inf, np.float32)
    for entry in found:
        answer[entry["id"]] = entry["logprob"]
    return answer


def ask_all(model: Path, mmproj: Path) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    server, prompts = serve(model, None), models.prompts()
    answers = {name: ask(server, prompt) for name, prompt in prompts.items() if name != "image"}
    ids = {}
    for text in models.TEXTS:
        asked = {"content": text, "add_special": False, "parse_special": False}
        ids[text] = post(f"{server.listening_address}/tokenize", asked)["tokens"]
    picture = io.BytesIO()
    models.picture().save(picture, "PNG")
    image = base64.b64encode(picture.getvalue()).decode()
    server = serve(model, mmproj)
    with urllib.request.urlopen(f"{server.listening_address}/props") as answer:
        marker = json.load(answer)["media_marker"]
    prompt = {"prompt_string": models.IMAGE_PROMPT.format(models.BLOCK.format(marker)), "multimodal_data": [image]}
    return answers | {"image": ask(server, prompt)}, ids


def main() -> None:
    (converter,) = sys.argv[1:]
    GOLDENS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = models.save_hf(work / "hf")
        for path, *options in (
            (GOLDENS / "model-q8_0.gguf", "--outtype", "q8_0"),
            (GOLDENS / "mmproj-f16.gguf", "--mmproj", "--outtype", "f16"),
        ):
            convert(converter, source, work / path.name, *options).replace(path)
        model = convert(converter, source, work / "model-f32.gguf", "--outtype", "f32")
        mmproj = convert(converter, source, work / "tower-f32.gguf", "--mmproj", "--outtype", "f32")
        answers, ids = ask_all(model, mmproj)
    np.savez_compressed(GOLDENS / "llama_cpp.npz", **answers)
    (GOLDENS / "llama_cpp.json").write_text(json.dumps(ids, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
