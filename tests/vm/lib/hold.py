"""Stops every supervisor of a keeper as soon as it is there: `hold.py KEEPER-PID FILE`, until SIGTERM.

Each stays stopped for as long as it lives. The pids are in FILE, a line each. At the end nobody is
let go: that is for the test to do.
"""

import os
import signal
import sys
import time

# Seconds between two looks: an adopt takes longer than that under emulation.
INTERVAL = 0.02


def is_supervisor(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().startswith(b"pmr\0supervise")
    except OSError:
        return False


def main():
    keeper, held, told_to_end = sys.argv[1], set(), []
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.append(True))
    with open(sys.argv[2], "w", buffering=1) as told:
        while not told_to_end:
            time.sleep(INTERVAL)
            with open(f"/proc/{keeper}/task/{keeper}/children") as file:
                children = set(file.read().split())
            held &= children
            for pid in sorted(children - held):
                if is_supervisor(pid):
                    os.kill(int(pid), signal.SIGSTOP)
                    held.add(pid)
                    told.write(f"{pid}\n")


main()
