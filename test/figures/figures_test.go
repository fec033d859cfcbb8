package figures

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	five := []time.Duration{5, 1, 4, 2, 3}
	for _, tt := range []struct {
		all  []time.Duration
		q    float64
		want time.Duration
	}{
		{nil, 1, 0}, {five, 0, 1}, {five, 0.5, 3}, {five, 0.8, 4}, {five, 0.81, 5}, {five, 1, 5}, {[]time.Duration{7}, 0.5, 7},
	} {
		if got := Quantile(tt.all, tt.q); got != tt.want {
			t.Errorf("Quantile(%v, %g) = %d, want %d", tt.all, tt.q, got, tt.want)
		}
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 3: "3", 1234567: "1234567", 0.123: "0.12", 1.26: "1.3", 12.34: "12.3", 123.4: "123"} {
		if got := Number(v); got != want {
			t.Errorf("Number(%g) = %s, want %s", v, got, want)
		}
	}
}
