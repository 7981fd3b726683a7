"""Requests without end: `load.py PORT CLIENTS DIRECTORY`, until SIGTERM.

Each is a connection of its own, so none hides in a connection that is kept. What counts as failed:
refused, reset, an answer that is not 200 or not whole, and none at all within 20 s. The counts are
in files of DIRECTORY: answered, failed, longest_ms, and the failures, a line each.
"""

import os
import signal
import socket
import sys
import threading
import time

# Seconds until a request counts as never answered. Under emulation all takes ten times as long.
TIMEOUT = 20
PATH = os.environ.get("LOAD_PATH", "/")
REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n".encode()


class Counts:
    def __init__(self, directory):
        self.directory, self.lock = directory, threading.Lock()
        self.answered = self.failed = self.longest_ms = 0
        self.failures = open(f"{directory}/failures", "w", buffering=1)
        self.write()

    def add(self, why, seconds):
        with self.lock:
            if why:
                self.failed += 1
                self.failures.write(f"{time.monotonic():.3f} after {seconds:.3f} s: {why}\n")
            else:
                self.answered += 1
                self.longest_ms = max(self.longest_ms, int(seconds * 1000))

    def write(self):
        with self.lock:
            values = {name: getattr(self, name) for name in ("answered", "failed", "longest_ms")}
        for name, value in values.items():
            with open(f"{self.directory}/.{name}", "w") as file:
                file.write(f"{value}\n")
            os.rename(f"{self.directory}/.{name}", f"{self.directory}/{name}")


def ask(port):
    """One request: None if it was answered well, else why not."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as client:
            client.sendall(REQUEST)
            answer = b""
            while piece := client.recv(65536):
                answer += piece
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return str(error)
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return f"closed after {len(answer)} bytes"
    if b" 200 " not in head.split(b"\r\n")[0]:
        return head.split(b"\r\n")[0].decode(errors="replace")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:") and int(line[15:]) != len(body):
            return f"{len(body)} bytes of {int(line[15:])}"
    return None


def client(port, counts, ending):
    while not ending.is_set():
        began = time.monotonic()
        why = ask(port)
        counts.add(why, time.monotonic() - began)
        # A client that was refused tries again a little later; else a gap of a moment would count
        # a thousand failures, and take the CPU from who is to end it.
        if why:
            ending.wait(0.05)


def main():
    port, clients, counts = int(sys.argv[1]), int(sys.argv[2]), Counts(sys.argv[3])
    ending, told_to_end = threading.Event(), []
    # Not the event itself: the signal may come while this thread holds its lock, for ever then.
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.append(True))
    threads = [threading.Thread(target=client, args=(port, counts, ending)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    while not told_to_end:
        time.sleep(0.1)
        counts.write()
    ending.set()
    for thread in threads:
        thread.join()
    counts.write()


main()
