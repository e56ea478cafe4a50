#!/usr/bin/env bash
# Makes samples/sample.qcow2 as a guest would have left it: a qcow2 with a GPT, an EFI partition and an ext4 root that
# the kernel filled and from which it then deleted most. Needs root, loop devices, sgdisk, mke2fs, mkfs.vfat, qemu-img.
#
#   sample.qcow2   | GPT | 1: FAT, 16 MiB | 2: ext4, the rest |      1 GiB, of which some 30 MiB were ever written
#
# The deleted files are logs that repeat themselves, so that git stores the image in a fraction of its length.
set -euo pipefail

# In a mount namespace of its own: the path that the filesystem remembers is /mnt, and no mount outlives the script.
[ "${1-}" = inside ] || exec unshare --mount --propagation private "$0" inside

here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
loop=
finish() {
  ! mountpoint -q /mnt || umount /mnt
  [ -z "$loop" ] || losetup --detach "$loop"
  rm -rf "$work"
}
trap finish EXIT

disk=$work/disk.raw
efi_at=$((1024 * 1024)) efi_bytes=$((16 * 1024 * 1024))
root_at=$((efi_at + efi_bytes)) disk_bytes=$((1024 * 1024 * 1024))
root_bytes=$((disk_bytes - root_at - 1024 * 1024))

truncate --size $disk_bytes "$disk"
sgdisk --disk-guid=7ba2d1f4-5ee5-4d9c-8d6b-0c1f5c2e9a01 \
  --new=1:$((efi_at / 512)):+$((efi_bytes / 1024))K --typecode=1:ef00 --change-name=1:efi \
  --new=2:$((root_at / 512)):+$((root_bytes / 1024))K --typecode=2:8300 --change-name=2:root "$disk" >/dev/null
loop=$(losetup --find --show --offset $efi_at --sizelimit $efi_bytes "$disk")
mkfs.vfat --invariant -F 16 -n EFI "$loop" >/dev/null
losetup --detach "$loop"
loop=$(losetup --find --show --offset $root_at --sizelimit $root_bytes "$disk")
mke2fs -q -t ext4 -L root -U 2d5c8f0e-91c4-4d3b-a7f5-6f0e8d1b7c02 -J size=4 \
  -E lazy_itable_init=0,lazy_journal_init=0,hash_seed=5f0e8d1b-7c02-4d3b-a7f5-2d5c8f0e91c4 "$loop"
mount -o nodiscard "$loop" /mnt
cd /mnt

# Lines that look like a log: a pattern of $2 lines that depends on the seed $1, $3 times.
log() {
  awk -v seed="$1" -v lines="$2" -v times="$3" 'BEGIN {
    srand(seed); split("GET POST PUT HEAD", verbs); split("api static login search health", paths)
    for (i = 0; i < lines; i++) pattern = pattern sprintf("10.0.%d.%d %s /%s/%d %d %dms\n", rand() * 9, rand() * 250,
      verbs[1 + int(rand() * 4)], paths[1 + int(rand() * 5)], rand() * 9000, rand() < 0.9 ? 200 : 404, rand() * 900)
    for (i = 0; i < times; i++) printf "%s", pattern
  }'
}

mkdir -p etc home/ada/notes srv/www var/cache/packages var/lib/app var/log/archive
echo sample >etc/hostname
echo "LABEL=root / ext4 defaults 0 1" >etc/fstab
ln -s ../etc/hostname home/ada/machine
setfattr -n user.origin -v sample etc/fstab 2>/dev/null || true

# A life of this disk: files that stay, written between files that go.
for day in $(seq 1 24); do
  log "$day" 120 $((120 + day * 4)) >"var/log/archive/access-$day.log"
  log "$((100 + day))" 30 1 >"home/ada/notes/day-$day.txt"
  log "$((200 + day))" 100 $((day % 5 * 12)) >"var/cache/packages/package-$day.txt"
  sync
done
for page in $(seq 1 400); do echo "<h1>Page $page</h1>" >"srv/www/page-$page.html"; done
log 300 200 60 >var/log/access.log
log 301 200 20 >var/lib/app/data.txt
ln var/lib/app/data.txt home/ada/data.txt
truncate --size 8M var/lib/app/sparse.bin
log 302 50 4 | dd of=var/lib/app/sparse.bin bs=4096 seek=700 conv=notrunc status=none
sync

for day in $(seq 1 22); do rm "var/log/archive/access-$day.log"; done
rm -r var/cache/packages
for page in $(seq 1 2 400); do rm "srv/www/page-$page.html"; done
cd "$work"
umount /mnt
e2fsck -fn "$loop" >/dev/null 2>&1
losetup --detach "$loop"
loop=

mkdir -p "$here/samples"
qemu-img convert -O qcow2 "$disk" "$here/samples/sample.qcow2"
qemu-img check -q "$here/samples/sample.qcow2"
ls -l "$here/samples/sample.qcow2"
echo "packed: $(gzip -9c "$here/samples/sample.qcow2" | wc -c) bytes"
