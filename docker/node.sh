#!/bin/sh
# A container's part in the cluster:
#
#   rayssl-node head                 the cluster's centre; makes the token if there is none
#   rayssl-node worker HEAD:6379     joins; waits for head and token, however late they come
#   rayssl-node health               0 if this container's Ray is up
#
# RAYSSL_CPUS, RAYSSL_GPUS: what this node offers. Default: what the container has.
# RAY_AUTH_TOKEN: the cluster's token, in the place of the file RAY_AUTH_TOKEN_PATH.
set -eu

fail() {
  echo "rayssl-node: $*" >&2
  exit 2
}

have_token() {
  [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "$RAY_AUTH_TOKEN_PATH" ]
}

make_token() { # written aside and moved: nobody reads half a token; its value is never printed
  have_token && return
  (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH.part") ||
    fail "expected to write the cluster's token to $RAY_AUTH_TOKEN_PATH, could not. Mount a volume" \
      "there that user $(id -u) may write, or a token made by hand: openssl rand -hex 32"
  mv "$RAY_AUTH_TOKEN_PATH.part" "$RAY_AUTH_TOKEN_PATH"
  echo "rayssl-node: made the cluster's token, $RAY_AUTH_TOKEN_PATH"
}

wait_for_token() {
  waited=0
  until have_token; do
    [ "$waited" -lt 120 ] || fail "no token at $RAY_AUTH_TOKEN_PATH after $waited s. Start the head" \
      "first; on another machine, copy the head's token to that place."
    sleep 1
    waited=$((waited + 1))
  done
}

start() { # ray start, in the foreground; what follows is this node's own
  [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -r "$RAY_AUTH_TOKEN_PATH" ] ||
    fail "user $(id -u) may not read the token $RAY_AUTH_TOKEN_PATH. Make it readable: chown $(id -u)."
  # Ray's object store lives in /dev/shm; more than its size would go to disk.
  shm=$(df --output=avail -B1 /dev/shm | tail -n 1)
  # Ray refuses a store below 75 MiB (ray/_private/services.py).
  [ "$((shm / 10 * 9))" -ge 78643200 ] ||
    fail "expected 84 MiB or more in /dev/shm, got $((shm / 1048576)). Pass --shm-size 1g to docker run," \
      "or set RAYSSL_SHM=1gb for compose."
  exec ray start "$@" --disable-usage-stats --block --object-store-memory="$((shm / 10 * 9))" \
    ${RAYSSL_CPUS:+--num-cpus="$RAYSSL_CPUS"} ${RAYSSL_GPUS:+--num-gpus="$RAYSSL_GPUS"}
}

case "${1:-}" in
  head)
    make_token
    # 0.0.0.0 within the container: which of the host's addresses it is published on is compose's choice.
    start --head --port=6379 --dashboard-host=0.0.0.0
    ;;
  worker)
    wait_for_token
    start --address="${2:?expected HEAD:6379}"
    ;;
  health)
    exec python -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:52365/api/healthz", timeout=5)'
    ;;
  *)
    fail "expected head, worker HEAD:6379 or health, got '${1:-}'."
    ;;
esac
