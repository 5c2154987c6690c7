#!/bin/sh
# own_daemon.sh FOLDER: a machine of its own for one test, started with
#   unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private sh own_daemon.sh FOLDER
# /dev, /sys/class and /sys/bus are replaced here and nowhere else: FOLDER/nodes lists device nodes (path, mode, gid, major, minor),
# FOLDER/sys holds what stands in for sysfs. Then a dockerd with FOLDER/daemon.json, whose end is the end of everything.
set -eu
folder=$1
mkdir -p "$folder/dev"
mount -t tmpfs -o mode=755 tmpfs "$folder/dev"
for node in null zero full random urandom tty fuse; do
    if [ -e "/dev/$node" ]; then cp -a "/dev/$node" "$folder/dev/"; fi
done
mkdir "$folder/dev/pts" "$folder/dev/shm" "$folder/dev/mqueue"
ln -s /proc/self/fd "$folder/dev/fd"
ln -s /proc/self/fd/0 "$folder/dev/stdin"
ln -s /proc/self/fd/1 "$folder/dev/stdout"
ln -s /proc/self/fd/2 "$folder/dev/stderr"
ln -s pts/ptmx "$folder/dev/ptmx"
mount --rbind /dev/pts "$folder/dev/pts"
mount -t tmpfs tmpfs "$folder/dev/shm"
while read -r path mode gid major minor; do
    mkdir -p "$folder$(dirname "$path")"
    mknod -m "$mode" "$folder$path" c "$major" "$minor"
    chgrp "$gid" "$folder$path"
done < "$folder/nodes"
mount --rbind "$folder/dev" /dev
for part in class bus; do
    if [ -d "$folder/sys/$part" ]; then mount --bind "$folder/sys/$part" "/sys/$part"; fi
done
if [ -f "$folder/subids" ]; then
    mount --bind "$folder/subids" /etc/subuid
    mount --bind "$folder/subids" /etc/subgid
fi
if [ -f "$folder/hidden" ]; then mount -t tmpfs tmpfs "$(cat "$folder/hidden")"; fi
ip link set lo up
exec "$(cat "$folder/dockerd")" --config-file "$folder/daemon.json"
