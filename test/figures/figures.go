// Package figures is the arithmetic of what is measured and printed.
package figures

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Quantile returns the smallest value that at least the share q of all values does
// not exceed; the zero value when there are none.
func Quantile[T cmp.Ordered](all []T, q float64) T {
	var none T
	if len(all) == 0 {
		return none
	}
	sorted := slices.Sorted(slices.Values(all))
	i := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(i, 1), len(sorted))-1]
}

// MS returns a duration in milliseconds.
func MS(d time.Duration) float64 { return d.Seconds() * 1e3 }

// Number prints three digits of what is small and all of what is large.
func Number(v float64) string {
	switch {
	case v == float64(int64(v)) || v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2g", v)
	}
}
