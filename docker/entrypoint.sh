#!/bin/sh
# Starts modelassay as whatever user the container runs as: with a home and caches it can write to, and a name.
# Values that the caller gave are kept. Started as root, it becomes the owner of ./runs, so that results belong to
# whoever made that folder; started with --user, it stays that user. Group 0 may write to the image's own home.
set -eu

# Results go to ./runs, which is /runs; of who mounted /results instead, to /results/runs.
if ! mountpoint -q runs && mountpoint -q results; then cd results; fi
runs=runs
[ -d "$runs" ] || runs=.
become=
if [ "$(id -u)" = 0 ]; then
  owner=$(stat -c %u "$runs")
  if [ "$owner" != 0 ]; then
    group=$(stat -c %g "$runs")
    if ! setpriv --reuid "$owner" --regid "$group" --groups 0 true 2>/dev/null; then
      echo "error: $PWD/$runs belongs to user $owner, whom this container may not become; start it with --user $owner:0" >&2
      exit 6
    fi
    exec setpriv --reuid "$owner" --regid "$group" --groups 0 --no-new-privs "$0" "$@"
  fi
  # The folder is root's own, as it also looks to an engine that runs without root. Nothing here needs a capability.
  if setpriv --bounding-set=-all true 2>/dev/null; then
    become="setpriv --bounding-set=-all --inh-caps=-all --no-new-privs"
  fi
fi

can_write() { [ -n "$1" ] && [ -d "$1" ] && [ -w "$1" ]; }

for folder in "${HOME:-}" /home/modelassay /tmp; do
  if can_write "$folder"; then break; fi
done
export HOME="$folder" # /tmp even where it cannot be written: then the program says so

if [ -z "${USER:-}" ]; then
  USER=$(id -un 2>/dev/null) || USER="user$(id -u)"
fi
export USER LOGNAME="${LOGNAME:-$USER}"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$HOME/.cache}"
export HF_HOME="${HF_HOME:-$XDG_CACHE_HOME/huggingface}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$XDG_CACHE_HOME/triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$XDG_CACHE_HOME/torchinductor}"
export MODELASSAY_CACHE="${MODELASSAY_CACHE:-$XDG_CACHE_HOME/modelassay}"

# shellcheck disable=SC2086
exec $become modelassay "$@"
