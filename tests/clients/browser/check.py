"""The cases of tests/clients with a browser's EventSource, in headless Chromium.

    check.py GATEWAY_URL ADMIN_URL MODE CHROMIUM FOLDER PORT

Serves page.html on PORT, whose origin the gateway has to allow, and waits for what the page tells.
"""

import asyncio
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
from gateway import GATEWAY, WORDS, ended, metric, run, same, until  # noqa: E402

CHROMIUM, FOLDER, PORT = sys.argv[4:7]
PAGE = (Path(__file__).resolve().parent / "page.html").read_bytes()
told = queue.Queue()


class Page(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        known = self.path.startswith("/?")
        self.answer(200 if known else 404, PAGE if known else b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        told.put((self.path.removeprefix("/told/"), json.loads(body)))
        self.answer(200)

    def log_message(self, *_):
        pass


async def seen(name):
    """What the page tells of the case `name`."""
    said, what = await asyncio.to_thread(told.get, timeout=25)
    same(said, name)
    return what


def words(messages):
    return [json.loads(data)["choices"][0]["delta"]["content"] for data in messages]


async def stream(before):
    what = await seen("stream")
    same((what["messages"][-1], what["error"]), ("[DONE]", None))
    same(words(what["messages"][:-1]), WORDS)
    beats = metric("tidegate_heartbeats_total") - before["heartbeats"]
    assert beats >= 4, f"only {beats} heartbeats in 4 gaps"
    return f"{beats:.0f} heartbeats"


async def failure(before):
    what = await seen("failure")
    same(words(what["messages"][:3]), WORDS[:3])
    same([json.loads(data)["error"]["code"] for data in what["messages"][3:]], ["upstream_truncated"])
    same(what["error"], 0)
    await until("counted", lambda: ended("upstream_truncated") == before["truncated"] + 1)
    return "error event, then the connection's"


async def cancel(before):
    what = await seen("cancel")
    same((len(what["messages"]), what["error"]), (2, None))
    await until("counted as client_closed", lambda: ended("client_closed") == before["closed"] + 1)
    await until("no stream lives", lambda: metric("tidegate_streams_live") == 0)


async def status(_):
    same(await seen("status"), {"messages": [], "error": 2})
    return "given up for good"


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(PORT)), Page)
threading.Thread(target=server.serve_forever, daemon=True).start()
shutil.rmtree(FOLDER, ignore_errors=True)
before = {
    "heartbeats": metric("tidegate_heartbeats_total"),
    "truncated": ended("upstream_truncated"),
    "closed": ended("client_closed"),
}
browser = subprocess.Popen(
    [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
     "--no-first-run", "--disable-background-networking", "--disable-component-update",
     f"--user-data-dir={FOLDER}", f"http://127.0.0.1:{PORT}/?gateway={GATEWAY}"],
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    start_new_session=True,
)


def close():
    os.killpg(browser.pid, signal.SIGKILL)
    browser.wait()


run([stream, failure, cancel, status], before, close)
