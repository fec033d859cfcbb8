package status

import (
	"math"
	"runtime/metrics"
)

// Pauses are the times for which the garbage collector has stopped the whole process,
// since its start.
type Pauses struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50ms"`
	P99   float64 `json:"p99ms"`
	Max   float64 `json:"maxms"`
}

// GCPauses asks the runtime. It counts in classes of lengths; a time is the upper end
// of its class.
func GCPauses() Pauses {
	sample := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return Pauses{}
	}
	return pausesOf(sample[0].Value.Float64Histogram())
}

func pausesOf(h *metrics.Float64Histogram) Pauses {
	var out Pauses
	for _, n := range h.Counts {
		out.Count += n
	}
	at := func(percent uint64) float64 { // the least that so many do not exceed
		seen := uint64(0)
		for i, n := range h.Counts {
			if seen += n; n > 0 && seen*100 >= out.Count*percent {
				return 1e3 * finite(h.Buckets[i+1], h.Buckets[i])
			}
		}
		return 0
	}
	out.P50, out.P99, out.Max = at(50), at(99), at(100)
	return out
}

// finite is a class's upper end, or its lower one where it has none.
func finite(upper, lower float64) float64 {
	if math.IsInf(upper, 1) {
		return lower
	}
	return upper
}
