"""A stand-in for Hugging Face on this machine, for its real client: the four requests that a download makes."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator


class Hub(http.server.ThreadingHTTPServer):
    """Serves `repos`: "owner/name" → path → content. `requests`: "METHOD path" of each request.

    `answers`, while there are any, are given instead, one to each request: (status, headers).
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.requests: list[str] = []
        self.answers: list[tuple[int, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> set[str]:
        """The paths of the files that were fetched."""
        fetched = [line for line in self.requests if line.startswith("GET /") and "/resolve/" in line]
        return {line.split("/resolve/")[1].split("/", 1)[1] for line in fetched}


@contextlib.contextmanager
def serve(repos: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repos)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # what the client asks for its statistics
            self._answer(404, b"{}")
            return
        self.server.requests.append(f"{self.command} {path}")
        if self.server.answers:
            status, headers = self.server.answers.pop(0)
            self._answer(status, b"{}", headers)
            return
        api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models/" if api else "/").split("/")
        files = self.server.repos.get(f"{owner}/{name}")
        if files is None:
            self._answer(401, b'{"error": "Invalid username or password."}', {"X-Error-Code": "RepoNotFound"})
            return
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        if api and len(rest) > 1 and rest[1] not in ("main", "v2", commit):
            self._answer(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
        elif api and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
            self._answer(200, json.dumps(tree).encode())
        elif api:
            info = {"id": f"{owner}/{name}", "modelId": f"{owner}/{name}", "sha": commit, "private": False}
            siblings = [{"rfilename": path} for path in files]
            self._answer(200, json.dumps(info | {"siblings": siblings, "tags": [], "downloads": 0}).encode())
        elif (data := files.get("/".join(rest[2:]))) is not None:
            large = path.endswith(".safetensors")  # as Git LFS has them
            git = hashlib.sha1(b"blob %d\0" % len(data) + data)
            etag = f'"{hashlib.sha256(data).hexdigest() if large else git.hexdigest()}"'
            self._answer(200, data, {"ETag": etag, "X-Repo-Commit": commit})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
