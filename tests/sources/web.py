"""A web server on this machine, for tests: files with ranges and versions, and the ways in which servers fail."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """What the server has, how it fails, and what it was asked."""

    def __init__(self):
        self.address = ""
        self.files = {}
        """From path to bytes."""
        self.ranges = True
        self.validators = True
        self.repeats = True
        """Whether an answer with a range has the ETag again."""
        self.headers = {}
        """Further headers of what is in `status`."""
        self.honest = True
        """Whether If-Range is looked at."""
        self.status = {}
        """From path to the status in place of the file, with "location" for a redirect as (302, url)."""
        self.drops = {}
        """From path to how many bytes of the next answers are sent before the connection breaks."""
        self.asked = []
        """(path, headers) of each request."""

    def paths(self):
        return [path for path, _ in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.web.asked.append((path, dict(self.headers.items())))
        if path in self.web.status:
            return self._refuse(self.web.status[path])
        if path not in self.web.files:
            return self._refuse(404)
        content = self.web.files[path]
        if not isinstance(content, bytes):
            return self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, path)
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        headers = {"ETag": tag} if self.web.validators else {}
        start = self._start(tag)
        if start is None:
            return self._send(200, content, headers, path)
        if start >= len(content):
            return self._refuse(416)
        if not self.web.repeats:
            headers = {}
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(206, content[start:], headers, path)

    def _start(self, tag):
        span = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, tag) or not self.web.honest
        return int(span.removeprefix("bytes=").removesuffix("-")) if span and self.web.ranges and same else None

    def _refuse(self, status):
        code, location = status if isinstance(status, tuple) else (status, None)
        self.send_response(code)
        if location:
            self.send_header("Location", location)
        for name, value in self.web.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, status, content, headers, path):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        drops = self.web.drops.get(path)
        if drops:
            content = content[: drops.pop(0)]
            self.close_connection = True
        self.wfile.write(content)


@contextmanager
def serve():
    """A running server, on a port of its own."""
    web = Web()
    handler = type("Handler", (_Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
