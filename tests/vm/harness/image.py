"""Images: built from a recipe once, found again by its hash."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import tools
from .tools import Unable, note, quiet

HERE = Path(__file__).resolve().parent.parent

# For all systems. The cloud kernel has virtio, cgroups v2 with all controllers and BPF, and is a
# third of the usual one.
PACKAGES = """
systemd systemd-sysv udev kmod dbus dbus-user-session polkitd libpam-systemd procps iproute2
initramfs-tools linux-image-cloud-amd64 zstd python3 nodejs curl rpm cpio
""".split()

# Sparse: what is not written takes no room.
ROOT_SIZE = "6G"

# An image that no run has used for so long is removed, in seconds: two weeks.
UNUSED = 14 * 24 * 3600


@dataclass(frozen=True)
class System:
    """A system under test, and what differs in its image."""

    name: str
    suite: str
    packages: tuple


SYSTEMS = {
    system.name: system
    for system in [
        System("debian12", "bookworm", ()),
        System("debian13", "trixie", ("dnf",)),
    ]
}


@dataclass(frozen=True)
class Image:
    """A built image: three files."""

    directory: Path

    @property
    def root(self):
        return self.directory / "root.ext4"

    @property
    def kernel(self):
        return self.directory / "vmlinuz"

    @property
    def initrd(self):
        return self.directory / "initrd.img"


def cache():
    given = os.environ.get("PMR_VM_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "pmr-vm"


def recipe_hash(system):
    """Over everything an image is made from, but the packages of the day."""
    digest = hashlib.sha256()
    digest.update(Path(__file__).read_bytes())
    for path in sorted((HERE / "image").iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr(system).encode())
    return digest.hexdigest()[:16]


def image(system):
    """The image of a system, built now if there is none of this recipe.

    One process builds, others wait. What is built gets its name when it is whole, so an interrupted
    build leaves no half image; what such a build left is removed by the next.
    """
    directory = cache() / f"{system.name}-{recipe_hash(system)}"
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f"{system.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            for old in cache().glob(f"{system.name}.building.*"):
                shutil.rmtree(old)
            building = cache() / f"{system.name}.building.{os.getpid()}"
            building.mkdir()
            try:
                build(system, building)
                building.rename(directory)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        os.utime(directory)
        for other in cache().glob(f"{system.name}-*"):
            if time.time() - other.stat().st_mtime > UNUSED:
                shutil.rmtree(other)
    return Image(directory)


def build(system, directory):
    if os.geteuid() != 0:
        raise Unable("building an image needs root")
    began = time.monotonic()
    mirror = tools.mirror()
    note(f"building the image of {system.name} (once for this recipe)")
    tree = directory / "tree"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory"]
    command += ["--aptopt=Apt::Install-Recommends false"]
    for path in ["doc", "man", "locale", "info"]:
        command += [f"--dpkgopt=path-exclude=/usr/share/{path}/*"]
    command += ["--include=" + ",".join(PACKAGES + list(system.packages))]
    command += [f"--customize-hook={HERE}/image/customize $1 {system.name}"]
    command += [system.suite, str(tree), mirror]
    # A mirror that fails once is asked again: everything else that fails, fails twice.
    try:
        quiet(command)
    except Unable as error:
        note(f"trying once more: {error}")
        shutil.rmtree(tree, ignore_errors=True)
        quiet(command)
    shutil.copy(newest(tree, "vmlinuz-*"), directory / "vmlinuz")
    shutil.copy(newest(tree, "initrd.img-*"), directory / "initrd.img")
    shutil.rmtree(tree / "boot")
    (tree / "boot").mkdir()
    make = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", "root"]
    make += ["-E", "lazy_itable_init=0", "-d", str(tree), str(directory / "root.ext4"), ROOT_SIZE]
    quiet(make)
    shutil.rmtree(tree)
    note(f"built the image of {system.name} in {time.monotonic() - began:.0f} s")


def newest(tree, pattern):
    found = sorted((tree / "boot").glob(pattern))
    if not found:
        raise Unable(f"the image has no {pattern} in /boot")
    return found[-1]


def overlay(image, path):
    """A disk of one run: what the run writes goes here, not into the image."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.root), "-F", "raw", str(path)]
    subprocess.run(command, check=True)
