"""What the endpoints share: the model, who may ask, how many answers may be under way, and whether it is time to go."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import math
import re
import time
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from starlette.requests import HTTPConnection

from gemma_tpu.api import Model
from gemma_tpu.loader import LoadStatus
from gemma_tpu.server.errors import APIError
from gemma_tpu.server.metrics import Metrics
from gemma_tpu.server.settings import Settings

_IMAGE_THREADS = 8  # that read and fetch images; others wait for one of them
_RETRY_LOADING, _RETRY_QUEUE = 5, 1  # seconds that a refused client is told to wait
_PORT = re.compile(r":\d+$")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


@runtime_checkable
class LoaderLike(Protocol):
    """A `gemma_tpu.Loader`. `model` is None until it is ready."""

    @property
    def model(self) -> Model | None: ...

    @property
    def status(self) -> LoadStatus: ...


class Service:
    """The state of one server. For its event loop's thread alone."""

    def __init__(self, loader: LoaderLike, settings: Settings) -> None:
        self._loader, self.settings = loader, settings
        self.created = int(time.time())
        self.draining = False
        self.requests = 0  # that are being answered
        self._answers = 0  # of those
        self._digests = [_digest(key) for key in settings.api_keys]
        self.metrics = Metrics(settings.model_names[0], lambda: loader.model)
        self.image_threads = ThreadPoolExecutor(_IMAGE_THREADS, "gemma-server-images")

    @property
    def status(self) -> LoadStatus:
        return self._loader.status

    @property
    def failure(self) -> str:
        """Why no answer will ever come; "" while there is hope."""
        if self.status.phase == "failed":
            return f"the model could not be loaded: {self.status.error}"
        try:
            if self._loader.model is not None:
                self._loader.model.engine.check_open()
        except RuntimeError as error:
            return str(error)
        return ""

    @property
    def busy(self) -> bool:
        """Whether anybody is being answered; on the page too, whose answers are no requests of this server."""
        model = self._loader.model
        return bool(self.requests or (model and any(model.engine.occupancy()[:2])))

    def require_ready(self) -> Model:
        """The model. APIError, with status 503, if it is being loaded, has failed, or the server is about to end."""
        model, status = self._loader.model, self.status
        if self.draining:
            raise APIError(503, "the server is shutting down", code="shutting_down", retry_after=_RETRY_LOADING)
        if failure := self.failure:
            raise APIError(503, failure, code="failed")
        if model is None:
            done = f" ({status.fraction:.0%})" if status.total else ""
            raise APIError(503, f"the model is {status.phase}{done}", code="loading", retry_after=_RETRY_LOADING)
        return model

    def model(self, name: str | None) -> Model:
        """The model by one of its names; None is the first. APIError for another name, and as `require_ready`."""
        if name is not None and name not in self.settings.model_names:
            known = ", ".join(self.settings.model_names)
            raise APIError(404, f"model: there is none of this name; known: {known}", param="model", code=NO_MODEL)
        return self.require_ready()

    @contextlib.contextmanager
    def admit(self, model: Model, count: int, param: str = "n") -> Iterator[None]:
        """While `count` answers are under way. APIError if there are more than the queue has room for."""
        limit = model.deployment.rows + self.settings.max_queue
        if count > limit:
            raise APIError(400, f"{param}: at most {limit} answers at once", param=param, code="invalid_value")
        if self._answers + count > limit:
            message = f"{self._answers} answers are under way and wait; try again later"
            raise APIError(429, message, code="queue_full", retry_after=_RETRY_QUEUE)
        self._answers += count
        try:
            yield
        finally:
            self._answers -= count

    def check_client(self, request: HTTPConnection) -> None:
        """APIError for one without a key that is needed, and for pages of other origins."""
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and origin not in self.settings.allow_origins and origin.partition("://")[2] != host:
            raise APIError(403, "pages of this origin may not ask: see --allow-origin", code="origin_not_allowed")
        if self._digests:
            self._check_key(request)
        elif not self.settings.any_host and _PORT.sub("", host.lower()) not in _LOCAL_HOSTS:
            message = "without keys, this server answers for localhost alone: see --api-keys and --no-auth"
            raise APIError(403, message, code="host_not_allowed")

    def _check_key(self, request: HTTPConnection) -> None:
        digest = _digest(_given_key(request))
        # All are compared, and in a time that tells nothing of where they differ.
        known = [hmac.compare_digest(digest, key) for key in self._digests]
        if not any(known):
            raise APIError(
                401, "needs a valid API key, in Authorization: Bearer KEY or X-Api-Key", code="invalid_api_key"
            )

    def client(self, request: HTTPConnection) -> Hashable:
        """Who asks, by the key or, without keys, by the address. Their requests take turns with those of others."""
        return _digest(_given_key(request)) if self._digests else request.client and request.client.host

    def max_new_tokens(self, model: Model, asked: int | None, field: str = "max_tokens") -> int:
        """How long an answer may be. APIError if more is asked for, in `field`, than is allowed."""
        limit = self.settings.max_tokens or math.inf
        if asked is not None and asked > limit:
            raise APIError(400, f"{field}: at most {limit}", param=field, code="invalid_value")
        return int(min(limit, model.defaults.max_new_tokens if asked is None else asked))

    def close(self) -> None:
        self.image_threads.shutdown(wait=False, cancel_futures=True)


NO_MODEL = "model_not_found"


def _given_key(request: HTTPConnection) -> str:
    """A browser's password is a key too, whatever the name."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode(errors="replace").partition(":")[2]
        except ValueError:  # of binascii, or for what is not ASCII
            return ""
    return request.headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    """Of one length whatever that of the key."""
    return hashlib.sha256(key.encode()).digest()
