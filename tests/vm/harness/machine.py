"""A booted machine: QEMU, its two serial ports, and what is asked of the agent inside."""

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import termios
import time
import tty
from pathlib import Path

from .image import HERE, overlay
from .tools import note

# Seconds from power-on, or from a reboot, to the agent's word. It is 15 to 50 s under TCG on an
# idle machine; a loaded one gets the rest.
BOOT_DEADLINE = 300
# Beyond the deadline that the guest itself keeps for a script, before the guest counts as gone.
GRACE = 30
CONSOLE_TAIL = 60

PR_SET_PDEATHSIG = 1

# A panic must end the guest at once, and be seen on the console.
KERNEL_WORDS = "console=ttyS0 root=/dev/vda rw quiet loglevel=4 panic=-1 mitigations=off audit=0"


class Died(Exception):
    """The guest is gone, or does not answer; the text says how that was seen."""


class Result:
    """How a script ended: its status (a number, or `deadline`), seconds, and output."""

    def __init__(self, status, seconds, output):
        self.status, self.seconds, self.output = status, seconds, output


def die_with_parent():
    """In the child: whatever ends the harness ends QEMU."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def pack(path, files):
    """The disk of a run: a tar archive of what its guest needs below /vm."""
    with tarfile.open(path, "w") as archive:
        for name, source in files.items():
            archive.add(source, arcname=name)


class Machine:
    """A guest from power-on to the end of the `with` block."""

    def __init__(self, system, image, accelerator, files, keep=None):
        self.system, self.image, self.accelerator, self.files = system, image, accelerator, files
        self.keep, self.count, self.buffer = keep, 0, b""
        self.qemu = self.port = None

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="pmr-vm.")
        try:
            self.power_on(Path(self.directory.name))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.qemu and self.qemu.poll() is None:
            self.qemu.kill()
            self.qemu.wait()
        if self.port:
            self.port.close()
        if self.keep:
            self.keep.mkdir(parents=True, exist_ok=True)
            for name in ["disk.qcow2", "console.log", "qemu.log"]:
                source = Path(self.directory.name) / name
                if source.exists():
                    subprocess.run(["cp", source, self.keep / f"{self.system}.{name}"], check=False)
        self.directory.cleanup()

    def power_on(self, directory):
        self.console = directory / "console.log"
        overlay(self.image, directory / "disk.qcow2")
        pack(directory / "run.tar", self.files)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "port"))
        listener.listen(1)
        listener.settimeout(GRACE)
        command = ["qemu-system-x86_64", *self.accelerator, "-machine", "q35"]
        command += ["-smp", "2", "-m", "2G", "-nodefaults", "-display", "none", "-nic", "none"]
        command += ["-kernel", self.image.kernel, "-initrd", self.image.initrd]
        command += ["-append", KERNEL_WORDS]
        disk = f"file={directory}/disk.qcow2,format=qcow2,if=virtio,cache=unsafe,discard=unmap"
        command += ["-drive", disk]
        command += ["-drive", f"file={directory}/run.tar,format=raw,if=virtio,readonly=on"]
        command += ["-serial", f"file:{self.console}"]
        command += ["-chardev", f"socket,id=port,path={directory}/port,server=off"]
        command += ["-serial", "chardev:port"]
        with open(directory / "qemu.log", "wb") as log:
            self.qemu = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            self.port, _ = listener.accept()
        except TimeoutError:
            self.gone((directory / "qemu.log").read_text().strip() or "QEMU does not start")
        finally:
            listener.close()

    def gone(self, why):
        tail = []
        if self.console.exists():
            tail = self.console.read_text(errors="replace").splitlines()[-CONSOLE_TAIL:]
        raise Died("\n  ".join([why, "the end of its console:", *tail]))

    def line(self, deadline):
        """The next line of the agent; None at the deadline."""
        while b"\n" not in self.buffer:
            self.port.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self.port.recv(65536)
            except TimeoutError:
                return None
            if not data:
                self.gone(f"QEMU has ended (status {self.qemu.wait()})")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")

    def booted(self):
        """Waits for the agent's word, and says how many seconds it took."""
        began = time.monotonic()
        while True:
            line = self.line(began + BOOT_DEADLINE)
            if line is None:
                self.gone(f"no word from the guest {BOOT_DEADLINE} s after its start")
            if line.startswith("@hello"):
                return time.monotonic() - began

    def run(self, path, seconds, variables=None, tell=None):
        """Runs a script in the guest.

        A script that says `@reboot` and reboots is run again after that, with PHASE one higher, and
        what it may take all in all stays the same.
        """
        phase, output, deadline = 1, [], time.monotonic() + seconds + GRACE
        began = time.monotonic()
        while True:
            left = max(deadline - GRACE - time.monotonic(), 1)
            self.ask(path, left, dict(variables or {}, PHASE=phase))
            status = self.outcome(deadline, output, tell)
            if status != "reboot":
                return Result(status, time.monotonic() - began, output)
            phase += 1

    def ask(self, path, seconds, variables):
        self.count += 1
        words = " ".join(f"{name}={value}" for name, value in variables.items())
        self.port.sendall(f"run {self.count} {seconds:.0f} {path} {words}\n".encode())

    def outcome(self, deadline, output, tell):
        rebooting = False
        while True:
            line = self.line(deadline)
            if line is None:
                self.gone("the guest does not answer any more")
            elif line == "|@reboot":
                rebooting = True
                deadline += BOOT_DEADLINE
            elif line.startswith("|"):
                output.append(line[1:])
                if tell:
                    tell(line[1:])
            elif line.startswith("@hello"):
                if not rebooting:
                    self.gone("the guest has booted again, unasked")
                return "reboot"
            elif line.startswith(f"@end {self.count} "):
                status = line.split()[2]
                return status if status == "deadline" else int(status)

    def shell(self):
        """Joins the terminal and a shell in the guest until that ends."""
        self.count += 1
        end = f"@end {self.count} ".encode()
        before = termios.tcgetattr(sys.stdin)
        self.port.sendall(f"shell {self.count}\n".encode())
        self.port.setblocking(True)
        seen = b""
        try:
            tty.setraw(sys.stdin)
            with selectors.DefaultSelector() as selector:
                selector.register(sys.stdin, selectors.EVENT_READ)
                selector.register(self.port, selectors.EVENT_READ)
                while end not in seen:
                    for key, _ in selector.select():
                        if key.fileobj is self.port:
                            data = self.port.recv(65536)
                            if not data:
                                return
                            os.write(1, data)
                            seen = (seen + data)[-200:]
                        else:
                            self.port.sendall(os.read(0, 256))
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def standard_files():
    """What every guest gets: the agent, the library, the tests and the fixtures of the repo."""
    files = {name: HERE / name for name in ["guest", "lib.sh", "lib"] if (HERE / name).exists()}
    files["fixtures"] = HERE.parent / "fixtures"
    for group in sorted(HERE.glob("[0-9][0-9]-*")):
        files[f"tests/{group.name}"] = group
    return files


def summary_note(system, seconds):
    note(f"{system}: booted in {seconds:.0f} s")
