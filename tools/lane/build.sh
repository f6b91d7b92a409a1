#!/usr/bin/env bash
# Build the image of a small Debian machine: kernel, first file system, root file system.
#
# usage: build.sh    environment: LANE_SUITE (bookworm), LANE_CACHE (/var/cache/nsmagic-lane)
# Exit status: 0 it is there; 3 this machine cannot build it, and a line says why; 1 the build failed.
# Done again only when what it is made of has changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/qemu.sh"
suite=${LANE_SUITE:-bookworm}
images=$LANE_CACHE/$suite
kernel=linux-image-cloud-amd64
size=1300M
packages=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,python3,iproute2,procps,util-linux,mount
packages+=,uidmap,kmod,udev,passwd,login,bubblewrap
# Units that a machine of a few minutes does not want, and that cost it seconds.
unwanted=(getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
    systemd-random-seed.service systemd-timesyncd.service systemd-pcrphase.service systemd-pcrphase-sysinit.service
    systemd-machine-id-commit.service systemd-update-utmp.service systemd-journal-flush.service
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-firstboot.service e2scrub_reap.service)
modules=(fs/overlayfs fs/fuse fs/autofs net/ipv4 net/ipv6 net/netfilter net/bridge net/llc net/802 drivers/net
    drivers/block drivers/virtio lib crypto arch)
first_modules=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk)
export PATH=$PATH:/usr/sbin:/sbin DEBIAN_FRONTEND=noninteractive

cannot() {
    echo "the lane of hosts cannot be built here: $*" >&2
    exit 3
}

stamp=$(cat "$here/build.sh" "$here/qemu.sh" "$here"/guest/* | sha256sum | cut -c1-16)
if [[ -f $images/stamp && $(cat "$images/stamp") == "$stamp" ]] && command -v qemu-system-x86_64 >/dev/null; then
    exit 0
fi
[[ $(uname -m) == x86_64 ]] || cannot "its machine is an x86_64, and this is $(uname -m)"
[[ $(id -u) == 0 ]] || cannot "it takes root, to install qemu and to make a root file system"
command -v apt-get >/dev/null || cannot "it takes Debian or Ubuntu, whose packages the image is made of"

missing=()
for each in qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap cpio:cpio depmod:kmod mke2fs:e2fsprogs \
    busybox:busybox-static; do
    command -v "${each%%:*}" >/dev/null || missing+=("${each##*:}")
done
if ((${#missing[@]})); then
    echo "installing ${missing[*]}"
    apt-get -qq update && apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null ||
        cannot "these packages cannot be installed: ${missing[*]}"
fi
# The mirror that this machine uses itself.
mirror=${LANE_MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' "Created-By: Packages" |
    awk '$2 !~ /security|updates|backports/ { print $1; exit }')}

echo "building the image of $suite …"
rm -rf "$images"
mkdir -p "$images"
work=$(mktemp -d /var/tmp/nsmagic-lane.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir "$work/kernel" "$work/root" "$work/first"

# Run by mmdebstrap when the packages are in place; $1 is the new root.
cat >"$work/hook" <<HOOK
#!/bin/bash
set -e
chroot "\$1" useradd --create-home --uid 1000 --shell /bin/bash lane
mkdir -p "\$1/var/lib/systemd/linger" "\$1/lane" "\$1/src" "\$1/out" "\$1/site" "\$1/etc/systemd/journald.conf.d"
touch "\$1/var/lib/systemd/linger/lane" # as loginctl enable-linger does
echo lane >"\$1/etc/hostname"
echo "127.0.0.1 localhost lane" >"\$1/etc/hosts"
echo 0123456789abcdef0123456789abcdef >"\$1/etc/machine-id"
printf '[Journal]\nStorage=volatile\n' >"\$1/etc/systemd/journald.conf.d/lane.conf"
chroot "\$1" systemctl mask ${unwanted[*]} >/dev/null 2>&1
name=\$(apt-cache depends $kernel | awk '/Depends: linux-image/ { print \$2; exit }')
cd "$work/kernel" && apt-get -o APT::Sandbox::User=root download "\$name"
HOOK
chmod +x "$work/hook"
mmdebstrap --quiet --variant=minbase --include="$packages" --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
    --customize-hook='APT_CONFIG=$MMDEBSTRAP_APT_CONFIG '"$work/hook"' "$1"' \
    "$suite" "$work/root.tar" "$mirror"
tar -C "$work/root" -xpf "$work/root.tar" --exclude='./dev/*'
rm "$work/root.tar"

dpkg-deb -x "$work"/kernel/*.deb "$work/kernel/unpacked"
all=$work/kernel/unpacked/lib/modules
[[ -d $all ]] || all=$work/kernel/unpacked/usr/lib/modules
release=$(ls "$all")
cp "$work/kernel/unpacked/boot/vmlinuz-$release" "$images/vmlinuz"
target=$work/root/usr/lib/modules/$release
mkdir -p "$target"
cp "$all/$release"/modules.builtin* "$all/$release/modules.order" "$target/"
for each in "${modules[@]}"; do
    [[ ! -e $all/$release/kernel/$each ]] || (cd "$all/$release" && cp -r --parents "kernel/$each" "$target/")
done
rm -rf "$target"/kernel/drivers/net/{ethernet,wireless,usb,can,phy,hyperv,vmxnet3}*
depmod --basedir "$work/root" "$release"

install -m 755 "$here"/guest/{agent,mini-init} "$work/root/lane/"
install -m 644 "$here"/guest/lane.{service,target} "$work/root/etc/systemd/system/"
mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$work/root" "$images/root.ext4" "$size"

mkdir -p "$work/first"/{bin,modules,proc,sys,dev,newroot}
cp "$(command -v busybox)" "$work/first/bin/busybox"
install -m 755 "$here/guest/first-init" "$work/first/init"
for name in "${first_modules[@]}"; do
    file=$(find "$all" -name "$name.ko*" | head -1)
    case $file in
    *.xz) xz -dc "$file" >"$work/first/modules/$name.ko" ;;
    *.zst) zstd -qdc "$file" >"$work/first/modules/$name.ko" ;;
    *.ko) cp "$file" "$work/first/modules/$name.ko" ;;
    esac # none: it is built into this kernel
done
(cd "$work/first" && find . | cpio --quiet -o -H newc) >"$images/initrd.img"
echo "$stamp" >"$images/stamp"
echo "built $images: Linux $release"
