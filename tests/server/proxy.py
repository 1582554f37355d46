"""A network that can fail: a TCP port in front of a database's socket, which a test cuts, freezes and restores."""

import selectors
import socket
import threading
from contextlib import suppress
from typing import Self

__all__ = ["Proxy"]


class Proxy:
    """In one thread. `cut`: connections end, new ones end as they come. `freeze`: bytes are taken and go nowhere."""

    def __init__(self, target: str) -> None:
        """`target`: a unix socket."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for own in (self._listener, self._woken):
            self._selector.register(own, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._state = "up"
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        with self._lock:
            self._state = "cut"
            self._end_all()

    def freeze(self) -> None:
        with self._lock:
            self._state = "frozen"

    def restore(self) -> None:
        """What was frozen ends: it would be out of step."""
        with self._lock:
            if self._state == "frozen":
                self._end_all()
            self._state = "up"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._state = "closed"
        self._wake.send(b"x")
        self._thread.join()
        self._end_all()
        for own in (self._listener, self._wake, self._woken):
            own.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            ready = self._selector.select()
            with self._lock:
                if self._state == "closed":
                    return
                for key, _ in ready:
                    assert isinstance(key.fileobj, socket.socket)
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._peers:
                        self._forward(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._state == "cut":
            client.close()
            return
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.connect(self._target)
        for one, other in ((client, server), (server, client)):
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            data = source.recv(1 << 16)
        if not data:
            self._end(source)
        elif self._state == "up":
            with suppress(OSError):
                self._peers[source].sendall(data)

    def _end(self, one: socket.socket) -> None:
        for own in (one, self._peers.pop(one)):
            self._peers.pop(own, None)
            self._selector.unregister(own)
            own.close()

    def _end_all(self) -> None:
        while self._peers:
            self._end(next(iter(self._peers)))
