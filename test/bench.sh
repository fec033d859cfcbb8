#!/usr/bin/env bash
# Runs every benchmark and prints one line per result:
#
#   figure NAME VALUE UNIT
#   ratio NAME VALUE ours=... theirs=... unit=...
#
# QUICK=1 takes few and short runs. `make bench` builds what is measured here.
# docs/performance.md says what the names mean and what was measured.
set -euo pipefail
cd "$(dirname "$0")/.."

quick=
benchtime=1s
if [ "${QUICK:-0}" = 1 ]; then
  quick=-quick
  benchtime=100ms
fi

# Go benchmarks become figures: BenchmarkWalk/Known of internal/datapath is
# "datapath-walk-known ns/op", its allocations "datapath-walk-known-allocs".
# A benchmark that prints figures of its own, in front of its line, keeps those.
figures() {
  awk '
    /^pkg: / { n = split($2, part, "/"); area = part[n] }
    /(^|[ \t])(figure|ratio) / { print substr($0, match($0, /(figure|ratio) /)); own = 1; next }
    / ns\/op/ && own { own = 0; next }
    /^Benchmark/ && / ns\/op/ {
      name = $1
      sub(/^Benchmark/, "", name)
      sub(/-[0-9]+$/, "", name)
      gsub(/[^A-Za-z0-9]+/, "-", name)
      name = area "-" tolower(name)
      for (i = 3; i < NF; i += 2) {
        unit = $(i + 1)
        if (unit == "B/op") continue
        suffix = unit == "ns/op" ? "" : "-" unit
        sub(/\/op$/, "", suffix)
        gsub(/[^A-Za-z0-9-]+/, "-", suffix)
        print "figure", name suffix, $i, unit
      }
    }' | awk '
    # A benchmark that prints its own prints once per attempt: the last one counts.
    { gsub(/_/, "-", $2); if (NR > 1 && $2 != name) print line; line = $0; name = $2 }
    END { if (NR) print line }'
}

go run ./test/bench -docs docs/performance.md $quick

for area in ./internal/datapath ./internal/flow ./internal/packet ./ipam ./proxy ./dns ./overlay ./internal/cluster; do
  # One process at a time: the machine is what is measured.
  go test -run '^$' -bench . -benchmem -benchtime "$benchtime" -cpu 1 "$area" | figures
done
