"""Connections to several instances behind one port: what one costs, who gets it, what is lost.

The same server (`backend.js`) is behind all variants. For the costs all of them run side by side,
and each round puts the same load on one after the other, so that what else the machine does is
spread over all. All servers are on one CPU then, and all clients on another: two servers on two
CPUs share these with their clients, and take up to half as much again as one does, whoever hands
out the connections. For crashes and hangs they run one at a time, on all CPUs.
"""

import json
import os
import signal
import subprocess
import time

from measure import cpu_ms, established, is_stopped, median, tree, until
from sides import CACHE
from variants import PM2, PLAIN, RESTART_DELAY_MS, Unfit, variants

# A server takes what has come since it looked last, and each look costs. With so many clients one
# server and four find several at each look.
MANY = 64
# While instances are killed and stopped.
CLIENTS = 16
# Of a client that counts crashes, and of one that counts hangs.
PATIENCE_MS, HASTE_MS = 3000, 1000
HANG_S = 4


class Clients:
    """The clients of `client.rs`, at work until they are done or stopped."""

    def __init__(
        self, variant, requests, kept=False, clients=MANY, seconds=60, timeout_ms=PATIENCE_MS
    ):
        ports = ",".join(map(str, variant.ports))
        words = [ports, clients, requests, requests if kept else 1, seconds, timeout_ms]
        self.process = subprocess.Popen(
            [CACHE / "client", *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def result(self):
        text = self.process.stdout.read()
        self.process.stdin.close()
        assert self.process.wait() == 0, "the clients failed"
        return json.loads(text)

    def stop(self):
        # They end when this is closed.
        self.process.stdin.close()
        return self.result()


class Costs:
    """What was seen of one variant, a figure a round."""

    def __init__(self):
        self.fresh_cpu, self.kept_cpu = [], []
        self.fresh_rate, self.kept_rate = [], []
        self.p99, self.spread, self.failed = [], [], 0


def measure(bench):
    costs, running = {}, []
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(cpus)})
        for variant in variants(bench, work=False):
            if started(variant, bench.report):
                running.append(variant)
                costs[variant.name] = Costs()
        os.sched_setaffinity(0, {min(cpus)})
        # Until Node has compiled what it does often, an instance takes twice the time.
        warm = bench.count(4000, 2500)
        for variant in running:
            Clients(variant, warm * variant.count).result()
            Clients(variant, 2 * warm * variant.count, kept=True).result()
        for round_ in range(bench.count(14, 6)):
            # Nobody is always behind the same one.
            turn = round_ % len(running)
            for variant in running[turn:] + running[:turn]:
                one_round(variant, costs[variant.name], bench.count(2400, 1600))
    finally:
        os.sched_setaffinity(0, cpus)
        for variant in running:
            variant.stop()
    report_costs(bench.report, costs)
    losses(bench)


def started(variant, report):
    """Starts it; where that cannot be, says so and ends what was started of it."""
    try:
        variant.start()
        return True
    except (Unfit, TimeoutError, RuntimeError, OSError) as error:
        report.remark(f"SKIPPED: {variant.name}: {error}")
        variant.stop()
        return False


def one_round(variant, costs, requests):
    pids = [pid for root in variant.roots() for pid in tree(root)]
    before = cpu_ms(pids)
    fresh = Clients(variant, requests).result()
    between = cpu_ms(pids)
    kept = Clients(variant, 4 * requests, kept=True).result()
    after = cpu_ms(pids)
    costs.fresh_cpu.append((between - before) * 1000 / fresh["answered"])
    costs.kept_cpu.append((after - between) * 1000 / kept["answered"])
    costs.fresh_rate.append(fresh["answered"] / fresh["seconds"])
    costs.kept_rate.append(kept["answered"] / kept["seconds"])
    costs.p99.append(fresh["p99_us"] / 1000)
    shares = list(fresh["by"].values()) + [0] * (variant.count - len(fresh["by"]))
    costs.spread.append(max(shares) - min(shares))
    costs.failed += sum(fresh["failed"].values()) + sum(kept["failed"].values())


def report_costs(report, costs):
    def ratio(name, other, kind):
        """The median of what it was in each round: both had the same neighbours then."""
        if other not in costs:
            return None
        pairs = zip(getattr(costs[name], kind), getattr(costs[other], kind))
        return median([one / two for one, two in pairs])

    rows = []
    for name, seen in costs.items():
        rows.append({
            "variant": name,
            "CPU µs/connection": median(seen.fresh_cpu),
            "of plain × 1": ratio(name, PLAIN, "fresh_cpu"),
            "of plain × n": ratio(name, as_many(name), "fresh_cpu"),
            "connections/s": median(seen.fresh_rate),
            "p99 ms": median(seen.p99),
            "max−min": max(seen.spread),
            "CPU µs/kept request": median(seen.kept_cpu),
            "of plain × n ": ratio(name, as_many(name), "kept_cpu"),
            "kept requests/s": median(seen.kept_rate),
            "failed": seen.failed,
        })
    report.table("New connections and kept ones", rows)
    for name in costs:
        if name.startswith("pmr"):
            compare(report, costs, name, ratio)


def compare(report, costs, name, ratio):
    """With as many plain nodes, for two of these already cost more than one."""
    def add(what, ours, theirs=None, target=None):
        report.add("balance", f"{name}: {what}", "", ours, theirs, target=target)

    kinds = (("fresh_cpu", "connection", 1.05), ("kept_cpu", "kept request", 1.03))
    for kind, what, target in kinds:
        theirs = ratio(PM2, as_many(PM2), kind) if PM2 in costs else None
        add(f"CPU of a {what} / plain node's", ratio(name, as_many(name), kind), theirs, target)
    add("CPU of a connection / PM2's", ratio(name, PM2, "fresh_cpu"), target=0.5)
    spread = max(costs[PM2].spread) if PM2 in costs else None
    add("connections, most − fewest of an instance", max(costs[name].spread), spread, target=0)


def as_many(name):
    """Plain nodes, as many as a variant has."""
    return f"plain node × {name[-1]}"


def losses(bench):
    """What is lost when one of two is killed, again and again, and when one hangs."""
    crashes, hangs = [], []
    for variant in variants(bench, work=True):
        if variant.count != 2 or not started(variant, bench.report):
            continue
        try:
            Clients(variant, 500).result()
            crashes.append({"variant": variant.name, **crash(variant, bench.count(12, 5))})
            hangs.append({"variant": variant.name, **hang(variant)})
        except (TimeoutError, AssertionError, ProcessLookupError) as error:
            bench.report.remark(f"{variant.name}: {error}")
        finally:
            variant.stop()
    delay = f"restarted after {RESTART_DELAY_MS} ms"
    bench.report.table(f"kill -9 of one of two, {CLIENTS} clients, {delay}", crashes)
    bench.report.table(f"One of two stopped for {HANG_S} s, {CLIENTS} clients, "
                       f"their patience {HASTE_MS} ms", hangs)
    for row in crashes:
        if row["variant"].startswith("pmr"):
            theirs = [other["others"] for other in crashes if other["variant"] == PM2]
            bench.report.add(
                "balance",
                f"{row['variant']}: failed by kills, but what was accepted",
                "",
                row["others"],
                theirs[0] if theirs else None,
                target=0,
            )


def crash(variant, kills):
    held = 0
    clients = Clients(variant, 400_000, clients=CLIENTS, seconds=90)
    try:
        time.sleep(1)
        for index in range(kills):
            victim = sorted(both(variant))[index % 2]
            # What it has accepted is counted while it stands still, a few milliseconds. What
            # comes meanwhile waits in queues.
            os.kill(victim, signal.SIGSTOP)
            until("it has stopped", lambda: is_stopped(victim), 5, 0.0005)
            held += established(victim)
            os.kill(victim, signal.SIGKILL)
            variant.killed(victim)
            both(variant)
            time.sleep(0.3)
    finally:
        seen = clients.stop()
    failed = sum(seen["failed"].values())
    in_flight = min(failed, held)
    return {
        "kills": kills,
        "answered": seen["answered"],
        "failed": failed,
        "in flight": in_flight,
        "others": failed - in_flight,
        "of them timeouts": seen["failed"].get("timeouts", 0),
    }


def both(variant):
    return until(
        f"two instances of {variant.name}",
        lambda: variant.serving() if len(variant.serving()) == 2 else None,
        30,
        0.02,
    )


def hang(variant):
    victim = sorted(both(variant))[0]
    clients = Clients(variant, 100_000, clients=CLIENTS, seconds=30, timeout_ms=HASTE_MS)
    try:
        time.sleep(1)
        os.kill(victim, signal.SIGSTOP)
        time.sleep(HANG_S)
    finally:
        os.kill(victim, signal.SIGCONT)
        time.sleep(1)
        seen = clients.stop()
    timeouts = seen["failed"].get("timeouts", 0)
    others = sum(seen["failed"].values()) - timeouts
    return {"answered": seen["answered"], "timeouts": timeouts, "other failures": others}
