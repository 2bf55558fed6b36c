"""A hub on this machine: as much of its HTTP as an upload by huggingface_hub takes."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """What it was asked: repositories by name, files by path, and every token it was shown."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refusal: str | None = None  # answers uploads with it


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer({"error": "not here"}, 404)

    def do_POST(self) -> None:
        body, hub = self._body(), self.server
        hub.tokens.add(self.headers.get("Authorization", ""))
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer({"url": f"{hub.url}/datasets/me/mine"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            ask = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": path, **ask} for path in paths]})
        elif self.path.startswith("/api/datasets/me/mine/commit/"):
            self._commit(body)
        else:
            self._answer({"error": "not here"}, 404)

    def _commit(self, body: bytes) -> None:
        """One JSON object a line: a header, then the files, their content in base64."""
        hub = self.server
        if hub.refusal is not None:
            self._answer({"error": hub.refusal}, 403)
            return
        for line in body.splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                hub.files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
        address = f"{hub.url}/datasets/me/mine/commit/{'0' * 40}"
        self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": address})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Into nothing: the tests read the command's own output."""


@contextmanager
def hub_here() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
