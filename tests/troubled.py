"""A server before an S3 server, that makes the trouble that stores make."""

import socket
import threading
import time

_KINDS = {
    "throttles": (b"503 Slow Down", b"SlowDown", b"Please reduce your request rate."),
    "fails": (b"500 Internal Server Error", b"InternalError", b"We encountered an internal error."),
    "denied": (b"403 Forbidden", b"ExpiredToken", b"The provided token has expired."),
}


_PIECE, _SLOW = 1024, 20_000
"""Bytes at a time, and in a second, of a server that is slow."""


def _answer(mood: str) -> bytes:
    status, code, message = _KINDS[mood]
    body = b"<Error><Code>%s</Code><Message>%s</Message></Error>" % (code, message)
    return (
        b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (status, len(body), body)
    )


class Troubled:
    """A server before an S3 server, that passes connections on, or does as `mood` says."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.mood, self.seen = target, "well", 0
        self.after = 0
        """Connections that pass before the mood counts."""
        self.for_seconds = 0.0
        """How long it then lasts; 0: for ever."""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self._begin()

    def falls(self, mood: str, after: int = 0, seconds: float = 0.0) -> None:
        self.seen, self.after, self.for_seconds, self.mood = 0, after, seconds, mood

    def shut(self) -> None:
        """Refuse connections, until it is `open` again; nobody else gets its port."""
        port = self.port
        self.listener.shutdown(socket.SHUT_RDWR)  # or who waits at it would go on
        self.listener.close()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))

    def open(self) -> None:
        self.listener.listen(128)
        self._begin()

    def _begin(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.seen += 1
            if self.seen == self.after + 1 and self.for_seconds and self.mood != "well":
                threading.Timer(self.for_seconds, setattr, (self, "mood", "well")).start()
            mood = self.mood if self.seen > self.after else "well"
            threading.Thread(target=self._answer, args=(client, mood), daemon=True).start()

    def _answer(self, client: socket.socket, mood: str) -> None:
        with client:
            if mood in ("well", "slow", "cuts"):
                self._pass_on(client, mood)
            elif mood in _KINDS:
                client.settimeout(0.3)
                try:
                    while client.recv(1 << 20):
                        pass
                except OSError:
                    client.sendall(_answer(mood))
            elif mood == "silent":
                while self.mood == "silent":
                    time.sleep(0.5)
                time.sleep(60)

    def _pass_on(self, client: socket.socket, mood: str) -> None:
        """One connection, until either side ends it; the server is asked to end it with its answer. A server
        that is slow takes its time with that, one that cuts ends in the middle of what is read."""
        gets = headed = False
        with socket.create_connection(self.target) as server:

            def forth() -> None:
                nonlocal gets
                try:
                    while data := client.recv(1 << 16):
                        gets = gets or data.startswith(b"GET ")
                        server.sendall(data.replace(b"Connection: Keep-Alive", b"Connection: close"))
                except OSError:
                    pass

            threading.Thread(target=forth, daemon=True).start()
            try:
                while data := server.recv(_PIECE if mood == "slow" else 1 << 16):
                    start = 0 if headed else data.find(b"\r\n\r\n") + 4
                    headed = headed or start > 3
                    if mood == "cuts" and gets and headed and len(data) > start + 1:
                        client.sendall(data[: (start + len(data)) // 2])
                        return
                    client.sendall(data)
                    if mood == "slow":
                        time.sleep(_PIECE / _SLOW)
            except OSError:
                pass
