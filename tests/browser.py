"""A headless Chromium that opens a page and tells what it did, over the DevTools protocol."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from base64 import b64decode

import pytest
from waiting import PATIENCE

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium to open pages with")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
# Chromium listens on file descriptor 3 and speaks on 4. (A preexec_fn would fork beside JAX.)
ON_3_AND_4 = """
import os, sys
commands, answers = (os.dup(os.dup(os.dup(int(end)))) for end in sys.argv[1:3])
os.dup2(commands, 3), os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """An open page: what it fetched, what went wrong, and what scripts say of it."""

    def __init__(self, call, events, session):
        self._call = call
        self._events = events
        self._session = session

    def say(self, script):
        """Give the value of an expression."""
        answer = self._call(
            "Runtime.evaluate",
            self._session,
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path):
        """Write a picture of the whole page."""
        size = self._call("Page.getLayoutMetrics", self._session)["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self._call(
            "Page.captureScreenshot", self._session, clip=clip, captureBeyondViewport=True
        )
        path.write_bytes(b64decode(answer["data"]))

    @property
    def fetched(self):
        """The addresses of everything that was asked for."""
        asked = self._named("Network.requestWillBeSent")
        return [event["request"]["url"] for event in asked]

    @property
    def complaints(self):
        """What the console shows of errors and warnings, exceptions, and loads that failed."""
        spoken = [e for e in self._named("Runtime.consoleAPICalled") if e["type"] != "log"]
        return [
            *spoken,
            *self._named("Runtime.exceptionThrown"),
            *self._named("Log.entryAdded"),
            *self._named("Network.loadingFailed"),
        ]

    def _named(self, method):
        return [event["params"] for event in self._events if event.get("method") == method]


@contextlib.contextmanager
def browser():
    """Start Chromium, and give what opens a page: open_page(path, width, dark=False)."""
    to_read, to_write = os.pipe(), os.pipe()
    theirs = (to_write[0], to_read[1])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-c", ON_3_AND_4, *map(str, theirs), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
        )
        for end in theirs:
            os.close(end)
        try:
            with (
                os.fdopen(to_write[1], "wb", buffering=0) as commands,
                os.fdopen(to_read[0], "rb", buffering=0) as answers,
            ):
                yield Connection(commands, answers).open_page
        finally:
            process.kill()
            process.wait()


class Connection:
    """The DevTools protocol over two pipes: messages in JSON, each ended by a zero byte."""

    def __init__(self, commands, answers):
        self._commands = commands
        self._answers = answers
        self._events = []
        self._number = 0
        self._received = bytearray()

    def open_page(self, path, width, *, dark=False):
        """Open a file at a width in pixels, and wait until it is loaded."""
        self._events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", session)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call("Page.navigate", session, url=path.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        page = Page(self.call, self._events, session)
        # Two frames after the last figure was drawn, everything is laid out.
        page.say("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page

    def call(self, method, session=None, **parameters):
        """Give the answer to a command; what is told meanwhile is kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            assert ready, "Chromium does not answer"
            part = self._answers.read(1 << 16)
            assert part, "Chromium has ended"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)
