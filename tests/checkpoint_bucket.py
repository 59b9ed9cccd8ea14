"""A stand-in for Google Cloud Storage: the listing and reading of objects, from a directory, on this machine."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from gemma_tpu.checkpoint import storage


class Bucket(http.server.ThreadingHTTPServer):
    """`requests`: (path, Range header) of each request. After `break_after` bytes of an object, a connection breaks.

    `answers`, while there are any, are given instead, one to each request: (status, headers).
    """

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: int | None = None
        self.status: int | None = None
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.damage = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        pass  # clients that hang up are part of the tests


@contextlib.contextmanager
def serve(root: Path) -> Iterator[Bucket]:
    """Serves `root` at the bucket's `url`, and again after another one was served.

    TensorStore gives an open store again to whoever asks for the same bucket in the same context, with the address
    it was opened with. While anything holds a store of an earlier server, only a new context asks the new one.
    """
    bucket = Bucket(root)
    thread = threading.Thread(target=bucket.serve_forever, args=(0.05,))
    thread.start()
    try:
        with mock.patch.object(storage, "context", functools.cache(storage.context.__wrapped__)):
            yield bucket
    finally:
        bucket.shutdown()
        thread.join()
        bucket.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer in one packet: several would wait for each other's acknowledgement
    server: Bucket

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.server.answers:
            status, headers = self.server.answers.pop(0)
            self._answer(status, b"{}", headers)
        elif self.server.status:
            self._answer(self.server.status, b"{}")
        elif url.path.endswith("/o"):
            self._answer(200, json.dumps(self._list(query)).encode())
        else:
            self._object(urllib.parse.unquote(url.path.split("/o/", 1)[1]))

    def _list(self, query: dict[str, str]) -> dict:
        root = self.server.root
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        wanted = [name for name in names if name.startswith(query.get("prefix", ""))]
        wanted = [name for name in wanted if name >= query.get("startOffset", "")]
        wanted = [name for name in wanted if "endOffset" not in query or name < query["endOffset"]]
        start = int(query.get("pageToken", 0))
        items = []
        for name in wanted[start : start + 20]:
            data = (root / name).read_bytes()
            md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
            items.append({"name": name, "size": str(len(data)), "md5Hash": md5})
        return {"items": items} | ({"nextPageToken": str(start + 20)} if len(wanted) > start + 20 else {})

    def _object(self, name: str) -> None:
        path = self.server.root / name
        if not path.is_file():
            self._answer(404, b"{}")
            return
        data = path.read_bytes()
        if self.server.damage:
            data = bytes(len(data))
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            stop = min(int(last) + 1 if first and last else len(data), len(data))
            if start >= len(data):
                self._answer(416, b"{}")
                return
            self._answer(206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
        else:
            self._answer(200, data)

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), "x-goog-generation": "1", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        limit = self.server.break_after
        if status in (200, 206) and limit is not None and len(data) > limit:
            self.wfile.write(data[:limit])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(data)
