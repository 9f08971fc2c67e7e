#!/bin/sh
# Compiles abi.c against one kernel's user-space headers and writes the table
# abi-VERSION.txt beside it.
#
#   UBLK_HEADERS=DIR/usr/include UBLK_KERNEL=6.12 go generate ./ublk
#
# DIR is where a linux-libc-dev package of that kernel was unpacked
# (dpkg -x package.deb DIR).
set -eu
cd "$(dirname "$0")"
: "${UBLK_HEADERS:?the include directory of the kernel headers}" "${UBLK_KERNEL:?the kernel version, such as 6.12}"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cc -Wall -I"$UBLK_HEADERS" -I"$UBLK_HEADERS/$(cc -dumpmachine)" -o "$tmp/abi" abi.c
"$tmp/abi" >"abi-$UBLK_KERNEL.txt"
