"""Clients that count who answers: `clients.py COMMAND PORT …`, for two instances or more that say
`instance SLOT (pid PID)` in their answers. The exit status is 0 only if all went as it should.

    turns PORT COUNT INSTANCES      so many connections, one after the other: strictly in turn
    queues PORT ROUNDS COUNT        an instance is stopped, COUNT connections are made, it is killed
    nobody PORT ROUNDS COUNT        all instances are killed, COUNT connections are made
    hang PORT CLIENTS COUNT         one is stopped under load for COUNT requests of each client
    overload PORT COUNT SUPERVISOR  all are stopped for a while, and COUNT connections are made
"""

import os
import re
import signal
import socket
import struct
import sys
import threading
import time

# Seconds until a request counts as never answered, as in load.py.
TIMEOUT = 20
# Seconds that anything else is waited for. It is the test's own deadline that counts.
PATIENCE = 120
DEADLINE = struct.pack("ll", TIMEOUT, 0)
WHO = re.compile(rb"instance (\d+) \(pid (\d+)\)")
REQUEST = b"GET / HTTP/1.1\r\nHost: clients\r\nConnection: close\r\n\r\n"
ESTABLISHED, CLOSE_WAIT, LISTEN = "01", "08", "0A"


def fail(text):
    print("FAILED:", text, flush=True)
    sys.exit(1)


def figure(name, value):
    print(f"FIGURE: {name}, {os.environ.get('WAY', 'as they are')}: {value}", flush=True)


def wait_for(what, found):
    """The first true value of `found`."""
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        if time.monotonic() > deadline:
            fail(f"not within {PATIENCE} s: {what}")
        time.sleep(0.02)
    return value


class Request:
    """A connection with a request; its answer is read later."""

    def __init__(self, port):
        self.began = time.monotonic()
        # A deadline of Python's own would be a poll(2) before each call, which tells under emulation.
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, DEADLINE)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, DEADLINE)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(REQUEST)

    def answer(self):
        """Slot and pid of who has answered; an OSError where nobody has, or not well."""
        answer = b""
        with self.socket:
            while piece := self.socket.recv(4096):
                answer += piece
        found = WHO.search(answer)
        if not found or not answer.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"no answer but {answer[:60]}")
        return int(found[1]), int(found[2])

    def why_not(self):
        """None if it was answered well."""
        try:
            self.answer()
        except BlockingIOError:
            return "no answer"
        except OSError as error:
            return str(error)
        return None


def ask(port):
    return Request(port).answer()


class Batch:
    """Requests that are waited for together."""

    def __init__(self, port, count):
        self.failed, self.requests, self.longest = [], [], 0.0
        for _ in range(count):
            try:
                self.requests.append(Request(port))
            except OSError as error:
                self.failed.append(str(error))

    def answered(self):
        """How many were."""
        answered = 0
        for request in self.requests:
            why = request.why_not()
            if why:
                self.failed.append(why)
            else:
                answered += 1
                self.longest = max(self.longest, time.monotonic() - request.began)
        return answered


def state(pid):
    """As ps has it, of all threads: T if they are all stopped; None where there is no process."""
    states = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat") as file:
                states.add(file.read().rpartition(")")[2].split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return None
    return states.pop() if len(states) == 1 else "-"


def is_gone(pid):
    return state(pid) in (None, "Z", "X")


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    wait_for("it stands still", lambda: state(pid) == "T")


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def instances(port, count=2):
    """`slot → pid` of as many as there are, once each of them is given connections."""

    def found():
        seen = dict(ask(port) for _ in range(2 * count))
        if len(seen) == count and not any(is_gone(pid) for pid in seen.values()):
            return seen
        return None

    return wait_for("all are given connections", found)


def sockets(port):
    """State, inode and length of the accept queue, for each socket that is bound to the port."""
    for path in ["/proc/net/tcp", "/proc/net/tcp6"]:
        with open(path) as file:
            for line in file.readlines()[1:]:
                words = line.split()
                if int(words[1].rpartition(":")[2], 16) == port:
                    yield words[3], int(words[9]), int(words[4].rpartition(":")[2], 16)


def held(pid):
    """Inodes of the sockets that a process has."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def queued(port, pid=None):
    """Connections that wait to be accepted: all of them, or by this process."""
    own = held(pid) if pid else None
    return sum(
        length for state, inode, length in sockets(port) if state == LISTEN and (not own or inode in own)
    )


def accepted(port, pid):
    """Connections that a process has accepted and not closed."""
    own = held(pid)
    return sum(1 for state, inode, _ in sockets(port) if state in (ESTABLISHED, CLOSE_WAIT) and inode in own)


def turns(port, count, of):
    seen = [ask(port)[0] for _ in range(count)]
    wrong = [at for at in range(of, count) if seen[at] != seen[at - of]]
    print(f"{count} connections, {of} instances: {len(wrong)} out of turn, begins with {seen[:12]}")
    if len(set(seen[:of])) != of or wrong:
        at = wrong[0] if wrong else 0
        fail(f"not in turn from connection {at} on: {seen[max(at - 10, 0):at + 10]}")


def report(what, answered, count, failed):
    print(f"{what}: {answered} of {count} answered")
    for why in failed[:8]:
        print("   ", why)
    if answered != count:
        fail(f"only {answered} of {count} were answered")


def queues(port, rounds, count):
    answered, waited, longest, failed = 0, 0, 0.0, []
    for number in range(rounds):
        pids = instances(port)
        victim = pids[number % 2]
        stop(victim)
        batch = Batch(port, count)
        waited += queued(port, victim)
        kill(victim)
        answered += batch.answered()
        failed += batch.failed
        longest = max(longest, batch.longest)
        wait_for("its death", lambda: is_gone(victim))
    report("queued at one that is killed", answered, rounds * count, failed)
    figure("connections that waited at one that was killed", f"{waited} of {rounds * count}")
    figure("longest answer, killed with a queue", f"{longest * 1000:.0f} ms")
    if not waited:
        fail("none has waited at an instance that was killed")


def nobody(port, rounds, count):
    answered, waited, longest, failed = 0, 0, 0.0, []
    for _ in range(rounds):
        pids = instances(port).values()
        for pid in pids:
            kill(pid)
        wait_for("nobody is left", lambda: all(is_gone(pid) for pid in pids))
        batch, most = Batch(port, 0), 0
        for _ in range(10):
            more = Batch(port, count // 10)
            batch.requests += more.requests
            batch.failed += more.failed
            most = max(most, queued(port))
        waited += most
        answered += batch.answered()
        failed += batch.failed
        longest = max(longest, batch.longest)
    report("while nobody served", answered, rounds * count, failed)
    figure("connections that waited for somebody to serve, at least", f"{waited} of {rounds * count}")
    figure("longest answer, nobody served", f"{longest * 1000:.0f} ms")
    if not waited:
        fail("none has waited")


class Load:
    """Clients that ask without end; what fails is kept."""

    def __init__(self, port, clients):
        self.port, self.ending, self.failed, self.done = port, threading.Event(), [], [0] * clients
        self.threads = [threading.Thread(target=self.client, args=(index,)) for index in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self, index):
        while not self.ending.is_set():
            try:
                why = Request(self.port).why_not()
            except OSError as error:
                why = f"connect: {error}"
            if why:
                self.failed.append(why)
            self.done[index] += 1
            # Else those who are answered would take the CPU for all the time that one waits.
            self.ending.wait(0.01)

    def goes_on(self, count):
        """Until each client is done with so many more."""
        before = list(self.done)
        done = lambda: all(now >= then + count for now, then in zip(self.done, before))
        wait_for(f"{count} more requests of each client", done)

    def stop(self):
        self.ending.set()
        for thread in self.threads:
            thread.join()


def hang(port, clients, count):
    before = instances(port)
    load = Load(port, clients)
    try:
        load.goes_on(5)
        victim = before[0]
        stop(victim)
        had = accepted(port, victim)
        load.goes_on(count)
        os.kill(victim, signal.SIGCONT)
        load.goes_on(5)
    finally:
        load.stop()
    total, failed = sum(load.done), load.failed
    print(f"a hang under load: {total} requests, {had} were accepted by the one that hung, failed: {failed}")
    figure("requests while one of two hangs", total)
    figure("requests that it had accepted, and that failed", f"{had}, {len(failed)}")
    if len(failed) > had or set(failed) - {"no answer"}:
        fail("others have failed than those that it had accepted")
    # It is tried again half a minute later at the latest.
    in_turn = lambda: (seen := [ask(port)[0] for _ in range(6)]) in ([0, 1] * 3, [1, 0] * 3)
    wait_for("both are given connections in turn", in_turn)
    if instances(port) != before:
        fail("an instance was replaced")


def switches(pid):
    """How often a process has waited."""
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.MULTILINE)[1])


def overload(port, count, supervisor):
    before = instances(port)
    # It looks again only when somebody waits at each of them: two connections that come a moment
    # apart are a hang of the first for as long.
    stop(supervisor)
    for pid in before.values():
        stop(pid)
    batch = Batch(port, count)
    waited = [queued(port, pid) for pid in before.values()]
    os.kill(supervisor, signal.SIGCONT)
    # It looks every 100 ms, and a hang is one after 250.
    looks = switches(supervisor) + 30
    wait_for("thirty looks", lambda: switches(supervisor) >= looks)
    after = [queued(port, pid) for pid in before.values()]
    for pid in before.values():
        os.kill(pid, signal.SIGCONT)
    answered = batch.answered()
    print(f"all stopped: {waited} wait, and {after} after thirty looks")
    report("at all that were stopped", answered, count, batch.failed)
    if waited != after or min(waited) < count // 2:
        fail("somebody was taken out")


def main():
    commands = {it.__name__: it for it in (turns, queues, nobody, hang, overload)}
    commands[sys.argv[1]](*map(int, sys.argv[2:]))


main()
