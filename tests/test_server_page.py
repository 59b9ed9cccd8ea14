"""The demo's page beside the API: on one app, of one model, for the same clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import httpx
import pytest
from server_site import CHAT, SETTINGS, Site, error_of, make_model, serve

import gemma_tpu
from demo.uploads import own_upload_folder
from gemma_tpu.loader import LoadStatus

KEYS = ("secret-1", "secret-2")
POLLED = {"x-requested-with": "fetch"}  # what the page's own requests have


@pytest.fixture(scope="module")
def loader() -> Iterator[gemma_tpu.Loader]:
    with make_model() as model, own_upload_folder():
        loader = gemma_tpu.Loader("tiny", lambda _: model)
        loader.model, loader.status = model, LoadStatus("ready")
        yield loader


@pytest.fixture(scope="module")
def site(loader: gemma_tpu.Loader) -> Iterator[Site]:
    with serve(loader, page=True) as site:
        yield site


@pytest.fixture(scope="module")
def guarded(loader: gemma_tpu.Loader) -> Iterator[Site]:
    with serve(loader, dataclasses.replace(SETTINGS, api_keys=KEYS), page=True) as site:
        yield site


def test_the_page_and_the_api(site: Site) -> None:
    page = site.http.get("/")
    assert page.status_code == 200
    assert "gradio" in page.text
    assert "content-security-policy" in page.headers
    assert site.http.get("/config").json()["title"] == "gemma_tpu"
    assert site.ask().status_code == 200
    assert site.http.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert site.http.get("/ready").json() == {"status": "ready"}
    assert "content-security-policy" not in site.http.get("/ready").headers
    assert error_of(site.http.post("/v1/embeddings", json={"input": "a"}), 404)["code"] == "not_found"


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_another_sites_name_may_not_lead_to_the_page(site: Site, path: str) -> None:
    assert site.http.get(path, headers={"host": "example.com"}).status_code == 403
    assert site.http.get(path, headers={"origin": "http://example.com"}).status_code == 403
    assert site.http.get(path, headers={"origin": site.url}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/nothing"])
def test_the_page_needs_a_key(guarded: Site, path: str) -> None:
    asked = guarded.http.get(path)
    assert (asked.status_code, asked.headers["www-authenticate"].split()[0]) == (401, "Basic")
    assert "www-authenticate" not in guarded.http.get(path, headers=POLLED).headers
    assert guarded.http.get(path, auth=("me", "secret-3")).status_code == 401
    assert guarded.http.get(path, headers={b"authorization": "Basic §".encode()}).status_code == 401
    for auth in (("me", "secret-2"), ("", "secret-1")):
        assert guarded.http.get(path, auth=auth).status_code == (404 if path == "/nothing" else 200)


def test_the_api_keeps_its_own_errors(guarded: Site) -> None:
    assert error_of(guarded.ask(), 401)["code"] == "invalid_api_key"
    assert guarded.http.get("/health").status_code == 200
    assert guarded.http.get("/ready").status_code == 200
    headers = {"authorization": "Bearer secret-1"}
    assert guarded.ask(CHAT, headers=headers).status_code == 200
    assert guarded.http.post(CHAT, auth=httpx.BasicAuth("me", "secret-1"), json={}).status_code == 400
