#!/usr/bin/env bash
# Runs both examples as their READMEs say, and holds what they print against what the READMEs show.
#
#     examples/sidecar/check.sh target/debug/buttress [python|node]…
#
# Ports are free ones, so that it can run beside anything. A machine without python3 or node fails here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

fail() { # what is wrong, what helps
    printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

[ $# -ge 1 ] || fail "no binary is named" "examples/sidecar/check.sh target/debug/buttress"
buttress=$1
shift
languages=("$@")
[ ${#languages[@]} -gt 0 ] || languages=(python node)
[ -x "$buttress" ] || fail "\"$buttress\" is not a program" "cargo build -p buttress, then name target/debug/buttress"

work=$(mktemp -d)
service= proxy=
stop() { # pid
    [ -n "$1" ] || return 0
    kill "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}
trap 'stop "$service"; stop "$proxy"; rm -rf "$work"' EXIT

wait_for() { # file, pattern: the first line that has it
    for _ in $(seq 600); do
        grep -m1 -- "$2" "$1" 2>/dev/null && return
        sleep 0.1
    done
    cat "$1" >&2
    fail "\"$2\" was not printed within a minute" "the lines above say why"
}

has() { # what it is, pattern, text
    grep -q -- "$2" <<<"$3" || fail "$1: nothing says \"$2\", but: $3" "read the README of the example beside this script"
}

hasnt() { # what it is, pattern, text
    ! grep -q -- "$2" <<<"$3" || fail "$1: there must be no \"$2\", but: $3" "read the README of the example beside this script"
}

start_service() { # port, fail every
    : >"$work/service"
    "${run_service[@]}" --port "$1" --fail-every "$2" >"$work/service" 2>&1 &
    service=$!
    port=$(wait_for "$work/service" '^service: ')
    port=${port##*:}
}

client() { # arguments…; its answer is the text, failures included
    "${run_client[@]}" --to "$listen" "$@" 2>&1 || true
}

field() { # name: of the line that the proxy printed
    sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$work/proxy" | head -1
}

for language in "${languages[@]}"; do
    case $language in
    python)
        command -v python3 >/dev/null || fail "python3 is not on the path" "apt-get install python3"
        run_service=(python3 "$here/python/service.py") run_client=(python3 "$here/python/client.py")
        ;;
    node)
        command -v node >/dev/null || fail "node is not on the path" "apt-get install nodejs (18 or newer), or name the languages to check: python"
        run_service=(node "$here/node/service.mjs") run_client=(node "$here/node/client.mjs")
        ;;
    *) fail "there is no example in \"$language\"" "python or node" ;;
    esac

    start_service 0 3
    "$buttress" proxy --to "127.0.0.1:$port" --listen 127.0.0.1:0 --admin 127.0.0.1:0 --output json >"$work/proxy" 2>"$work/proxy.err" &
    proxy=$!
    wait_for "$work/proxy" '"admin"' >/dev/null
    listen=$(field listen) admin=$(field admin)
    [ -n "$listen" ] && [ -n "$admin" ] || fail "the proxy did not say where it is: $(cat "$work/proxy")" "see docs/guides/proxy.md"
    explain() { "$buttress" explain "$1" --admin "$admin"; }
    next() { sed -n 's/^next: buttress explain //p' <<<"$1"; }

    # Every third request fails, and no caller notices.
    told=$(client --calls 20)
    has "$language, a flaky service" '^20 calls: 20 answered well, 0 failed$' "$told"

    # A POST may have had an effect; with a key it may be sent again.
    told=$(client --calls 12 --post)
    has "$language, POST" ' 503 of the service$' "$told"
    why=$(explain "$(next "$told")")
    has "$language, why a POST was not sent again" 'BT-RTY-EFFECT' "$why"
    told=$(client --calls 12 --post --key)
    has "$language, POST with a key" '^12 calls: 12 answered well, 0 failed$' "$told"

    # The service dies: first it cannot be reached, then nobody asks it any more.
    stop "$service"
    service=
    told=$(client --calls 60)
    has "$language, a dead service" '^60 calls: 0 answered well, 60 failed$' "$told"
    has "$language, a dead service" ' BT0906$' "$told"
    has "$language, the breaker" ' BT-BRK-OPEN$' "$told"
    # Now and then one call is let through as a probe; any other is refused.
    for _ in $(seq 300); do
        told=$(client --calls 1)
        grep -q ' BT-BRK-OPEN$' <<<"$told" && break
    done
    has "$language, what would pass" 'what would pass: a call .* later, as a probe' "$told"
    why=$(explain "$(next "$told")")
    has "$language, explain" 'the breaker is open because of failures' "$why"
    has "$language, explain" 'It would have passed with: ' "$why"
    hasnt "$language, explain" 'attempt 1' "$why"

    # It comes back, and so do the calls.
    start_service "$port" 0
    for _ in $(seq 300); do
        told=$(client --calls 1)
        grep -q '^1 calls: 1 answered well' <<<"$told" && break
        sleep 0.1
    done
    has "$language, a service that is back" '^1 calls: 1 answered well, 0 failed$' "$told"

    stop "$service"
    stop "$proxy"
    service= proxy=
    echo "$language: the retry is hidden, the breaker opens, every answer says why, and the calls come back"
done
