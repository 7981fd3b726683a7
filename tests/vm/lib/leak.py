"""An app that leaks at a rate: `leak.py MB-PER-SECOND LIMIT-MB [FILE]`.

It serves on PORT, is online by READY=1, and ends on SIGTERM between two requests.
As soon as it holds LIMIT-MB it prints `crossed GENERATION MICROSECONDS MB-PER-SECOND`: the moment
(CLOCK_REALTIME) just before the step that took it there, and the rate until then.

With FILE it leaks only once that was touched after its own start, and no more than a quarter above
LIMIT-MB; so all instances that run leak together, and those that follow do not.
"""

import os
import selectors
import signal
import socket
import sys
import threading
import time

MB = 1 << 20
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"
# The steps are so small that the moment of the crossing is known to a few milliseconds, and no
# smaller, since each costs a wake-up.
STEPS_PER_SECOND = 100
# A page table entry for each page.
WITH_PAGE_TABLES = 1 + 1 / 512
# From this rate on it takes huge pages: under emulation, page faults of 4 KiB allow half as much.
FAST = 50 * MB
HUGE = 2 * MB


def own_group():
    return open("/proc/self/cgroup").read().strip().split("::", 1)[1]


def held():
    """What no reclaim gets back, as pmr counts it."""
    stat = dict(line.split() for line in open(f"/sys/fs/cgroup{own_group()}/memory.stat"))
    value = {name: int(stat.get(name, 0)) for name in ("anon", "shmem", "kernel", "slab_reclaimable")}
    return value["anon"] + value["shmem"] + value["kernel"] - value["slab_reclaimable"]


def wait_for(path, started):
    while True:
        try:
            if os.stat(path).st_mtime > started:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.1)


def blocks(step):
    """Blocks of memory that are written to, without end."""
    while True:
        yield b"x" * step


def huge_blocks():
    """The same in huge pages, as far as there are any: nobody leaks more than this room."""
    import ctypes
    import mmap

    room = mmap.mmap(-1, 512 * MB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE)
    first = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % HUGE
    block = b"x" * HUGE
    for at in range(first, len(room) - HUGE, HUGE):
        room[at : at + HUGE] = block
        yield room


def leak(rate, limit, path, started):
    if path:
        wait_for(path, started)
    step = HUGE if rate >= FAST else max(rate // STEPS_PER_SECOND, 1 << 16)
    source = huge_blocks() if rate >= FAST else blocks(step)
    kept, crossed = [next(source)], False
    base, began = held() - step, time.monotonic()
    due = began
    while not path or not crossed or base + len(kept) * step < limit * 5 // 4:
        now = time.monotonic()
        # What was missed (a pause of the machine) is not made up for: that would be another rate.
        due = max(due + step / rate, now - 0.1)
        if due > now:
            time.sleep(due - now)
        before = time.time()
        kept.append(next(source))
        if not crossed and base + len(kept) * step * WITH_PAGE_TABLES >= limit:
            crossed = True
            reached = len(kept) * step / MB / (time.monotonic() - began)
            generation = own_group().rsplit(".", 1)[1]
            print("crossed", generation, int(before * 1e6), int(reached), flush=True)
    while True:
        time.sleep(3600)
        len(kept)


def serve(listener, ending):
    """One request after the other, so that at a SIGTERM none is in flight."""
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(ending, selectors.EVENT_READ)
    while True:
        if any(key.fileobj is ending for key, _ in selector.select()):
            return
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue
        with client:
            client.settimeout(5)
            try:
                request = b""
                while b"\r\n\r\n" not in request and (piece := client.recv(4096)):
                    request += piece
                client.sendall(ANSWER)
            except OSError as error:
                print("a client was lost:", error, flush=True)


def main():
    rate, limit, started = int(sys.argv[1]) * MB, int(sys.argv[2]) * MB, time.time()
    path = sys.argv[3] if len(sys.argv) > 3 else None
    ending, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=leak, args=(rate, limit, path, started), daemon=True).start()
    listener = socket.create_server(
        ("", int(os.environ["PORT"])), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    serve(listener, ending)
    # At once: an interpreter that ends tidily gives back a leak block by block.
    os._exit(0)


main()
