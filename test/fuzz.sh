#!/usr/bin/env bash
# Runs every fuzz target of the module, found by its declaration, for the given
# time each (default 10s):
#
#   test/fuzz.sh [TIME] [PATTERN]
#
# PATTERN is an extended regular expression on "package FuzzName" and selects a
# few of them. Each package's test binary is built once, with the fuzzer's
# instrumentation. A crasher is written to the package's testdata/fuzz, where
# `go test` runs it from then on; commit it with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s}
pattern=${2:-.}
go=${GO:-go}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0

# One line per target: folder and function name.
targets=$(git ls-files --cached --others --exclude-standard '*_test.go' |
  xargs grep -HoE '^func Fuzz[A-Za-z0-9_]+\(' |
  sed -E 's#^(.*)/[^/]+:func (Fuzz[A-Za-z0-9_]+)\($#\1 \2#' |
  sort -u | grep -E -- "$pattern" || true)
[ -n "$targets" ] || { echo "fuzz: no target matches $pattern" >&2; exit 1; }

failed=()

# ended reports whether a run found nothing and only ended in the middle of an
# input, which Go counts as a failure (golang/go#75804).
ended() { ! grep -q 'Failing input' "$work/output" && grep -qE '^ +context deadline exceeded$' "$work/output"; }

while read -r folder name; do
  binary=$work/$(tr / - <<<"$folder").test
  # The pattern only switches the instrumentation on; the binary runs any target.
  [ -x "$binary" ] || "$go" test -c -fuzz='^Fuzz' -o "$binary" "./$folder"
  if (cd "$folder" && "$binary" -test.run='^$' -test.fuzz="^$name\$" -test.fuzztime="$time" \
    -test.fuzzcachedir="$work/corpus-$name" -test.timeout=10m) >"$work/output" 2>&1 || ended; then
    printf 'ok    %s %s: %s\n' "$folder" "$name" "$(grep -oE 'execs: [0-9]+' "$work/output" | tail -1 || true)"
  else
    failed+=("$folder/$name")
    printf 'FAIL  %s %s\n' "$folder" "$name"
    cat "$work/output"
  fi
done <<<"$targets"

if [ ${#failed[@]} -gt 0 ]; then
  echo "fuzz: ${#failed[@]} failed: ${failed[*]}" >&2
  exit 1
fi
echo "fuzz: $(wc -l <<<"$targets") targets, $time each, no crash"
