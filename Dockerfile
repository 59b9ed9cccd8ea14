# An image that serves a checkpoint with OpenAI's API, at port 8000:
#
#   docker build --build-arg EXTRA=[tpu] -t gemma-tpu .       # or [cuda]; without it, for CPUs
#   docker run -p 8000:8000 -e GEMMA_TPU_API_KEYS=… gemma-tpu gemma3-demo
FROM python:3.12-slim
ARG EXTRA=
COPY . /src
RUN pip install --no-cache-dir "/src${EXTRA}" && rm -r /src && useradd --create-home gemma
USER gemma
EXPOSE 8000
ENTRYPOINT ["gemma-tpu", "serve", "--host", "0.0.0.0", "--port", "8000"]
