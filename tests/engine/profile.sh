#!/bin/sh
# Profiles of the engine: profile.sh DIR, with images in DIR, a tmpfs. $bin has
# qzbd and gets profile/*.pprof. Work that the kernel does on threads of its own,
# as it may where DIR is on a disk, is not in a Go profile; "perf record" shows it.
set -eu
dir=$(mktemp -d "$1/qzbd-profile-XXXXXX")
trap 'rm -rf "$dir"' EXIT
out=$bin/profile
mkdir -p "$out"

bench() { # NAME IMAGE FLAG...
	name=$1 image=$2
	shift 2
	echo
	echo "== $name: qzbd bench $*"
	rm -f "$out/$name.pprof"
	"$bin/qzbd" bench --cpuprofile "$out/$name.pprof" "$@" "$dir/$image"
	go tool pprof -top -nodecount=25 "$bin/qzbd" "$out/$name.pprof" 2>/dev/null
}

"$bin/qzbd" create -o zone.size=4M,zone.conventional_zones=255 "$dir/filled.qcow2" 1G
"$bin/qzbd" create -o zone.size=64M "$dir/fresh.qcow2" 1G
"$bin/qzbd" bench -w -s 1M -d 4 -c 1020 "$dir/filled.qcow2"
bench read filled.qcow2 -d 16 -c 1000000
bench overwrite filled.qcow2 -w -d 16 -c 1000000
bench allocate fresh.qcow2 -w -d 16 -c 250000
echo
echo "profiles: $out/*.pprof, for go tool pprof $bin/qzbd"
