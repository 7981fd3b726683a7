"""The ways to have several instances behind one port, each with the same server."""

import os
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

from measure import until
from sides import ROOT

HERE = ROOT / "tests" / "bench"
BACKEND = str(HERE / "backend.js")
RESTART_DELAY_MS = 500
RESTARTS = {"restart_delay": RESTART_DELAY_MS, "min_uptime": 100, "max_restarts": 1000}
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
PLAIN, PM2 = "plain node × 1", "PM2 cluster × 2"


class Unfit(Exception):
    """A variant that cannot be measured here, and why."""


class Variant:
    """One of them: `count` instances behind `port`."""

    def __init__(self, bench, name, count, work):
        self.name, self.count = f"{name} × {count}", count
        self.bench = bench
        self.port = free_port()
        # Where clients go.
        self.ports = [self.port]
        self.place = bench.scratch / f"balance-{self.port}"
        self.place.mkdir()
        self.env = {"READY": str(self.place), "PORT": str(self.port)}
        if work:
            self.env["WORK"] = "1"
        self.processes, self.dead = [], set()

    def serving(self):
        """The instances that listen."""
        pids = {int(name) for name in os.listdir(self.place)} - self.dead
        return {pid for pid in pids if os.path.exists(f"/proc/{pid}")}

    def killed(self, pid):
        """Hears that an instance was killed."""
        self.dead.add(pid)

    def wait(self):
        until(f"{self.name}", lambda: len(self.serving()) == self.count, 20, 0.05)

    def spawn(self, words, env):
        with open(self.place.with_suffix(".log"), "ab") as log:
            process = subprocess.Popen(
                words,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # As pmr does with its instances: the scheduler divides a CPU among sessions.
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def roots(self):
        """The processes whose trees are all that works for it."""
        return [process.pid for process in self.processes if process.poll() is None]

    def stop(self):
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = []


class Node(Variant):
    """Node alone, which all others are compared with. Of several, each has a port of its own, and
    the clients take turns: what that costs is not of anything between clients and servers."""

    def __init__(self, bench, count):
        super().__init__(bench, "plain node", count, False)
        self.ports = [free_port() for _ in range(count)]

    def start(self):
        for port in self.ports:
            self.spawn([program("node"), BACKEND], {**self.env, "PORT": str(port)})
        self.wait()


class Cluster(Variant):
    """Node's own cluster: its primary accepts, and hands each connection over."""

    def __init__(self, bench, work):
        super().__init__(bench, "Node cluster", 2, work)

    def start(self):
        self.spawn([program("node"), str(HERE / "cluster.js"), str(self.count)], self.env)
        self.wait()


class Pm2Cluster(Variant):
    """PM2's cluster mode, which is Node's with PM2's daemon as the primary."""

    def __init__(self, bench, work):
        super().__init__(bench, "PM2 cluster", 2, work)
        self.daemon = None

    def start(self):
        if self.bench.pm2 is None:
            raise Unfit("there is no PM2")
        self.daemon = self.bench.pm2.daemon(f"balance-{self.port}")
        self.daemon.start({
            "name": "balance",
            "script": BACKEND,
            "exec_mode": "cluster",
            "instances": self.count,
            "env": self.env,
            **RESTARTS,
        })
        self.wait()

    def roots(self):
        return [self.daemon.pid]

    def stop(self):
        if self.daemon:
            self.daemon.close()


class Proxy(Variant):
    """A proxy of connections before two plain instances, which somebody else starts again."""

    def __init__(self, bench, name, work):
        super().__init__(bench, name, 2, work)
        self.behind = [free_port() for _ in range(self.count)]
        self.backends = {}

    def start(self):
        tool = program(self.tool)
        for port in self.behind:
            self.start_backend(port)
        self.wait()
        config = self.place.with_suffix(".conf")
        config.write_text(self.config())
        self.spawn([tool, *self.words(config)], {})
        until(self.name, self.answers, 10, 0.05)

    def start_backend(self, port):
        process = self.spawn([program("node"), BACKEND], {**self.env, "PORT": str(port)})
        self.backends[process.pid] = port

    def answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                return client.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def killed(self, pid):
        super().killed(pid)
        port = self.backends.pop(pid)
        for process in self.processes:
            if process.pid == pid:
                process.wait()
        time.sleep(RESTART_DELAY_MS / 1000)
        self.start_backend(port)


class Nginx(Proxy):
    """nginx with its stream module. No server is taken out after a failure: clients that come
    again at once would find both out."""

    tool = "nginx"

    def __init__(self, bench, work):
        super().__init__(bench, "nginx stream", work)

    def words(self, config):
        return ["-p", str(self.place.parent), "-c", str(config), "-e", "stderr"]

    def config(self):
        servers = "".join(f"server 127.0.0.1:{port} max_fails=0; " for port in self.behind)
        module = f"load_module {STREAM_MODULE};\n" if STREAM_MODULE.exists() else ""
        user = "user root;\n" if os.geteuid() == 0 else ""
        return (
            f"{module}{user}daemon off;\nworker_processes 1;\nerror_log stderr crit;\n"
            f"pid {self.place}.pid;\nevents {{ worker_connections 4096; }}\n"
            f"stream {{ upstream two {{ {servers}}}\n"
            f"server {{ listen 127.0.0.1:{self.port} backlog=4096; proxy_pass two; }} }}\n"
        )


class Haproxy(Proxy):
    """haproxy in tcp mode, which tries another server where it cannot connect."""

    tool = "haproxy"

    def __init__(self, bench, work):
        super().__init__(bench, "haproxy tcp", work)

    def words(self, config):
        return ["-db", "-f", str(config)]

    def config(self):
        servers = "".join(
            f" server s{index} 127.0.0.1:{port}\n" for index, port in enumerate(self.behind)
        )
        return (
            "global\n maxconn 2000\n nbthread 1\ndefaults\n mode tcp\n timeout connect 1s\n"
            " timeout client 60s\n timeout server 60s\n retries 3\n option redispatch\n"
            f"listen all\n bind 127.0.0.1:{self.port} backlog 4096\n balance roundrobin\n{servers}"
        )


class Pmr(Variant):
    """pmr by one of its adapters."""

    def __init__(self, bench, adapter, count, work):
        super().__init__(bench, f"pmr {adapter}", count, work)
        self.adapter, self.app = adapter, None

    def start(self):
        node = program("node")
        # Behind a shell pmr does not see Node, as it does not behind `npm start`.
        hidden = ["/bin/sh", "-c", 'exec "$0" "$@"', node, BACKEND]
        command = [node, BACKEND] if self.adapter == "node" else hidden
        key = "listen" if self.adapter == "inherit" else "port"
        value = [f"127.0.0.1:{self.port}"] if key == "listen" else self.port
        self.app = self.bench.pmr.start(
            f"balance-{self.port}",
            command,
            instances=self.count,
            exec_mode="cluster",
            env=self.env,
            **{key: value},
            **RESTARTS,
        )
        self.wait()
        self.app.wait_online(self.count)
        balance = self.app.control().call("Describe")["app"]["balance"] or {}
        adapter, steered = balance.get("adapter"), balance.get("steered")
        if adapter != self.adapter or not steered:
            how = "steered" if steered else "not steered"
            raise Unfit(f"pmr runs it by {adapter}, {how}: {balance.get('note')}")

    def wait(self):
        until(self.name, lambda: self.app.is_dead() or len(self.serving()) == self.count, 20, 0.05)

    def roots(self):
        return [self.app.keeper]

    def stop(self):
        if self.app:
            self.app.stop()


def variants(bench, work):
    """All of them, not started; with `work` those that crashes are tried on."""
    found = [] if work else [Node(bench, count) for count in (1, 2, 4)]
    found += [kind(bench, work) for kind in (Pm2Cluster, Cluster, Nginx, Haproxy)]
    for count in [2] if work else [2, 4]:
        found += [Pmr(bench, adapter, count, work) for adapter in ("node", "inherit", "bind")]
    return found


def program(name):
    found = shutil.which(name)
    if found is None:
        raise Unfit(f"there is no {name} here")
    return found


PORTS_GIVEN = set()


def free_port():
    """A port that nobody has or was given, and that no client is given for its own end."""
    while True:
        port = random.randrange(10_000, 16_000)
        if port in PORTS_GIVEN:
            continue
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        PORTS_GIVEN.add(port)
        return port
