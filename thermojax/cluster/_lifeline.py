"""The connections that stay open while a run of several processes lasts, and what their end means."""

import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

# Words on the line, each with a newline.
_BEAT, _DONE, _FAILED, _END = "beat", "done", "failed", "end"
# How long a process that failed waits for the news that another one died, which may be why it failed.
GRACE = 1.0


class Lifeline:
    """Watches the other processes of a run in a thread, and ends this one with a sentence if one of them ends too early.

    Process 0 watches all others, which watch process 0; what it learns it passes on.
    """

    def __init__(self, process: int, connections: dict[int, socket.socket], heartbeat: float, at_loss: Callable[[str], None]):
        """`at_loss` takes the sentence that tells who is lost; it must end the process, and is called in the watching thread."""
        self.process = process
        self.failed = False
        self._at_loss = at_loss
        self._heartbeat = heartbeat
        self._connections = connections
        self._words = dict.fromkeys(connections, b"")
        self._heard = dict.fromkeys(connections, time.monotonic())
        self._gone: set[int] = set()
        self._failures: set[int] = set()
        self._done: set[int] = set()
        self._news = threading.Condition()
        self._over = False
        for connection in connections.values():
            connection.settimeout(heartbeat)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="lifeline")
        self._thread.start()

    def wait_for_done(self) -> None:
        """Until all that are watched have said that they are done."""
        with self._news:
            self._news.wait_for(lambda: set(self._connections) <= self._done)

    def say_done(self) -> None:
        """Tell the others that this process is done."""
        self._say(_DONE)

    def close(self) -> None:
        """Watch no longer."""
        self._over = True
        self._thread.join()
        self._hang_up()

    def fail(self) -> None:
        """This process ends with an error of its own: tell the others, and leave them time to tell of a death that may have caused it."""
        self.failed = True
        self._say(_FAILED)
        time.sleep(GRACE)
        self._over = True
        self._thread.join(GRACE)
        # Before anything else of this process is closed, so that the others know why.
        self._hang_up()

    def _say(self, word, *, but=None):
        for other, connection in self._connections.items():
            if other not in self._gone and other != but:
                # Who is gone is seen when the connection is read.
                with suppress(OSError):
                    connection.sendall(f"{word}\n".encode())

    def _hang_up(self):
        for connection in self._connections.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _watch(self):
        pause = self._heartbeat / 5
        beat = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for other, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, other)
            while not self._over:
                for entry, _ in selector.select(min(pause, 0.2)):
                    other, connection = entry.data, self._connections[entry.data]
                    if self._read(other, connection):
                        continue
                    selector.unregister(connection)
                    self._gone.add(other)
                    if other not in self._done and not self._over:
                        how = "ended early, as its own output tells" if other in self._failures else "has died"
                        self._lost(other, f"process {other} {how}")
                now = time.monotonic()
                if now - beat > pause:
                    beat = now
                    self._say(_BEAT)
                for other, heard in self._heard.items():
                    if now - heard > self._heartbeat and other not in self._gone | self._done and not self._over:
                        self._lost(other, f"process {other} has died or cannot be reached: nothing was heard of it for {now - heard:.0f} s")

    def _read(self, other, connection):
        """Take in what a process says; False if it is gone."""
        try:
            data = connection.recv(4096)
        except OSError:
            return False
        if not data:
            return False
        self._heard[other] = time.monotonic()
        *lines, self._words[other] = (self._words[other] + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == _DONE:
                with self._news:
                    self._done.add(other)
                    self._news.notify_all()
            elif word == _FAILED:
                self._failures.add(other)
            elif word == _END:
                self._lost(other, rest)
        return True

    def _lost(self, other, what):
        if self.failed and other in self._failures:
            # Both have errors to tell of.
            return
        if self.process == 0:
            self._say(f"{_END} {what}", but=other)
        self._at_loss(what)


def end_process(code: int) -> None:
    """End this process now: what JAX does when a process ends waits for the others, or aborts."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):
            stream.flush()
    os._exit(code)
