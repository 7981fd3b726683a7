"""What the kernel says of processes, and figures made of many of them."""

import ctypes
import os
import socket
import statistics
import time

TCP_ESTABLISHED = 1
PIDFD_GETFD = 438


def read(path):
    """The text of a file, or nothing where its process is gone."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(what, condition, seconds=20, pause=0.001):
    """Polls until `condition` gives something true, and gives that."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(pause)


def children(pid):
    """The children that the main thread of a process has, as the kernel lists them."""
    return {int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()}


def tree(pid):
    """A process and all below it."""
    return [pid] + [below for child in children(pid) for below in tree(child)]


def spawned_after(pid, known, seconds=5):
    """Polls until a process has a child that is not among `known`: when that was, to 0.1 ms.

    A poll without a pause would take one of the CPUs from the very processes it looks at.
    """
    deadline = time.monotonic_ns() + seconds * 1_000_000_000
    fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY)
    try:
        while True:
            listed = os.pread(fd, 4096, 0)
            now = time.monotonic_ns()
            if any(int(child) not in known for child in listed.split()):
                return now
            if now > deadline:
                raise TimeoutError(f"no new child of {pid} within {seconds} s")
            time.sleep(0.00003)
    finally:
        os.close(fd)


def memory_kib(pids):
    """RSS, PSS and private memory of processes together, in KiB."""
    sums = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for pid in pids:
        for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0])
    private = sums["Private_Clean"] + sums["Private_Dirty"]
    return {
        "rss": sums["Rss"],
        "pss": sums["Pss"],
        "private": private,
        "dirty": sums["Private_Dirty"],
    }


def tasks(pid):
    """The threads of a process."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []


def wakeups(pids):
    """How often threads of these processes went to sleep by themselves, so far."""
    total = 0
    for pid in pids:
        for task in tasks(pid):
            for line in read(f"/proc/{pid}/task/{task}/status").splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
    return total


def cpu_ms(pids):
    """CPU time of processes so far: of their threads, not of their children."""
    total = 0
    for pid in pids:
        for task in tasks(pid):
            fields = read(f"/proc/{pid}/task/{task}/schedstat").split()
            total += int(fields[0]) if fields else 0
    return total / 1e6


def run(argv, env):
    """Runs a command to its end: wall and CPU time in milliseconds, and its exit status."""
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
    start = time.perf_counter_ns()
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall = (time.perf_counter_ns() - start) / 1e6
    os.close(null)
    return wall, (usage.ru_utime + usage.ru_stime) * 1000, os.waitstatus_to_exitcode(status)


def is_stopped(pid):
    """Whether all of a process stands still."""
    return all(
        read(f"/proc/{pid}/task/{task}/stat").rpartition(") ")[2].startswith("T")
        for task in tasks(pid)
    )


def established(pid):
    """How many open connections a process has accepted or made; it has stopped."""
    call, count = ctypes.CDLL(None, use_errno=True).syscall, 0
    pidfd = os.pidfd_open(pid)
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
                continue
            copy = call(PIDFD_GETFD, pidfd, int(fd), 0)
            if copy < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            with socket.socket(fileno=copy) as one:
                tcp = one.family in (socket.AF_INET, socket.AF_INET6)
                tcp = tcp and one.type == socket.SOCK_STREAM
                count += tcp and one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == (
                    TCP_ESTABLISHED
                )
    finally:
        os.close(pidfd)
    return count


def median(values):
    return statistics.median(values) if values else None


def p90(values):
    """The value that nine tenths do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)] if ordered else None
