# Turns the namespaces that it runs in into a host: the directory $1 becomes /,
# with /usr ($2) and /usr/local/bin ($3) read-only from elsewhere, a /run that
# dies with the host, and /mnt ($4) shared with the machine outside. It becomes
# process 1, which reaps orphans. Mounts propagate from here to containers, as
# under systemd, and to nowhere else.
set -eu
root=$1 usr=$2 bin=$3 share=$4
hostname "$5"
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind -o ro "$usr" "$root/usr"
mount --bind -o ro "$bin" "$root/usr/local/bin"
mount --bind "$share" "$root/mnt"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/netns" "$root/run/lock" "$root/run/old"
cd "$root"
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old
mount --make-rshared /
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
: >/run/booted
exec tini -s -- sleep infinity
