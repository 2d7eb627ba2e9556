"""A headless Chromium, driven through its DevTools protocol over a pipe: nothing to install but the browser itself.

https://chromedevtools.github.io/devtools-protocol/
"""

import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0
"""Seconds that the browser may take for anything."""
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--hide-scrollbars", "--proxy-bypass-list=<-loopback>", "--remote-debugging-pipe",
)  # fmt: skip
WITH_PIPES = """import os, sys
a, b = (os.dup(int(number)) for number in sys.argv[1:3])
for given, wanted in ((a, 3), (b, 4)):
    os.dup2(given, wanted)
    os.set_inheritable(wanted, True)
os.execv(sys.argv[3], sys.argv[3:])"""
"""Chromium reads the protocol from file 3 and writes it to file 4."""
OF_ITS_OWN = re.compile(r"[/. ](google|googleapis|gvt1)\.com[:/]")
"""Whom Chromium 150 asks for its own sake as it starts, whatever QUIET says; what a page asks, its events tell too."""
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def find_browser() -> str:
    """The path of a Chromium; absent, it is a failure in CI and elsewhere a skip that says why."""
    path = os.environ.get("DINOUNET_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = f"no Chromium: none of {', '.join(NAMES)} is installed (or set DINOUNET_CHROMIUM)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


class Browser:
    """One page. Whatever it asks the network for arrives at a proxy of ours, which answers nothing and takes note."""

    def __init__(self, profile: Path) -> None:
        self.asked: list[str] = []
        self.events: list[dict] = []
        self._answers, self._rest, self._number, self._session = {}, b"", 0, {}
        self._proxy = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._note, daemon=True).start()
        to_browser, self._writing = os.pipe()
        self._reading, from_browser = os.pipe()
        command = [
            sys.executable, "-c", WITH_PIPES, str(to_browser), str(from_browser), find_browser(), *QUIET,
            f"--proxy-server=127.0.0.1:{self._proxy.getsockname()[1]}", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._proxy.close()
        os.close(self._writing)
        os.close(self._reading)

    def call(self, method: str, **parameters: object) -> dict:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        self._wait(lambda: self._number in self._answers)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def open(self, page: Path) -> None:
        """Load a file and wait until it is there."""
        self.events.clear()
        self.call("Page.navigate", url="about:blank")  # else another fragment of the same page loads nothing
        self._wait(lambda: self.happened("Page.loadEventFired"))
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self._wait(lambda: self.happened("Page.loadEventFired"))

    def happened(self, *methods: str) -> list[dict]:
        """What events of these kinds told since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def run(self, script: str) -> object:
        """The value of an expression on the page, or what it promises."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key],
                **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    def resize(self, width: int, height: int = 900) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str = "light", media: str = "screen") -> None:
        """Light or dark, screen or print."""
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def _wait(self, done) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            ready, _, _ = select.select([self._reading], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser was silent for {PATIENCE:g} seconds"
            more = os.read(self._reading, 1 << 20)
            assert more, "the browser ended"
            *messages, self._rest = (self._rest + more).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers[message["id"]] = message
                else:
                    self.events.append(message)

    def _note(self) -> None:
        while True:
            try:
                connection, _ = self._proxy.accept()
            except OSError:
                return
            with connection:
                asked = connection.recv(4096).decode(errors="replace").split("\r\n")[0]
                if not OF_ITS_OWN.search(asked):
                    self.asked.append(asked)
