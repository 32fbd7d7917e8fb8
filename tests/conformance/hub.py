"""As much of a model hub as an upload of a few small files needs, on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What was uploaded, by repository and file name."""

    url: str
    files: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])

    def commit(self, repo: str, body: bytes) -> None:
        """Take the files of a commit: one JSON object per line."""
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                self.files.setdefault(repo, {})[item["value"]["path"]] = content


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    vars(server)["hub"] = hub
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            self._answer({"name": "ann", "type": "user", "auth": {"type": "access_token"}})
        else:
            self._answer({"error": "not there"}, 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        hub: Hub = vars(self.server)["hub"]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self._answer({"url": f"{hub.url}/ann/{json.loads(body)['name']}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": file["path"], **plain} for file in files]})
        elif self.path == "/api/validate-yaml":
            self._answer({})
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
            hub.commit(repo, body)
            url = f"{hub.url}/{repo}/commit/1"
            self._answer({"commitUrl": url, "commitOid": "1", "pullRequestUrl": None})
        else:
            self._answer({"error": "not there"}, 404)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it so)
        """Say nothing."""

    def _answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
