# Sourced by the script of every client: where things are kept, how they are installed, how a check is told.
#
# A script prints one JSON object per line on its standard output and nothing else:
#     {"client":"kcat","version":"1.7.1"}                                     once, first
#     {"check":"reads back what it wrote","ok":true}                          per check
#     {"check":"…","ok":false,"wanted":"…","got":"…"}
#     {"end":17}                                                              last: how many checks there were
# A run without its last line did not end well. What installing prints goes to the standard error.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BUTTRESS_CONFORMANCE_CACHE:-$here/../target/conformance}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=
checks=0

fail() { # what is wrong, what helps
    printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2
    exit 2
}

need() { # a command, and what brings it
    command -v "$1" >/dev/null || fail "\"$1\" is not on the path" "$2"
}

# Installs once: the command runs only where what it makes is not there yet, or was made from other files.
install_once() { # name, files that decide…, "--", command…
    local name=$1 files=()
    shift
    while [ "$1" != -- ]; do files+=("$1"); shift; done
    shift
    local sum
    sum=$(cat "${files[@]}" | sha256sum)
    [ "$(cat "$cache/$name.stamp" 2>/dev/null)" = "$sum" ] && return
    echo "installing $name" >&2
    "$@" >&2 || fail "$name cannot be installed" "the lines above say why; the cache is $cache"
    printf '%s\n' "$sum" >"$cache/$name.stamp"
}

# A virtual environment with exactly the packages that the pinned list names.
python_env() { # name
    local list="$here/python/requirements-$1.txt"
    need python3 "apt-get install python3 python3-venv"
    make_env() {
        rm -rf "$cache/python-$1"
        python3 -m venv "$cache/python-$1" && "$cache/python-$1/bin/pip" install --quiet --no-deps --disable-pip-version-check -r "$list"
    }
    install_once "python-$1" "$list" -- make_env "$1"
}

# What the lock file of a folder names, and nothing newer.
node_modules() { # folder
    need npm "apt-get install npm"
    make_modules() { # installed beside a copy of the sources, so that the tree stays clean
        mkdir -p "$cache/node-$1" && cp "$here/node/$1"/*.json "$cache/node-$1/" && cd "$cache/node-$1" && npm ci --silent --no-audit --no-fund
    }
    install_once "node-$1" "$here/node/$1/package-lock.json" -- make_modules "$1"
}

# Builds one command of the Go module; Go itself knows what has changed.
go_build() { # folder
    need go "a Go toolchain (1.26 or newer)"
    mkdir -p "$cache/bin"
    (cd "$here/go" && go build -mod=readonly -o "$cache/bin/$1" "./$1") >&2 || fail "$1 cannot be built" "the lines above say why"
}

# Builds a command that is a module of its own, because what it stands on is large and of no use to the others.
go_build_module() { # folder, command
    need go "a Go toolchain (1.26 or newer)"
    mkdir -p "$cache/bin"
    (cd "$here/$1" && go build -mod=readonly -o "$cache/bin/$2" .) >&2 || fail "$2 cannot be built" "the lines above say why"
}

cargo_build() { # package
    need cargo "a Rust toolchain"
    (cd "$here/rust" && CARGO_TARGET_DIR="$cache/rust" cargo build --quiet --locked -p "$1") >&2 || fail "$1 cannot be built" "the lines above say why"
}

maven_jars() { # the folder of a pom.xml, where the jars go
    need mvn "apt-get install maven default-jdk-headless"
    copy_jars() {
        rm -rf "$cache/$2"
        mvn -q -B -f "$1/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DoutputDirectory="$cache/$2"
    }
    install_once "$2" "$1/pom.xml" -- copy_jars "$1" "$2"
}

# With --install a script stops here. Without, it needs a server.
only_installing() {
    if [ "${1:-}" = --install ]; then exit 0; fi
    [ -n "${ETCD_ENDPOINTS:-}${KAFKA_BOOTSTRAP:-}${BUTTRESS_BINARY:-}" ] || fail "no server is named" "set ETCD_ENDPOINTS or KAFKA_BOOTSTRAP to HOST:PORT[,HOST:PORT…], or BUTTRESS_BINARY for what goes through the proxy"
}

# The tests of crates/bridge that have an engine in their names, each as a check.
bridge_tests() { # etcd or kafka, the script's arguments
    need cargo "a Rust toolchain"
    local engine=$1 built binary name result said
    shift
    built=$(cd "$here/.." && cargo test --locked -p buttress-bridge --test it --no-run 2>&1) || fail "the tests of crates/bridge cannot be built" "$built"
    binary=$(cd "$here/.." && realpath "$(printf '%s\n' "$built" | sed -n 's/.*Executable .*(\(.*\)).*/\1/p')")
    only_installing "$@"
    begin "bridge-$engine" "$(cd "$here/.." && cargo pkgid --locked -p buttress-bridge | sed 's/.*[#@]//')"
    export BUTTRESS_ORIGINALS="$here/originals" RUST_BACKTRACE=0
    (cd "$work" && "$binary" --test-threads 1 --show-output "$engine" >told 2>errors) || true
    while read -r _ name _ result; do
        # What the test printed, if anything: why it failed, or that it was not run.
        said=$(awk -v "begin=---- $name stdout ----" '$0 == begin {on = 1; next} /^---- .* stdout ----$|^(failures|successes):$/ {on = 0} on' "$work/told")
        case $result$said in *"NOT RUN"*) result="not run" ;; esac
        if [ "$result" = ok ]; then said=; fi
        check "${name##*::}" ok "$result${said:+: $said}"
    done < <(sed -n 's/^test \(.*\) \.\.\. \(.*\)$/test \1 ... \2/p' "$work/told")
    grep -q '^test result: ok' "$work/told" || tail -n 20 "$work/errors" >&2
    end
}

json() { # a text as a JSON string
    local text=$1
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    text=${text//$'\t'/\\t}
    text=${text//$'\r'/\\r}
    printf '"%s"' "$(printf '%s' "$text" | tr -d '\000-\010\013\014\016-\037')"
}

begin() { # client, version
    printf '{"client":%s,"version":%s}\n' "$(json "$1")" "$(json "$2")"
    work=$(mktemp -d)
    trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null || true; wait || true; rm -rf "$work"' EXIT
}

end() { printf '{"end":%s}\n' "$checks"; }

check() { # name, wanted, got
    checks=$((checks + 1))
    if [ "$2" = "$3" ]; then
        printf '{"check":%s,"ok":true}\n' "$(json "$1")"
    else
        printf '{"check":%s,"ok":false,"wanted":%s,"got":%s}\n' "$(json "$1")" "$(json "$2")" "$(json "${3:0:2000}")"
    fi
}

check_has() { # name, what must be in it, got
    case $3 in *"$2"*) check "$1" same same ;; *) check "$1" "…$2…" "$3" ;; esac
}

# Waits until a command succeeds, at most this long.
until_true() { # seconds, command…
    local end=$((SECONDS + $1))
    shift
    while ! "$@"; do
        if [ $SECONDS -ge $end ]; then return 1; fi
        sleep 0.1
    done
}
