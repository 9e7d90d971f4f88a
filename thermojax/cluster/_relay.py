"""Between JAX and its service in process 0: a door of this process, which stays open when process 0 is gone.

JAX aborts the process, with a trace of its stack, at the moment that its connection to the service is closed. What then is to be said and
done is the business of the lifeline: to JAX the connection merely falls silent.
"""

import socket
import threading
import time
from contextlib import suppress


class Relay:
    """Forwards what comes to `address`, a port of this machine, to the host and port of the service."""

    def __init__(self, host: str, port: int):
        """The service need not be there yet."""
        self._far = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        # A connection that nobody refers to is closed.
        self._near: list[socket.socket] = []
        self._closed = False
        _start(self._serve)

    def close(self) -> None:
        """Forward no longer."""
        self._closed = True
        for end in (self._listener, *self._near):
            with suppress(OSError):
                # Who waits for it in another thread waits no longer.
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _serve(self):
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._near.append(near)
                _start(self._forward, near)

    def _forward(self, near):
        far = None
        while far is None:
            if self._closed:
                return
            try:
                far = socket.create_connection(self._far, timeout=5.0)
            except OSError:
                # JAX has a limit to its patience, and the lifeline tells if process 0 is gone.
                time.sleep(0.1)
        with far:
            far.settimeout(None)
            back = _start(_pump, far, near)
            _pump(near, far)
            with suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)
            back.join()


def _pump(source, sink):
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)


def _start(work, *arguments):
    thread = threading.Thread(target=work, args=arguments, daemon=True, name="relay")
    thread.start()
    return thread
