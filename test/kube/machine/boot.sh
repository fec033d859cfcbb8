# Turns the namespaces that it runs in into a host: the directory $root becomes /,
# with /usr and /usr/local/bin read-only from elsewhere, a /run that dies with the
# host, and /mnt shared with the machine outside. It becomes process 1, which
# reaps orphans. Mounts propagate from here to containers, as under systemd, and
# to nowhere else. Its cgroups, which are $cgroup below each of $hierarchies
# outside, are the roots inside.
set -eu
for h in $hierarchies; do echo 0 >"$h$cgroup/cgroup.procs"; done
exec unshare --cgroup sh -euc '
hostname "$name"
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind -o ro "$usr" "$root/usr"
mount --bind -o ro "$binaries" "$root/usr/local/bin"
mount --bind "$share" "$root/mnt"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
if [ "$hierarchies" = /sys/fs/cgroup ]; then # version 2
  mount --bind "$hierarchies$cgroup" "$root/sys/fs/cgroup"
  mkdir -p "$root/sys/fs/cgroup/init" # a cgroup with processes may not hand out controllers
  echo 0 >"$root/sys/fs/cgroup/init/cgroup.procs"
else
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
  for h in $hierarchies; do
    mkdir "$root$h"
    mount --bind "$h$cgroup" "$root$h"
  done
  find /sys/fs/cgroup -maxdepth 1 -type l -exec cp -a {} "$root/sys/fs/cgroup/" ";"
fi
mkdir -p "$root/run/netns" "$root/run/lock" "$root/run/old"
cd "$root"
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old
mount --make-rshared /
: >/run/booted
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root tini -s -- sleep infinity
'
