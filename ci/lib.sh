# Sourced by the scripts in ci/: where things are, and how a step says what it does.
# shellcheck shell=bash

set -euo pipefail
export LC_ALL=C.UTF-8
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# All that setup makes lives outside of the checkout, so that a fresh clone finds it again.
CRR_CACHE=${CRR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/crr}
export CRR_CACHE
i386_root=$CRR_CACHE/i386-root

# cargo is in the PATH of login shells only.
[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "must run as root: checkpointing other processes needs it"; }

# The archive this machine's own apt uses for Debian itself, so that nothing is written down here.
debian_mirror() {
	local uri
	uri=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 2>/dev/null |
		awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }')
	# Before the first apt-get update apt knows no origins: then the first URI that ends in /debian.
	[ -n "$uri" ] || uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources \
		/etc/apt/sources.list.d/*.list 2>/dev/null | grep -oE '[a-z+]+:/[^ ]*/debian/?( |$)' | head -n 1)
	[ -n "$uri" ] || die "no Debian archive in this machine's apt sources"
	printf '%s\n' "${uri%% *}"
}

# The Rust compiler and target of the i686 blob, where it is not rustup's (see ci/debian-rust).
use_i686_rust() {
	[ -f "$CRR_CACHE/i686-rustc" ] || return 0
	CRR_I686_RUSTC=$(cat "$CRR_CACHE/i686-rustc")
	CRR_I686_TARGET=i686-unknown-linux-gnu
	export CRR_I686_RUSTC CRR_I686_TARGET
}
