"""`python -m tests.bench.closed_loop HOST PORT CONNECTIONS`: each connection asks, waits for its answer, asks again.

A process of its own that costs little beside a server: prepared bytes over plain sockets, one thread, no HTTP library.
The first line on standard input is a JSON list of whole requests, which take turns; each line after it is answered by
one of `{"answers": N, "errors": N}`, so far. It ends with its input.
"""

import json
import selectors
import socket
import sys
from itertools import cycle

__all__ = ["Connection"]

END = b"\r\n\r\n"


class Connection:
    """One kept-alive connection, for answers with a content-length."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = b""

    def ask(self, request: bytes) -> bytes:
        """Send it and wait for the whole answer."""
        self.send(request)
        while (answer := self.receive()) is None:
            pass
        return answer

    def send(self, request: bytes) -> None:
        self._got = b""
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """What has come, once it is a whole answer. Raises ConnectionError where the other side closed."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._got += data
        head, end, body = self._got.partition(END)
        if not end:
            return None
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        return self._got if len(body) >= length else None


def main() -> None:
    host, port, connections = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    requests = cycle([text.encode() for text in json.loads(sys.stdin.readline())])
    counts = {"answers": 0, "errors": 0}
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for _ in range(connections):
        connection = Connection(host, port)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(next(requests))
    while True:
        for key, _ in selector.select():
            if key.data is None:
                if not sys.stdin.readline():
                    return
                print(json.dumps(counts), flush=True)
            elif (answer := key.data.receive()) is not None:
                counts["answers" if answer.split(b" ", 2)[1] == b"200" else "errors"] += 1
                key.data.send(next(requests))


if __name__ == "__main__":
    main()
