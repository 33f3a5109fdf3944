"""A headless Chromium, spoken to through two pipes in its DevTools protocol: no package and no port."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)
SECONDS = 60


def find_chromium():
    """str or None: the program."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. ``faults`` has what the page has complained about: errors, exceptions, failed loads."""

    def __init__(self, program):
        self._folder = tempfile.mkdtemp(prefix="iso_d2-chromium-")
        (read, self._out), (self._in, write) = os.pipe(), os.pipe()
        # out of the way of file descriptors 3 and 4, from which the program reads and to which it writes
        theirs = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (read, write)]
        os.close(read)
        os.close(write)
        start = "import os, sys; [os.dup2(int(a), b) for a, b in zip(sys.argv[1:3], (3, 4))]; "
        start += "os.execv(sys.argv[3], sys.argv[3:])"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", start, *map(str, theirs), program, *FLAGS),
                *(f"--user-data-dir={self._folder}", "about:blank"),
            ],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in theirs:
            os.close(number)
        self._number, self._bytes, self._session, self._loaded = 0, b"", None, False
        self.faults, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method, **params):
        """dict: the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self):
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._bytes:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"Chromium has ended, or says nothing for {SECONDS} s")
            self._bytes += part
        text, self._bytes = self._bytes.split(b"\0", 1)
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, params):
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.faults.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.faults.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.faults.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, path, width, dark=False, script=True):
        """Load a file at a width in pixels, in the light or the dark scheme."""
        self.faults, self.requests = [], []
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self._loaded = False
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        while not self._loaded:
            self._next()

    def value(self, expression):
        """The JSON value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def screenshot(self, path):
        """Write a PNG of the whole page."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(image["data"]))
