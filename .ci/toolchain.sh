# Sourced by the other scripts: puts a cargo that works here first in the PATH.
#
# rustup's cargo obeys rust-toolchain.toml and is preferred. Where there is no rustup, or where it has no toolchain and
# cannot get one, Debian's cargo (package cargo-web) compiles everything; it ignores rust-toolchain.toml.

# What `cargo install` and rustup put their programs into, for root and for sudo alike.
cargo_bin="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
case ":$PATH:" in
*":$cargo_bin:"*) ;;
*) PATH="$cargo_bin:$PATH" ;;
esac
for folder in /usr/sbin /sbin; do
  case ":$PATH:" in
  *":$folder:"*) ;;
  *) PATH="$PATH:$folder" ;;
  esac
done
if ! cargo --version >/dev/null 2>&1 && [ -x /usr/bin/cargo ]; then
  PATH="/usr/bin:$PATH"
fi
export PATH
