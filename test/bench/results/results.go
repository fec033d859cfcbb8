// Package results is what a measurement came to: medians of pairs with their
// intervals, the mark that each figure has to reach, and how all of it is printed,
// kept and drawn.
package results

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Result is one line: a figure, or a ratio of two that took turns.
type Result struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Low    float64 `json:"low"` // the interval of the median
	High   float64 `json:"high"`
	Unit   string  `json:"unit"`
	Ratio  bool    `json:"ratio"`
	Ours   float64 `json:"ours,omitempty"` // of a ratio
	Theirs float64 `json:"theirs,omitempty"`
	Pairs  int     `json:"pairs"`
	// Unmarked results have nothing to reach, whatever their name.
	Unmarked bool `json:"unmarked,omitempty"`
}

// Figure makes the line of one figure from its values.
func Figure(name, unit string, values []float64) Result {
	r := Result{Name: name, Unit: unit, Value: Median(values), Pairs: len(values)}
	r.Low, r.High = Interval(values)
	return r
}

// Ratio makes the line of pairs: the median of their ratios, as ours and theirs are
// medians of their own.
func Ratio(name, unit string, ours, theirs []float64) Result {
	ratios := make([]float64, 0, len(ours))
	for i := range ours {
		if theirs[i] != 0 {
			ratios = append(ratios, ours[i]/theirs[i])
		}
	}
	r := Figure(name, unit, ratios)
	r.Ratio, r.Ours, r.Theirs = true, Median(ours), Median(theirs)
	return r
}

// Median is the middle value, 0 of none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// Interval is where the true median lies in at least 95 of 100 cases, whatever the
// values' distribution: how many of n values lie below the median is a coin thrown n
// times. Fewer than six values do not say that much; then it is all of them.
func Interval(values []float64) (low, high float64) {
	if len(values) == 0 {
		return 0, 0
	}
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	k, tail, p := 0, 0.0, math.Pow(0.5, float64(n))
	for i := range n / 2 { // the chance that at most i values lie below
		if tail += p; tail > 0.025 {
			break
		}
		k = i + 1
		p *= float64(n-i) / float64(i+1)
	}
	k = max(k-1, 0)
	return s[k], s[n-1-k]
}

// String is the line.
func (r Result) String() string {
	var b strings.Builder
	if r.Ratio {
		fmt.Fprintf(&b, "ratio %s %.3f ours=%.4g theirs=%.4g unit=%s", r.Name, r.Value, r.Ours, r.Theirs, r.Unit)
	} else {
		fmt.Fprintf(&b, "figure %s %.4g %s", r.Name, r.Value, r.Unit)
	}
	if r.Pairs > 1 {
		fmt.Fprintf(&b, " interval=%.3g..%.3g pairs=%d", r.Low, r.High, r.Pairs)
	}
	if m, ok := MarkOf(r.Name); ok && !r.Unmarked {
		fmt.Fprintf(&b, " mark=%s %s", strings.ReplaceAll(m.String(), " ", ""), m.Judge(r))
	}
	return b.String()
}
