"""The playground's server, asked by real HTTP requests: strangers, hostile uploads, visitors who leave."""

from __future__ import annotations

import asyncio
import functools
import http.client
import importlib.util
import io
import json
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image

import rcdm_fast
from rcdm_fast.app import guard, handler, page, sharing
from rcdm_fast.app.playground import Playground
from rcdm_fast.model import Model
from tests import peak, small
from tests.test_app import free_port
from tests.test_decoding import EPS
from tests.tolerances import UPLOAD_BYTES

# Looked for and not imported, which takes seconds in every worker that collects this file.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")

GRACE_S = 2.0  # for visitors who may come back: two tests wait for it


@dataclass
class Server:
    """A page that runs, and requests to it."""

    port: int
    model: Model
    run: int = 0
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers)
            if body is not None:
                headers.setdefault("Content-Length", str(len(body)))
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders(body)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "photo.png") -> tuple[int, str]:
        """Status, and the path of the upload or what was said."""
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
        kind = f"multipart/form-data; boundary={edge}"
        status, _, said = self.ask("POST", "/gradio_api/upload", body, Content_Type=kind)
        return status, json.loads(said)[0] if status == 200 else said.decode()

    def join(self, image: Any, session: str, steps: int = 2, count: int = 4, model: str = "small") -> None:
        data = [image, model, count, steps, "ddim", 0, "none", 0, None, 0, "none", 0, 1, "none", [], None]
        body = json.dumps({"data": data, "fn_index": self.run, "session_hash": session}).encode()
        status, _, said = self.ask("POST", "/gradio_api/queue/join", body, Content_Type="application/json")
        assert status == 200, said

    def listen(self, session: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        return connection, connection.getresponse()

    def draw(self, image: Any, **settings: Any) -> dict[str, Any]:
        """The last message about a drawing."""
        session = uuid.uuid4().hex
        self.join(image, session, **settings)
        connection, answer = self.listen(session)
        try:
            for line in answer:
                if line.startswith(b"data:") and json.loads(line[5:])["msg"] == "process_completed":
                    found: dict[str, Any] = json.loads(line[5:])
                    return found
        finally:
            connection.close()
        raise AssertionError("no end")


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def png(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    model = small.quick_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rcdm_fast, "load", lambda name, **_: model)
        patch.setattr(guard, "Listeners", functools.partial(guard.Listeners, grace_s=GRACE_S))
        playground = Playground(("small", "/home/somebody/secret place/other.safetensors"))
        port = free_port()
        blocks, _ = page.launch(
            playground, host="127.0.0.1", port=port, queue=4, upload_mib=2, quota_mib=64, wait=False
        )
        try:
            found = Server(port, model)
            settings = json.loads(found.ask("GET", "/config")[2])
            found.run = next(each["id"] for each in settings["dependencies"] if each["api_name"] == "run")
            yield found
        finally:
            blocks.close()


def test_a_photograph_is_drawn(server: Server) -> None:
    status, path = server.upload(png())
    assert status == 200
    ended = server.draw(file_data(path))
    assert ended["success"], ended
    status, samples, beside, seen, second, files, *downloads, link = ended["output"]["data"]
    assert status == "4 of 4 images, from 6 numbers alone"
    assert len(samples["value"]) == 4
    assert [each["visible"] for each in (beside, seen, second, files)] == [False, True, False, True]
    assert sharing.parsed(sharing.of_link(link)).settings.per == 4
    names = ("sheet.png", "representation.npy", "drawing.json")
    for name, file in zip(names, downloads, strict=True):
        assert Path(file["path"]).name == name
        status, _, content = server.ask("GET", f"/gradio_api/file={file['path']}")
        assert status == 200
        assert content


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:{port}", "127.0.0.1.evil.com", "localhost.evil.com", "", "[::1"]
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/config"), ("OPTIONS", "/gradio_api/queue/join")])
def test_other_names_are_not_answered(server: Server, host: str, method: str, path: str) -> None:
    """DNS rebinding: a page's own name points here."""
    host = host.format(port=server.port)
    status, headers, said = server.ask(
        method, path, Host=host, Origin=f"http://{host}", Access_Control_Request_Method="POST"
    )
    assert status == 403
    assert not [name for name in headers if name.startswith("access-control")]
    assert len(said) < 200


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "http://127.0.0.1.evil.com", "file://"])
def test_pages_from_elsewhere_are_not_answered(server: Server, origin: str) -> None:
    """They can send forms here without asking first; this machine's name is then the right one."""
    for method, path in (("POST", "/gradio_api/upload"), ("OPTIONS", "/gradio_api/upload"), ("GET", "/config")):
        status, headers, _ = server.ask(method, path, b"", Origin=origin, Access_Control_Request_Method="POST")
        assert status == 403
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}", "localhost:9999"]
)
def test_this_machine_is_answered(server: Server, host: str) -> None:
    host = host.format(port=server.port)
    assert server.ask("GET", "/", Host=host, Origin=f"http://{host}")[0] == 200


def test_names_to_listen_on() -> None:
    assert [guard.is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")] == [True] * 5
    assert not any(guard.is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.3", "example.org", ""))


def test_postscript_named_png_starts_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Gradio nor this package hands an upload to Ghostscript (a false one, in this very process's path)."""
    trace = tmp_path / "CALLED"
    (tmp_path / "gs").write_text(
        f'#!/bin/sh\necho "$@" >> {trace}\n[ "$1" = --version ] && echo 10 && exit 0\nexit 1\n'
    )
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    for name in ("cat.png", "cat.jpg", "cat.eps", "cat.svg"):
        status, path = server.upload(EPS, name)
        assert status == 200
        ended = server.draw({**file_data(path), "orig_name": name})
        assert not ended["success"]
        assert ended["output"]["error"].startswith(f"{name}: cannot be read as an image (it has none of the formats")
    assert not trace.exists()


def test_files_of_this_machine_are_not_read(server: Server, tmp_path: Path) -> None:
    """Not even when a request does not say that its file is a file, which Gradio does not look at then."""
    (tmp_path / "private.png").write_bytes(png())
    inside = Path(server.upload(png())[1])
    (inside.parent / "link.png").symlink_to(tmp_path / "private.png")
    data = "data:image/png;base64,AAAA"
    private = str(tmp_path / "private.png")
    for given in (
        file_data(private), {"path": private}, {"path": None, "url": data}, {"path": private, "url": data},
        {"path": str(inside), "url": data}, file_data("http://127.0.0.1:9/x.png"), {"path": "http://127.0.0.1:9/x.png"},
        {"path": f"{inside}/../../../{private}"}, {"path": str(inside.parent / "link.png")}, {"url": private},
        {"path": ""},
        {"path": str(inside.parent.parent)},
    ):  # fmt: skip
        ended = server.draw(given)
        assert not ended["success"], given
        assert str(tmp_path) not in json.dumps(ended["output"])


def test_texts_name_no_folder_of_this_machine(server: Server) -> None:
    config = server.ask("GET", "/config")[2].decode() + server.ask("GET", "/")[2].decode()
    folder = Path(server.upload(png())[1]).parent.parent
    for secret in ("secret place", "/home/", str(folder), str(Path(rcdm_fast.__file__).parent)):
        assert secret not in config, secret
    assert "other.safetensors" in config
    status, path = server.upload(png((4, 4)), "dot.png")
    assert status == 200
    said = server.draw(file_data(path))["output"]["error"]
    assert said == "dot.png: 4x4 pixels; at least 8 a side are needed."
    said = server.draw(file_data(path), model="unknown")["output"]["error"]
    assert "secret place" not in said
    status, path = server.upload(png())
    assert status == 200
    os.unlink(path)
    ended = server.draw(file_data(path))
    assert not ended["success"]
    assert str(folder) not in json.dumps(ended["output"])
    assert server.draw(file_data(server.upload(png())[1]), model="other.safetensors")["success"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no model at /home/a b/m.safetensors: truncated", "no model at m.safetensors: truncated"),
        ("/data/my photographs/7.jpg: no image", "my photographs/7.jpg: no image"),
        ("'/tmp/rcdm-app-x/0a/p.png' is 1/3 read", "'p.png' is 1/3 read"),
        ("~/x/y.pt: damaged", "y.pt: damaged"),
        ("give uint8 [H,W,3] and/or float", "give uint8 [H,W,3] and/or float"),
        (OSError(2, "No such file or directory", "/tmp/rcdm-app-x/p.png"), "no such file"),
        (PermissionError(13, "Permission denied", "/home/me/p.png"), "Permission denied"),
    ],
)
def test_folders_are_left_out_of_errors(said: str | OSError, shown: str) -> None:
    playground = Playground(("small", "/home/a b/m.safetensors"), data="/data/my photographs")
    assert handler.message(ValueError(said) if isinstance(said, str) else said, playground) == shown


def test_a_small_file_with_many_pixels_is_refused_unseen(server: Server) -> None:
    """169 megapixels in half a megabyte."""
    status, path = server.upload(png((13000, 13000), "1"))
    assert status == 200
    before = peak.begin()
    ended = server.draw(file_data(path))
    assert ended["output"]["error"] == "photo.png: 13000x13000 is 169 megapixels, more than 60."
    assert peak.bytes_held() - before <= UPLOAD_BYTES


def test_uploads_are_limited_and_private(server: Server) -> None:
    status, path = server.upload(png())
    folder = Path(path).parent.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.name.startswith("rcdm-app-")
    assert server.upload(b"x" * (3 << 20))[0] == 413
    chunked = {"Transfer_Encoding": "chunked"}
    assert (
        server.ask("POST", "/gradio_api/upload", Content_Type="multipart/form-data", Transfer_Encoding="chunked")[0]
        == 411
    )
    kind = {"Content_Type": "application/json"}
    assert server.ask("POST", "/gradio_api/queue/join", b"[" * (2 << 20), **kind)[0] == 413
    assert server.ask("POST", "/gradio_api/queue/join", None, **chunked, **kind)[0] == 411
    filler = folder / "filler"
    with open(filler, "wb") as file:
        file.truncate(64 << 20)
    try:
        status, said = server.upload(png())
        assert (status, "64 MiB" in said) == (413, True)
    finally:
        filler.unlink()
    assert server.upload(png())[0] == 200


def test_uploads_that_are_on_their_way_count(server: Server) -> None:
    """Two at once, each of which alone is within the 64 MiB."""
    first = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    first.putrequest("POST", "/gradio_api/upload")
    first.putheader("Content-Type", "multipart/form-data; boundary=x")
    first.putheader("Content-Length", str(60 << 20))
    first.endheaders(b"--x\r\n")
    try:
        end = time.monotonic() + 10
        while server.upload(b"x" * (5 << 20))[1].find("64 MiB") < 0:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        first.close()
    end = time.monotonic() + 10
    while server.upload(png())[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.1)


class Slow:
    """Counts network evaluations, and makes each last."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.calls = 0
        evaluate = model.engine.evaluate

        def slow(batch: Any, x: Any, k: int) -> Any:
            self.calls += 1
            time.sleep(seconds)
            return evaluate(batch, x, k)

        monkeypatch.setattr(model.engine, "evaluate", slow)


def test_a_drawing_ends_when_its_visitor_leaves(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """250 steps of 50 ms for each four of 32 images are 100 s: the next visitor does not wait for them."""
    _, path = server.upload(png())
    slow = Slow(server.model, monkeypatch, 0.05)
    session = uuid.uuid4().hex
    server.join(file_data(path), session, steps=250, count=32)
    connection, answer = server.listen(session)
    while slow.calls < 5:
        time.sleep(0.05)
    answer.close()
    connection.close()
    begun = time.monotonic()
    ended = server.draw(file_data(path), steps=1)
    assert ended["success"]
    assert time.monotonic() - begun < 25
    assert slow.calls < 500
    calls = slow.calls
    time.sleep(0.5)
    assert slow.calls == calls


def test_a_drawing_that_nobody_ever_listened_to_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = server.upload(png())
    slow = Slow(server.model, monkeypatch, 0.05)
    server.join(file_data(path), uuid.uuid4().hex, steps=250, count=32)
    while slow.calls < 3:  # within the first images of the draft
        time.sleep(0.05)
    begun = time.monotonic()
    assert server.draw(file_data(path), steps=1)["success"]
    assert time.monotonic() - begun < 25


def test_stop_ends_a_drawing_within_a_step(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = json.loads(server.ask("GET", "/config")[2])
    halt = next(each["id"] for each in settings["dependencies"] if each["api_name"] == "halt")
    _, path = server.upload(png())
    slow = Slow(server.model, monkeypatch, 0.05)
    session = uuid.uuid4().hex
    server.join(file_data(path), session, steps=250, count=32)
    connection, answer = server.listen(session)
    while slow.calls < 5:
        time.sleep(0.05)
    body = json.dumps({"data": [], "fn_index": halt, "session_hash": session}).encode()
    assert server.ask("POST", "/gradio_api/run/halt", body, Content_Type="application/json")[0] == 200
    ends = threading.Thread(target=answer.read)
    ends.start()
    ends.join(10)
    assert not ends.is_alive()
    connection.close()
    assert slow.calls < 100


def test_listeners() -> None:
    listeners = guard.Listeners(grace_s=0.05)
    now = time.monotonic()
    listeners.enter("a")
    listeners.enter("a")
    listeners.leave("a")
    time.sleep(0.1)
    assert not listeners.gone("a", now)
    assert listeners.gone("b", now)
    listeners.leave("a")
    assert not listeners.gone("a", now), "it may come back"
    time.sleep(0.1)
    assert listeners.gone("a", now)
    listeners.enter("a")
    listeners.stop("a")
    assert listeners.gone("a", now)
    assert not listeners.gone("a", time.monotonic()), "a drawing begun later"
    for number in range(3000):
        listeners.enter(str(number))
        listeners.leave(str(number))
    assert len(listeners._left) <= 1000
    assert set(listeners._open) == {"a"}


def told(hosts: Any, kind: str = "http", method: str = "GET", path: str = "/", **headers: str) -> Any:
    """What a guard lets through or answers by itself: "passed", a status, or the code of a close."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": "passed"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "query_string": b"", "headers": given}
    asyncio.run(guard.Guard(app, hosts, Path("/nowhere"), 100, guard.Listeners())(scope, receive, send))
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize(
    ("hosts", "request_", "answer"),
    [
        (["Cats.Example"], {"host": "cats.example:80", "origin": "https://CATS.example"}, "passed"),
        (["Cats.Example"], {"host": "dogs.example"}, 403),
        (["cats.example"], {"host": "cats.example", "origin": "http://["}, 403),
        (None, {"host": "dogs.example", "origin": "http://evil.com"}, "passed"),
        (["a"], {"host": "b", "kind": "websocket"}, 1008),
        (["a"], {"host": "a", "kind": "websocket"}, "passed"),
        (["a"], {"host": "b", "kind": "lifespan"}, "passed"),
        (["a"], {"host": "a", "method": "HEAD", "transfer_encoding": "chunked"}, "passed"),
        (["a"], {"host": "a", "method": "POST"}, "passed"),
        (["a"], {"host": "a", "method": "POST", "content_length": str(2**20)}, "passed"),
        (["a"], {"host": "a", "method": "POST", "content_length": str(2**20 + 1)}, 413),
        (["a"], {"host": "a", "method": "PUT", "transfer_encoding": "chunked"}, 411),
        (["a"], {"host": "a", "method": "POST", "content_length": "-1"}, 411),
        (["a"], {"host": "a", "method": "POST", "path": "/x/upload/", "content_length": "100"}, "passed"),
        (["a"], {"host": "a", "method": "POST", "path": "/x/upload/", "content_length": "101"}, 413),
        (["a"], {"host": "a", "method": "POST", "path": "/x/upload"}, 411),
    ],
)
def test_who_is_let_through(hosts: Any, request_: dict[str, Any], answer: Any) -> None:
    assert told(hosts, **request_) == answer
