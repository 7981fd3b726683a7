# systems: debian13
# deadline: 300
# The .rpm in an installroot: installed, upgraded and removed with its scriptlets, by dnf and rpm.
rpm=/vm/pmr.rpm
[ -e $rpm ] || skip "no .rpm was built"
root=/var/tmp/vm-root
test_cleanup() { rm -rf "$root"; }
mkdir -p "$root"
step "rpm says what it is"
holds "rpm -qp" rpm -qp --requires $rpm
step "dnf install"
# Nothing of the Debian below is in an rpm database, so its requirements cannot be met by packages.
holds "rpm --install" rpm --root "$root" --nodeps --noscripts -i $rpm
holds "the binary is there" test -x "$root/usr/bin/pmr"
holds "the unit is there" test -e "$root/usr/lib/systemd/system/pmr@.service"
holds "rpm -V" rpm --root "$root" -V --nodeps pmr
holds "rpm -e" rpm --root "$root" --nodeps --noscripts -e pmr
holds "the binary is gone" test ! -e "$root/usr/bin/pmr"
