"""What the harness needs on this machine, and how it gets it: apt, root, QEMU 10, mmdebstrap."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# QEMU 7.2, which is Debian 12's own, corrupts guests under TCG: processes of the guest die of
# SIGSEGV at random. 10.0 of the backports does not.
QEMU_AT_LEAST = (8, 2)

# Seconds for a kernel to come to the end of its boot, which needs less than two with KVM. A KVM
# that does not work hangs for ever.
PROBE_DEADLINE = 20


class Unable(Exception):
    """The VM tests cannot be run on this machine; the text says why."""


def note(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


def quiet(command, **options):
    """Runs a command whose output is of interest only if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    if done.returncode != 0:
        tail = done.stdout.decode(errors="replace")[-4000:]
        raise Unable(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{tail}")
    return done.stdout.decode(errors="replace")


def qemu_version():
    if not shutil.which("qemu-system-x86_64"):
        return (0, 0)
    text = quiet(["qemu-system-x86_64", "--version"])
    found = re.search(r"version (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def sources():
    """The package indexes apt is configured with: (URI, suite, label) each."""
    text = quiet(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(LABEL)", "Created-By: Packages"]
    )
    return [tuple(line.split("|")) for line in text.splitlines() if line.count("|") == 2]


def mirror():
    """The Debian mirror for the images: $PMR_VM_MIRROR, or the one this machine uses itself."""
    given = os.environ.get("PMR_VM_MIRROR")
    if given:
        return given
    for _ in range(2):
        for uri, suite, label in sources():
            if label == "Debian" and "-" not in suite:
                return uri
        # The label comes from the index, which a fresh container does not have yet.
        quiet(["apt-get", "update", "-qq"])
    raise Unable("apt knows no Debian mirror here; name one in PMR_VM_MIRROR")


def add_backports():
    release = Path("/etc/os-release").read_text()
    codename = re.search(r"VERSION_CODENAME=(\w+)", release)
    if not codename or codename[1] != "bookworm":
        return []
    if not any(suite == "bookworm-backports" for _, suite, _ in sources()):
        source = Path("/etc/apt/sources.list.d/pmr-vm-backports.list")
        source.write_text(f"deb {mirror()} bookworm-backports main\n")
        quiet(["apt-get", "update", "-qq"])
    return ["-t", "bookworm-backports"]


def install():
    """Installs what is missing, as root; says so where it cannot."""
    needed = []
    if qemu_version() < QEMU_AT_LEAST:
        needed += ["qemu-system-x86", "qemu-utils"]
    elif not shutil.which("qemu-img"):
        needed += ["qemu-utils"]
    others = [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")]
    missing = [package for program, package in others if not shutil.which(program)]
    if not needed and not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Unable(f"missing, and not root on Debian to install it: {' '.join(needed + missing)}")
    note(f"installing {' '.join(needed + missing)}")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    get = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    quiet(["apt-get", "update", "-qq"])
    if missing:
        quiet(get + missing, env=environment)
    if needed:
        quiet(get + add_backports() + needed, env=environment)
    if qemu_version() < QEMU_AT_LEAST:
        raise Unable(f"QEMU {qemu_version()} corrupts guests; {QEMU_AT_LEAST} or later is needed")


def accelerator(kernel, cache):
    """The arguments for QEMU: KVM where a kernel really boots on it, else TCG.

    /dev/kvm being there says nothing, nor does a vCPU that runs a few instructions: where nested
    virtualization is broken, a kernel hangs before its first word. So the kernel itself is the
    probe. It has no root to mount, panics, and reboots, which ends QEMU. The outcome is kept until
    this machine boots again.
    """
    tcg = ["-accel", "tcg,thread=multi", "-cpu", "max"]
    kvm = ["-accel", "kvm", "-cpu", "host"]
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return tcg
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache / f"kvm.{boot}"
    if not known.exists():
        for old in cache.glob("kvm.*"):
            old.unlink(missing_ok=True)
        known.write_text("works" if kvm_works(kvm, kernel) else "does not work")
    if known.read_text() == "works":
        return kvm
    note("/dev/kvm is there, but no guest boots on it: emulating (TCG)")
    return tcg


def kvm_works(kvm, kernel):
    command = ["qemu-system-x86_64", *kvm, "-machine", "q35", "-m", "256", "-nodefaults"]
    command += ["-display", "none", "-nic", "none", "-no-reboot", "-kernel", str(kernel)]
    command += ["-append", "console=ttyS0 panic=-1", "-serial", "stdio"]
    with tempfile.TemporaryFile() as console:
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.DEVNULL,
                timeout=PROBE_DEADLINE,
            )
        except subprocess.TimeoutExpired:
            return False
        console.seek(0)
        return b"Kernel panic" in console.read()
