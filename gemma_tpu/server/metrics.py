"""What /metrics shows. Names, types and buckets are those of vLLM (vllm/v1/metrics/loggers.py), under our prefix."""

from __future__ import annotations

import bisect
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from gemma_tpu.api import Model
from gemma_tpu.options import Completion

PREFIX = "gemma_tpu"
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75)
_FIRST_TOKEN = (*_FIRST_TOKEN, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_REQUEST = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_REQUEST = (*_REQUEST, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_COUNTS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
_REASONS = {"cancelled": "abort"}  # vLLM's words for a `finish_reason`
_COMPILATION = "/jax/core/compile/backend_compile_duration"  # jax._src.dispatch.BACKEND_COMPILE_EVENT


class Metrics:
    """Of one server. `model` gives the model once it is loaded."""

    def __init__(self, name: str, model: Callable[[], Model | None]) -> None:
        _compilations.listen()
        self.registry = CollectorRegistry()
        self._labels = (name,)

        def histogram(what: str, help: str, buckets: Sequence[float]) -> Histogram:
            return self._labelled(Histogram, what, help, buckets=buckets)

        def counter(what: str, help: str) -> Counter:
            return self._labelled(Counter, what, help)

        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens.")
        self._generation_tokens = counter("generation_tokens", "Tokens written.")
        self._cache_queries = counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._cache_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._draft_tokens = counter("spec_decode_num_draft_tokens", "Tokens guessed ahead.")
        self._accepted_tokens = counter("spec_decode_num_accepted_tokens", "Of these, the ones that were right.")
        names = ["model_name", "finished_reason"]
        self._success = Counter(
            f"{PREFIX}:request_success", "Answers by how they ended.", names, registry=self.registry
        )
        self._first_token = histogram("time_to_first_token_seconds", "From submission to first token.", _FIRST_TOKEN)
        self._between_tokens = _TokenTimes("inter_token_latency_seconds", "Between two tokens.", self._labels)
        self.registry.register(self._between_tokens)  # pyright: ignore[reportArgumentType]
        self._per_token = histogram("request_time_per_output_token_seconds", "Mean of an answer.", _TOKEN)
        self._latency = histogram("e2e_request_latency_seconds", "From submission to the end.", _REQUEST)
        self._queue = histogram("request_queue_time_seconds", "Waiting for a batch row.", _REQUEST)
        self._prefill = histogram("request_prefill_time_seconds", "From a batch row to the prompt's end.", _REQUEST)
        self._decode = histogram("request_decode_time_seconds", "From the first token to the last.", _REQUEST)
        self._inference = histogram("request_inference_time_seconds", "From a batch row to the end.", _REQUEST)
        self._request_prompt = histogram("request_prompt_tokens", "Prompt tokens of an answer.", _COUNTS)
        self._request_generation = histogram("request_generation_tokens", "Tokens of an answer.", _COUNTS)
        self.registry.register(_OnRequest(model, self._labels))  # pyright: ignore[reportArgumentType]

    def _labelled(self, kind: type, what: str, help: str, **options: object):
        made = kind(f"{PREFIX}:{what}", help, ["model_name"], registry=self.registry, **options)
        return made.labels(*self._labels)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def tokens(self, count: int, seconds: float) -> None:
        """`count` tokens came `seconds` after those before them."""
        if count:
            self._between_tokens.observe(seconds / count, count)

    def finished(self, completion: Completion) -> None:
        usage, timings, reason = completion.usage, completion.timings, completion.finish_reason
        self._success.labels(*self._labels, _REASONS.get(reason, reason)).inc()
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._generation_tokens.inc(usage.completion_tokens)
        self._cache_queries.inc(usage.prompt_tokens)
        self._cache_hits.inc(usage.cached_tokens)
        self._draft_tokens.inc(usage.draft_tokens)
        self._accepted_tokens.inc(usage.accepted_tokens)
        self._request_prompt.observe(usage.prompt_tokens)
        self._request_generation.observe(usage.completion_tokens)
        if reason == "cancelled":  # whose times say when its client left
            return
        per_token = 1 / timings.tokens_per_second if timings.tokens_per_second else math.nan
        for histogram, seconds in (
            (self._first_token, timings.first_token),
            (self._latency, timings.first_token + timings.decode),
            (self._per_token, per_token),
            (self._queue, timings.queue),
            (self._prefill, timings.prefill),
            (self._decode, timings.decode),
            (self._inference, timings.prefill + timings.decode),
        ):
            if not math.isnan(seconds):  # a time that an empty answer does not have
                histogram.observe(seconds)


class _TokenTimes:
    """A histogram that takes many equal values at once: prometheus_client's takes one, with a lock for each."""

    def __init__(self, what: str, help: str, labels: Sequence[str]) -> None:
        self._name, self._help, self._labels = f"{PREFIX}:{what}", help, labels
        self._bounds, self._sum = (*_TOKEN, math.inf), 0.0
        self._counts = [0] * len(self._bounds)

    def observe(self, value: float, count: int) -> None:
        """For one thread."""
        self._counts[bisect.bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._help, labels=["model_name"])
        cumulative = itertools.accumulate(self._counts)
        buckets = [(floatToGoString(bound), count) for bound, count in zip(self._bounds, cumulative, strict=True)]
        family.add_metric(self._labels, buckets, self._sum)
        yield family


class _OnRequest:
    """What is looked up when somebody asks."""

    def __init__(self, model: Callable[[], Model | None], labels: Sequence[str]) -> None:
        self._model, self._labels = model, labels

    def collect(self) -> Iterator[Metric]:
        if (model := self._model()) is None:
            return
        import jax

        found, pages = model.engine.occupancy(), model.deployment.pages
        yield self._gauge("num_requests_running", "Requests that have a batch row.", found.running)
        yield self._gauge("num_requests_waiting", "Requests that wait for a batch row.", found.waiting)
        usage = "Of the cache's pages, those of running requests; 1 is all."
        yield self._gauge("kv_cache_usage_perc", usage, found.needed / pages)
        kept = "Of the cache's pages, those kept for prompts that begin alike."
        yield self._gauge("kv_cache_kept_perc", kept, found.kept / pages)
        resumed = CounterMetricFamily(
            f"{PREFIX}:num_preemptions", "Requests that gave their pages to older ones.", labels=["model_name"]
        )
        resumed.add_metric(self._labels, found.resumed)
        yield resumed
        compilations = CounterMetricFamily(f"{PREFIX}:compilations", "Programs compiled.", labels=["model_name"])
        compilations.add_metric(self._labels, _compilations.count)
        yield compilations
        memory = GaugeMetricFamily(f"{PREFIX}:device_memory_bytes", "In use.", labels=["model_name", "device"])
        for device in jax.local_devices():
            if stats := device.memory_stats():  # a CPU has none
                memory.add_metric([*self._labels, str(device.id)], stats["bytes_in_use"])
        yield memory

    def _gauge(self, name: str, help: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"{PREFIX}:{name}", help, labels=["model_name"])
        gauge.add_metric(self._labels, value)
        return gauge


class _Compilations:
    """Counts what JAX compiles in this process, from when it is first asked to."""

    def __init__(self) -> None:
        self.count = 0
        self._lock, self._listening = threading.Lock(), False

    def listen(self) -> None:
        import jax

        with self._lock:
            if not self._listening:
                jax.monitoring.register_event_duration_secs_listener(self._event)
                self._listening = True

    def _event(self, event: str, *_: object, **__: object) -> None:
        self.count += event == _COMPILATION


_compilations = _Compilations()
