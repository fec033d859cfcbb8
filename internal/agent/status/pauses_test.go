package status

import (
	"math"
	"runtime"
	"runtime/metrics"
	"testing"
)

func TestPauses(t *testing.T) {
	t.Parallel()
	ends := []float64{math.Inf(-1), 0, 0.001, 0.002, 0.004, math.Inf(1)}
	for name, c := range map[string]struct {
		counts []uint64
		want   Pauses
	}{
		"none":           {[]uint64{0, 0, 0, 0, 0}, Pauses{}},
		"one":            {[]uint64{0, 0, 1, 0, 0}, Pauses{1, 2, 2, 2}},
		"a hundred":      {[]uint64{0, 98, 1, 1, 0}, Pauses{100, 1, 2, 4}},
		"without an end": {[]uint64{0, 0, 0, 0, 3}, Pauses{3, 4, 4, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := pausesOf(&metrics.Float64Histogram{Counts: c.counts, Buckets: ends}); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

// TestGCPausesAreThere: the runtime knows the name.
func TestGCPausesAreThere(t *testing.T) {
	t.Parallel()
	before := GCPauses()
	runtime.GC()
	if after := GCPauses(); after.Count <= before.Count || after.P99 <= 0 || after.Max < after.P50 {
		t.Errorf("after a collection %+v, before %+v", after, before)
	}
}
