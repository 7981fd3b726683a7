"""What is measured, one function a section. Each adds its rows to the report."""

import os
import signal
import subprocess
import time

import balance
from load import Load
from measure import (
    cpu_ms,
    memory_kib,
    median,
    p90,
    run,
    spawned_after,
    tasks,
    until,
    wakeups,
)
from sides import CACHE, NAP, nap

# PM2 takes no `min_uptime` below 100 ms.
RETRIES = {"min_uptime": 100, "max_restarts": 1000}


class Stamps:
    """The file in which each start of the stamp app stands."""

    def __init__(self, path):
        self.path = path
        path.touch()

    def lines(self):
        lines = self.path.read_text().splitlines()
        return [tuple(int(word) for word in line.split()) for line in lines]

    def next(self, count, seconds=10):
        """The pid and time of a start after the first `count`."""
        return until("a start", lambda: self.lines()[count:], seconds)[0]


class Bench:
    """What all sections share."""

    def __init__(self, pmr, pm2, scratch, report, quick, stamp):
        self.pmr, self.pm2, self.scratch = pmr, pm2, scratch
        self.report, self.quick, self.stamp = report, quick, str(stamp)

    def count(self, full, quick):
        return quick if self.quick else full

    def spawn(self):
        """Decision to start → main() of the child, and what a bare spawn of it takes."""
        stamps = Stamps(self.scratch / "spawn")
        app = self.pmr.start("spawn", [self.stamp, str(stamps.path)])
        app.wait_online(1)
        control = app.control()
        ours, bare = [], []
        for _ in range(self.count(60, 20)):
            control.call("Stop", slot=0)
            seen = len(stamps.lines())
            start = time.time_ns()
            control.call("Start", slot=0)
            ours.append((stamps.next(seen)[1] - start) / 1e6)
            bare.append(self.bare_spawn())
        self.report.add(
            "spawn", "Start on the control socket → child's main", "ms", median(ours), p90=p90(ours)
        )
        self.report.add(
            "spawn", "posix_spawn of the same → its main", "ms", median(bare), p90=p90(bare)
        )
        app.stop()

    def bare_spawn(self):
        stamps = Stamps(self.scratch / "bare")
        seen = len(stamps.lines())
        start = time.time_ns()
        pid = os.posix_spawn(self.stamp, [self.stamp, str(stamps.path)], os.environ)
        took = (stamps.next(seen)[1] - start) / 1e6
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return took

    def respawn(self):
        """kill -9 of an instance → its replacement, by turns."""
        stamps = Stamps(self.scratch / "respawn")
        app = self.pmr.start("respawn", [self.stamp, str(stamps.path)], **RETRIES)
        app.wait_online(1)
        sides = {"pmr": (stamps, app.keeper)}
        if self.pm2:
            other = Stamps(self.scratch / "respawn-pm2")
            daemon = self.pm2.daemon("respawn")
            script = {"script": self.stamp, "args": str(other.path), "interpreter": "none"}
            daemon.start({"name": "respawn", "exec_mode": "fork", **script, **RETRIES})
            sides["pm2"] = (other, daemon.pid)
        seen = {side: [] for side in sides}
        main = {side: [] for side in sides}
        for _ in range(self.count(40, 15)):
            for side, (file, parent) in sides.items():
                seen[side].append(self.kill_and_see(file, parent))
                main[side].append(self.kill_and_read(file))
        self.report.add(
            "respawn",
            "kill -9 → replacement spawned",
            "ms",
            median(seen["pmr"]),
            median(seen.get("pm2")),
            target=2,
            p90=p90(seen["pmr"]),
        )
        self.report.add(
            "respawn",
            "kill -9 → main of the replacement",
            "ms",
            median(main["pmr"]),
            median(main.get("pm2")),
            p90=p90(main["pmr"]),
        )
        app.stop()
        if self.pm2:
            daemon.close()

    @staticmethod
    def settle(stamps):
        """The instance of now, after whoever started it has gone to sleep again."""
        until("a first start", stamps.lines)
        time.sleep(0.03)
        return stamps.lines()[-1][0]

    def kill_and_see(self, stamps, parent):
        pid, count = self.settle(stamps), len(stamps.lines())
        with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
            known = {int(child) for child in file.read().split()}
        start = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        took = (spawned_after(parent, known) - start) / 1e6
        stamps.next(count)
        return took

    def kill_and_read(self, stamps):
        pid, count = self.settle(stamps), len(stamps.lines())
        start = time.time_ns()
        os.kill(pid, signal.SIGKILL)
        return (stamps.next(count)[1] - start) / 1e6

    def footprint(self):
        """Memory and wakeups of what supervises 2 and 50 instances that sleep."""
        ours, theirs = {}, {}
        memory = {}
        for count in (2, 50):
            app = self.pmr.start(f"nap{count}", NAP, instances=count)
            app.wait_online(count)
            ours[count] = app
            if count == 2:
                # PSS is shared with whoever else runs: alone, as on a machine with one app.
                time.sleep(2)
                memory[2] = memory_kib(app.processes())
            if self.pm2:
                daemon = self.pm2.daemon(f"nap{count}")
                daemon.start(nap("nap", count))
                theirs[count] = daemon
        time.sleep(self.count(30, 5))
        # PM2 looks at its apps every 30 s.
        seconds = self.count(60, 30)
        pids = {("pmr", count): app.processes() for count, app in ours.items()}
        pids |= {("pm2", count): [daemon.pid] for count, daemon in theirs.items()}
        before = {key: (wakeups(value), cpu_ms(value)) for key, value in pids.items()}
        time.sleep(seconds)
        after = {key: (wakeups(value), cpu_ms(value)) for key, value in pids.items()}
        figures = {key: memory_kib(value) for key, value in pids.items()}
        figures["pmr", 2] = memory[2]
        for count in (2, 50):
            targets = {"rss": 6, "pss": 2.5, "dirty": 0.6} if count == 2 else {}
            words = {"rss": "RSS", "pss": "PSS", "dirty": "private", "private": "private + clean"}
            for kind, word in words.items():
                self.report.add(
                    "memory",
                    f"{word}, {count} instances",
                    "MB",
                    figures["pmr", count][kind] / 1024,
                    figures[("pm2", count)][kind] / 1024 if self.pm2 else None,
                    target=targets.get(kind),
                )
        for count in (2, 50):
            for index, what in ((0, "wakeups a minute"), (1, "CPU a minute")):
                values = [
                    (after[key][index] - before[key][index]) * 60 / seconds if key in after else None
                    for key in (("pmr", count), ("pm2", count))
                ]
                self.report.add(
                    "idle",
                    f"{what}, {count} instances",
                    "" if index == 0 else "ms",
                    *values,
                    target=60 if index == 0 else None,
                )
        for app in ours.values():
            app.stop()
        for daemon in theirs.values():
            daemon.close()

    def status(self):
        """`status` of 1 app and of 20."""
        apps = [self.pmr.start("app0", NAP)]
        apps[0].wait_online(1)
        rounds = self.count(40, 15)
        wall, cpu = self.commands(self.pmr.status, rounds)
        self.report.add("status", "status, 1 app: wall", "ms", wall)
        apps += [self.pmr.start(f"app{index}", NAP) for index in range(1, 20)]
        for app in apps:
            app.wait_online(1)
        theirs = None, None
        if self.pm2:
            daemon = self.pm2.daemon("status")
            daemon.start(*[nap(f"app{index}", 1) for index in range(20)])
        time.sleep(1)
        supervisors = [pid for app in apps for pid in app.processes()]
        # By turns: the second half of pmr's comes after PM2's.
        first = self.samples(self.pmr.status, rounds // 2, supervisors)
        if self.pm2:
            theirs = self.commands(daemon.ls, self.count(15, 5))
            daemon.close()
        second = self.samples(self.pmr.status, rounds // 2, supervisors)
        wall, cpu, served = (median(a + b) for a, b in zip(first, second))
        self.report.add("status", "status, 20 apps: wall", "ms", wall, theirs[0], target=5)
        self.report.add("status", "status, 20 apps: CPU of the command", "ms", cpu, theirs[1])
        self.report.add("status", "status, 20 apps: CPU of the supervisors", "ms", served)
        for app in apps:
            app.stop()

    @staticmethod
    def commands(command, rounds):
        done = [command() for _ in range(rounds)]
        assert all(code == 0 for _, _, code in done), "a command failed"
        return median([wall for wall, _, _ in done]), median([cpu for _, cpu, _ in done])

    @staticmethod
    def samples(command, rounds, served_by):
        walls, cpus, served = [], [], []
        for _ in range(rounds):
            before = cpu_ms(served_by)
            wall, cpu, code = command()
            assert code == 0, "a command failed"
            walls.append(wall)
            cpus.append(cpu)
            served.append(cpu_ms(served_by) - before)
        return walls, cpus, served

    def many(self):
        """The start of 100 instances of one app."""
        walls, own, rss = [], [], []
        for index in range(self.count(3, 2)):
            start = time.perf_counter()
            app = self.pmr.start(f"many{index}", NAP, instances=100)
            app.wait_online(100)
            walls.append(time.perf_counter() - start)
            own.append(cpu_ms(app.processes()) / 1000)
            rss.append(memory_kib(app.processes())["rss"] / 1024)
            app.stop()
        theirs = {}
        if self.pm2:
            theirs = self.many_pm2()
        self.report.add("100", "100 instances: all online", "s", median(walls), theirs.get("wall"))
        self.report.add(
            "100", "100 instances: own CPU time", "s", median(own), theirs.get("own"), target=0.4
        )
        self.report.add("100", "100 instances: RSS", "MB", median(rss), theirs.get("rss"), target=6)

    def many_pm2(self):
        daemon = self.pm2.daemon("many")
        daemon.command("ping")
        before, start = cpu_ms([daemon.pid]), time.perf_counter()
        try:
            daemon.start(nap("many", 100))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.report.remark(f"100 instances under PM2: {error}")
            return {}
        wall = time.perf_counter() - start
        figures = {
            "wall": wall,
            "own": (cpu_ms([daemon.pid]) - before) / 1000,
            "rss": memory_kib([daemon.pid])["rss"] / 1024,
        }
        daemon.close()
        return figures

    def balance(self):
        """New connections, kept ones, crashes and hangs, by each way to share a port."""
        balance.measure(self)

    def policy(self):
        """The pure core alone."""
        words = ["cargo", "bench", "--locked", "--quiet", "--bench", "policy", "--"]
        words += ["--quick"] if self.quick else []
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.report.remark(f"policy core: {done.stderr[-300:]}")
            return
        for line in done.stdout.splitlines():
            name, _, per_second = line.rpartition("\t")
            if name:
                self.report.add("policy", f"policy core: {name}", "events/s", float(per_second))

    def death(self):
        """kill -9 of the supervisor while 400 connections a second are made."""
        port = free_port()
        words = ["demo", "--port", str(port), "--instances", "2"]
        app = self.pmr.launch("demo", words)
        app.wait_online(2)
        answered = []
        with Load(port) as load:
            time.sleep(1)
            for _ in range(self.count(8, 4)):
                answered.append(self.kill_supervisor(app))
                time.sleep(0.7)
        app.stop()
        theirs = self.death_pm2() if self.pm2 else None
        self.report.add(
            "death",
            "kill -9 of the supervisor → the next answers",
            "ms",
            median(answered),
            p90=p90(answered),
        )
        self.report.add(
            "death",
            "failed requests of 10,000 meanwhile",
            "",
            load.failed * 10_000 / load.sent,
            theirs.failed * 10_000 / theirs.sent if theirs else None,
            target=0,
        )
        self.report.remark(f"supervisor killed {len(answered)} times: {outcome(load)}")
        if theirs:
            self.report.remark(f"PM2's daemon killed once, seen for 8 s: {outcome(theirs)}")

    @staticmethod
    def kill_supervisor(app):
        control = app.control()
        old = control.call("Describe")["app"]["supervisor_pid"]
        start = time.perf_counter()
        os.kill(old, signal.SIGKILL)
        # The listening socket is the keeper's: whoever connects now is answered by the next one.
        while True:
            try:
                new = app.control().call("Describe")["app"]["supervisor_pid"]
            except OSError:
                continue
            if new != old:
                return (time.perf_counter() - start) * 1000

    def death_pm2(self):
        port = free_port()
        daemon = self.pm2.daemon("death")
        script = str(CACHE.parents[1] / "tests" / "bench" / "server.js")
        daemon.start({
            "name": "server",
            "script": script,
            "exec_mode": "cluster",
            "instances": 2,
            "env": {"PORT": str(port)},
        })
        until("PM2's app", lambda: Load(port).request() is None, 20, 0.1)
        with Load(port) as load:
            time.sleep(1)
            left = daemon.instances()
            os.kill(daemon.pid, signal.SIGKILL)
            time.sleep(8)
        for pid in left:
            if tasks(pid):
                os.kill(pid, signal.SIGKILL)
        return load


def outcome(load):
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(load.kinds.items()))
    return f"{load.sent} requests, {load.failed} failed{f' ({kinds})' if kinds else ''}"


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
