package flow_test

import (
	"math"
	"testing"

	"github.com/netctl/netctl/internal/flow"
)

// Tuples that differ in few bits, as an attacker or a scan makes them, spread
// over the buckets like random ones.
func TestHashSpread(t *testing.T) {
	t.Parallel()
	const n, buckets = 1 << 16, 1 << 10
	series := map[string]func(i uint64) [5]uint64{
		"source ports":      func(i uint64) [5]uint64 { return [5]uint64{0, 1, 0, 2, i<<48 | 80<<32 | 6<<24 | 1<<7} },
		"destination ports": func(i uint64) [5]uint64 { return [5]uint64{0, 1, 0, 2, 80<<48 | i<<32 | 6<<24 | 1<<7} },
		"source addresses":  func(i uint64) [5]uint64 { return [5]uint64{0, i << 48, 0, 2, 80 << 48} },
		"prefixes":          func(i uint64) [5]uint64 { return [5]uint64{i << 40, 1, 0, 2, 80 << 48} },
		"destinations":      func(i uint64) [5]uint64 { return [5]uint64{0, 1, 0, i << 48, 80 << 48} },
		"destination nets":  func(i uint64) [5]uint64 { return [5]uint64{0, 1, i << 40, 2, 80 << 48} },
		"both ends":         func(i uint64) [5]uint64 { return [5]uint64{0, i << 48, 0, i << 48, 80 << 48} },
		"high bits":         func(i uint64) [5]uint64 { return [5]uint64{i << 48, 0, 0, 0, 0} },
	}
	for name, f := range series {
		tab := open(t, flow.Config{Slots: 64})
		for half, shift := range map[string]uint{"first": 0, "second": 32, "tag": 56} {
			bins := buckets
			if half == "tag" {
				bins = 256
			}
			count := make([]float64, bins)
			for i := range uint64(n) {
				count[tab.HashOf(f(i))>>shift%uint64(bins)]++
			}
			var chi float64
			want := float64(n) / float64(bins)
			for _, c := range count {
				chi += (c - want) * (c - want) / want
			}
			// Ten standard deviations of chi-squared: a universal hash may be more
			// even or less than chance, but not by much.
			if limit := float64(bins) + 10*math.Sqrt(2*float64(bins)); chi > limit {
				t.Errorf("%s, %s: chi-squared %.0f, want at most %.0f", name, half, chi, limit)
			}
		}
	}
}
