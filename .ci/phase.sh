# Sourced by the scripts beside it: names the phases of a run and says how long each took.

phase_title=
phase_begin=$SECONDS
run_begin=$SECONDS

# Ends the phase before and begins the next.
phase() {
  phase_end
  phase_title=$1
  phase_begin=$SECONDS
  printf '\n==> %s\n' "$phase_title"
}

phase_end() {
  [ -z "$phase_title" ] || printf '==> %s: %d s (%d s since the start)\n' "$phase_title" $((SECONDS - phase_begin)) $((SECONDS - run_begin))
  phase_title=
}

# A wrong call or a wrong environment: message and hint, exit 64.
usage() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  printf 'hint: %s\n' "$2" >&2
  exit 64
}
