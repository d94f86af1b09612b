"""A local server whose answers break off, stall, are other bytes, lead nowhere or never come: as a test says, request by request."""

import socket
import threading
import time
from collections.abc import Callable

HANG = 60.0  # seconds that a fault lasts unless the other side goes first


class FaultyServer:
    """Serves one socket a request; `fault(number, path)` names what happens to it, None a healthy answer of `answer(method, path)`.

    `answer` returns (status, headers, body). Faults: "silent" (accepts and never answers), "stalls" (headers, half of the body,
    then nothing), "drops" (half of the body, then closed), "closes" (no answer at all), "html" (a page with status 200),
    "altered" (one byte is another), "loop" (a redirect to itself), "tls" (bytes that are no TLS, whatever comes), or a status.
    """

    def __init__(self, answer: Callable[[str, str], tuple[int, dict, bytes]]):
        self.answer, self.fault, self.asked = answer, lambda number, path: None, []
        self.closed = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=32)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        self.listener.close()

    def _serve(self) -> None:
        while not self.closed.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._respond(connection)
            except OSError:
                pass  # the other side has gone

    def _respond(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            part = connection.recv(1 << 16)
            if not part:
                return
            if part[:1] == b"\x16":  # a TLS hello
                self.asked.append("TLS")
                connection.sendall(b"I speak no TLS\r\n")
                return
            head += part
        head, _, body = head.partition(b"\r\n\r\n")
        lines = head.decode("latin1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(1 << 16)
        number = len(self.asked)
        self.asked.append(f"{method} {path}")
        fault = self.fault(number, path)
        if fault == "silent":
            self._wait(connection)
        elif fault == "closes":
            return
        elif fault == "html":
            self._send(connection, method, 200, {"Content-Type": "text/html"}, b"<html><body>Log in to the hotel's network</body></html>")
        elif fault == "loop":
            self._send(connection, method, 302, {"Location": f"{self.url}{path}"}, b"")
        elif isinstance(fault, int):
            self._send(connection, method, fault, {"Content-Type": "text/plain"}, b"no")
        else:
            status, more, data = self.answer(method, path)
            if begin := headers.get("range", "").removeprefix("bytes=").split("-")[0]:
                more = more | {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
                status, data = 206, data[int(begin) :]
            if fault == "altered" and data:
                data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
            if fault in ("stalls", "drops") and method != "HEAD":
                self._send(connection, method, status, more, data, len(data) // 2)
                if fault == "stalls":
                    self._wait(connection)
                return
            self._send(connection, method, status, more, data)

    def _send(self, connection, method: str, status: int, headers: dict, data: bytes, only: int | None = None) -> None:
        lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(data)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin1"))
        if method != "HEAD":
            connection.sendall(data[:only])

    def _wait(self, connection: socket.socket) -> None:
        connection.settimeout(0.2)
        until = time.monotonic() + HANG
        while time.monotonic() < until and not self.closed.is_set():
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                continue
