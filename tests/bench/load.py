"""A client that makes new connections at a fixed rate and knows what became of each."""

import socket
import threading
import time


class Load:
    """`rate` requests a second, one connection each, from `threads` threads."""

    def __init__(self, port, rate=400, threads=16, timeout=5):
        self.port, self.timeout = port, timeout
        self.interval = threads / rate
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.sent, self.failed, self.kinds = 0, 0, {}
        self.threads = [
            threading.Thread(target=self.work, args=(index * self.interval / threads,))
            for index in range(threads)
        ]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def work(self, offset):
        due = time.monotonic() + offset
        while not self.stopping.wait(max(0, due - time.monotonic())):
            due = max(due + self.interval, time.monotonic() - 1)
            fault = self.request()
            with self.lock:
                self.sent += 1
                if fault:
                    self.failed += 1
                    self.kinds[fault] = self.kinds.get(fault, 0) + 1

    def request(self):
        """The name of what went wrong, or nothing."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), self.timeout) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                answer = client.recv(4096)
        except OSError as error:
            return type(error).__name__
        return None if answer.startswith(b"HTTP/1.1 200") else "no answer"
