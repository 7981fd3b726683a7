"""The two that are measured: pmr as it was built here, and PM2 from the npm registry."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from measure import children, read, run, until

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "target" / "bench"
PM2_VERSION = "7"


class App:
    """An app under `pmr run`."""

    def __init__(self, pmr, name, process, log):
        self.pmr, self.name, self.process, self.log = pmr, name, process, log

    @property
    def keeper(self):
        return self.process.pid

    def output(self):
        return self.log.read_text(errors="replace")

    def wait_online(self, count, seconds=30):
        until(
            f"{self.name}: {count} online",
            lambda: self.output().count(" online after ") >= count or self.is_dead(),
            seconds,
        )

    def is_dead(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended: {self.output()[-1000:]}")
        return False

    def supervisor(self):
        """The child of the keeper that is pmr too."""
        found = [pid for pid in children(self.keeper) if read(f"/proc/{pid}/comm") == "pmr\n"]
        return found[0] if found else None

    def processes(self):
        return [self.keeper, until("a supervisor", self.supervisor)]

    def control(self):
        return Control(self.pmr.directory / self.name / "io.pmr.App")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            # Systemd's part: whoever is left goes with the keeper.
            self.process.kill()
            self.process.wait()


class Control:
    """A connection to an app's control socket, so that no command is started to ask it."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))

    def call(self, method, **parameters):
        request = {"method": f"io.pmr.App.{method}", "parameters": parameters}
        self.socket.sendall(json.dumps(request).encode() + b"\0")
        answer = b""
        while not answer.endswith(b"\0"):
            part = self.socket.recv(65536)
            if not part:
                raise ConnectionError("the control socket was closed")
            answer += part
        answer = json.loads(answer[:-1])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer}")
        return answer["parameters"]


class Pmr:
    """pmr's release build, with a runtime directory of its own."""

    def __init__(self, binary, scratch):
        self.binary = str(binary)
        # Short: the path of a socket has 108 bytes.
        self.directory = scratch / "run"
        self.configs = scratch / "configs"
        self.configs.mkdir()
        self.directory.mkdir()
        self.env = {**os.environ, "PMR_RUNTIME_DIR": str(self.directory), "NO_COLOR": "1"}
        self.apps = []

    def start(self, name, command, **keys):
        """Runs an app; `keys` go into its config."""
        lines = [f"command = {json.dumps(command)}"]
        lines += [f"{key} = {toml(value)}" for key, value in keys.items()]
        config = self.configs / f"{name}.toml"
        config.write_text("\n".join(lines) + "\n")
        return self.launch(name, ["run", str(config)])

    def launch(self, name, arguments):
        log = self.configs / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [self.binary, *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        app = App(self, name, process, log)
        self.apps.append(app)
        return app

    def status(self):
        return run([self.binary, "status"], self.env)

    def close(self):
        for app in self.apps:
            app.stop()


class Daemon:
    """A PM2 daemon with a home of its own."""

    def __init__(self, pm2, home):
        self.pm2, self.home = pm2, home
        home.mkdir()
        self.env = {**os.environ, "PM2_HOME": str(home), "PM2_DISABLE_VERSION_CHECK": "1"}
        self.argv = [pm2.node, pm2.script]

    def command(self, *words, seconds=120):
        done = subprocess.run(
            [*self.argv, *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            text = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise RuntimeError(f"pm2 {words[0]}: {text[-300:]}")

    def start(self, *apps):
        """Starts apps, each a dict as in an ecosystem file."""
        file = self.home / f"{apps[0]['name']}.json"
        file.write_text(json.dumps({"apps": list(apps)}))
        self.command("start", str(file))

    @property
    def pid(self):
        return int(until("PM2's pid", lambda: read(self.home / "pm2.pid")))

    def ls(self):
        return run([*self.argv, "ls"], self.env)

    def instances(self):
        return children(self.pid)

    def close(self):
        text = read(self.home / "pm2.pid")
        if not text:
            return
        pid, left = int(text), children(int(text))
        if os.path.exists(f"/proc/{pid}"):
            self.command("kill", seconds=60)
            until("PM2's end", lambda: not os.path.exists(f"/proc/{pid}"), 20, 0.05)
        for child in left:
            # What PM2 left behind, if it is still what it was.
            if os.path.exists(f"/proc/{child}"):
                os.kill(child, signal.SIGKILL)


class Pm2:
    """PM2 as the npm registry has it, installed below `target/` without its install scripts."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.node = shutil.which("node")
        self.script = str(CACHE / "pm2" / "node_modules" / "pm2" / "bin" / "pm2")
        self.daemons = []

    @staticmethod
    def install():
        """Says why there is none, or nothing."""
        if shutil.which("node") is None or shutil.which("npm") is None:
            return "there is no node or no npm here"
        place = CACHE / "pm2"
        if (place / "node_modules" / "pm2" / "bin" / "pm2").exists():
            return None
        place.mkdir(parents=True, exist_ok=True)
        words = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--loglevel=error"]
        done = subprocess.run(
            ["npm", "install", "--prefix", str(place), *words, f"pm2@{PM2_VERSION}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # npm's words may name the registry that is used here.
            stderr=subprocess.DEVNULL,
            timeout=300,
            check=False,
        )
        return None if done.returncode == 0 else "npm could not install it"

    def version(self):
        package = CACHE / "pm2" / "node_modules" / "pm2" / "package.json"
        return json.loads(package.read_text())["version"]

    def daemon(self, name):
        daemon = Daemon(self, self.scratch / f"pm2-{name}")
        self.daemons.append(daemon)
        return daemon

    def close(self):
        for daemon in self.daemons:
            daemon.close()


def toml(value):
    """A value as TOML has it, which is JSON's way but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def nap(name, count):
    """An app that sleeps, as PM2 wants it said."""
    return {
        "name": name,
        "script": "/bin/sleep",
        "interpreter": "none",
        "args": "100000",
        "exec_mode": "fork",
        "instances": count,
    }


NAP = ["/bin/sleep", "100000"]


def scratch_directory():
    return Path(tempfile.mkdtemp(prefix="pmr-bench-"))
