"""What /metrics shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from server_site import (
    Site,
    events,
    idle,
    make_model,
    serve,
    streaming,
    wait_for,
)
from small_models import gated

import gemma_tpu
from gemma_tpu.server import Settings
from gemma_tpu.server.metrics import _TOKEN, Metrics


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


def test_metrics(model: gemma_tpu.Model) -> None:
    with serve(model, Settings(model_names=("tiny",))) as site:

        def read() -> dict[str, float]:
            families = text_string_to_metric_families(site.http.get("/metrics").text)
            samples = [sample for family in families for sample in family.samples]
            assert all(sample.labels["model_name"] == "tiny" for sample in samples)
            return {
                sample.name + sample.labels.get("finished_reason", ""): sample.value
                for sample in samples
                if sample.name.endswith(("_count", "_total", "running", "waiting", "perc"))
            }

        used = [site.ask(**asked).json()["usage"] for asked in ({}, {"n": 2, "temperature": 1, "seed": 1})]
        with gated(model.engine), streaming(site) as lines:
            begun = events(lines)
            assert next(begun)["choices"][0]["delta"]["role"] == "assistant"
            assert next(begun)["choices"][0]["delta"]["content"]
            assert read()["gemma_tpu:num_requests_running"] == 1
            assert 0 < read()["gemma_tpu:kv_cache_usage_perc"] < 1
        wait_for(lambda: read().get("gemma_tpu:request_success_totalabort") == 1 and idle(model))
        found = read()
    prompt_tokens = used[0]["prompt_tokens"]
    written = sum(usage["completion_tokens"] for usage in used)
    assert found["gemma_tpu:prompt_tokens_total"] == 4 * prompt_tokens  # of four answers
    assert found["gemma_tpu:prefix_cache_queries_total"] == 4 * prompt_tokens
    assert found["gemma_tpu:request_success_totallength"] + found.get("gemma_tpu:request_success_totalstop", 0) == 3
    assert found["gemma_tpu:generation_tokens_total"] > written
    assert found["gemma_tpu:time_to_first_token_seconds_count"] == 3
    assert found["gemma_tpu:e2e_request_latency_seconds_count"] == 3
    assert found["gemma_tpu:request_inference_time_seconds_count"] == 3
    assert found["gemma_tpu:num_requests_running"] == found["gemma_tpu:num_requests_waiting"] == 0


def test_the_time_between_tokens_is_the_histogram_that_counts_them_one_by_one() -> None:
    """prometheus_client's own."""
    ours, registry = Metrics("m", lambda: None), CollectorRegistry()
    name = "gemma_tpu:inter_token_latency_seconds"
    theirs = Histogram(name, "Between two tokens.", ["model_name"], registry=registry, buckets=_TOKEN).labels("m")
    for count, seconds in [(0, 1.0), (1, 0.01), (8, 0.08), (3, 0.0750003), (2, 500.0), (1, 0.0)]:
        ours.tokens(count, seconds)
        for _ in range(count):
            theirs.observe(seconds / count)

    def samples(text: bytes) -> dict:
        families = text_string_to_metric_families(text.decode())
        found = {family.name: family for family in families}[name]
        assert (found.type, found.documentation) == ("histogram", "Between two tokens.")
        kept = [sample for sample in found.samples if not sample.name.endswith("_created")]
        return {(sample.name, *sorted(sample.labels.items())): pytest.approx(sample.value) for sample in kept}

    assert samples(ours.text()) == samples(generate_latest(registry))
