#!/bin/sh
# Installs the newest release of tune for this machine: downloads one archive, checks its SHA-256, and puts the binary
# into ~/.local/bin.
#
#     curl -fsSL https://…/install.sh | sh
#
# TUNE_RELEASES   address of the releases (required until the project has a home of its own: …/releases/latest/download)
# TUNE_BIN        folder of the binary (default: ~/.local/bin)
set -eu

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

releases=${TUNE_RELEASES:-}
[ -n "$releases" ] || fail "set TUNE_RELEASES to the address of the releases, as in https://github.com/OWNER/tune/releases/latest/download"
releases=${releases%/}
folder=${TUNE_BIN:-${HOME:?}/.local/bin}

case "$(uname -s)" in
  Linux) system=linux ;;
  Darwin) system=macos ;;
  *) fail "there is no release for $(uname -s); build it: cargo install --path ." ;;
esac
case "$(uname -m)" in
  x86_64 | amd64) machine=x86_64 ;;
  aarch64 | arm64) machine=aarch64 ;;
  *) fail "there is no release for $(uname -m); build it: cargo install --path ." ;;
esac
[ "$system-$machine" != macos-x86_64 ] || fail "there is no release for Macs with Intel processors; build it: cargo install --path ."
archive=tune-$machine-$system.tar.gz

if command -v curl >/dev/null; then
  fetch() { curl --fail --silent --show-error --location --retry 3 --output "$2" "$1"; }
elif command -v wget >/dev/null; then
  fetch() { wget --quiet --tries=3 --output-document="$2" "$1"; }
else
  fail "neither curl nor wget is installed"
fi
if command -v sha256sum >/dev/null; then
  sum() { sha256sum "$1" | cut -d ' ' -f 1; }
else
  sum() { shasum -a 256 "$1" | cut -d ' ' -f 1; }
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

say "downloading $releases/$archive"
fetch "$releases/$archive" "$work/$archive" || fail "cannot download $releases/$archive"
fetch "$releases/$archive.sha256" "$work/sum" || fail "cannot download $releases/$archive.sha256"
expected=$(cut -d ' ' -f 1 "$work/sum")
found=$(sum "$work/$archive")
[ -n "$expected" ] && [ "$found" = "$expected" ] || fail "$archive has SHA-256 $found, and the release says $expected; nothing was installed"
tar -xzf "$work/$archive" -C "$work" tune || fail "$archive holds no file \`tune\`"

mkdir -p "$folder"
# Beside its place first, so that a running tune is replaced whole.
cp "$work/tune" "$folder/.tune.new"
chmod 755 "$folder/.tune.new"
mv -f "$folder/.tune.new" "$folder/tune"
say "installed $("$folder/tune" --version) as $folder/tune"
case ":$PATH:" in
  *":$folder:"*) ;;
  *) say "note: $folder is not on PATH; add it: export PATH=\"$folder:\$PATH\"" ;;
esac
say "next: tune cp quickstart demo && cd demo && tune run quickstart.toml"
