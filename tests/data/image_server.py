"""A web server on this machine that serves files from memory and misbehaves as told."""

import io
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def jpeg(seed, width=40, height=30):
    """Bytes of a random picture (some 2 kB at the default size)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class ImageServer(ThreadingHTTPServer):
    """Attributes: files (name -> bytes), faults (name -> what to do at its next requests), requests.

    Faults: an HTTP status, "truncate", "stall", "ignore range", "wrong range"; after these it behaves.
    requests is a list of (name, Range header or None).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults, self.requests = {}, defaultdict(list), []
        self.closing = threading.Event()

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        name, asked = self.path[1:], self.headers.get("Range")
        self.server.requests.append((name, asked))
        fault = self.server.faults[name].pop(0) if self.server.faults[name] else None
        if isinstance(fault, int) or name not in self.server.files:
            return self.send_error(fault or 404)

        content = self.server.files[name]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(content):
            return self.send_error(416)
        if fault in ("ignore range", "wrong range") or not asked:
            start = 0
        partial = asked and fault != "ignore range"
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("truncate", "stall"):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.wfile.flush()
        if fault == "stall":
            self.server.closing.wait(20)


@contextmanager
def serving():
    server = ImageServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
