package status_test

import (
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/status"
)

func TestDelays(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for name, c := range map[string]struct {
		do   func(d *status.Delays)
		want status.Delay
	}{
		"nothing heard":             {func(d *status.Delays) { d.InForce(7, at(1)) }, status.Delay{}},
		"not in force yet":          {func(d *status.Delays) { d.Heard(2, at(0)); d.InForce(1, at(9)) }, status.Delay{}},
		"time not known":            {func(d *status.Delays) { d.Heard(1, time.Time{}); d.InForce(1, at(9)) }, status.Delay{}},
		"in force twice":            {func(d *status.Delays) { d.Heard(1, at(0)); d.InForce(1, at(4)); d.InForce(1, at(9)) }, status.Delay{1, 4, 4, 4}},
		"one turn for several":      {func(d *status.Delays) { d.Heard(1, at(0)); d.Heard(3, at(5)); d.InForce(3, at(9)) }, status.Delay{2, 4, 9, 9}},
		"the next one waits":        {func(d *status.Delays) { d.Heard(1, at(0)); d.Heard(2, at(5)); d.InForce(1, at(9)) }, status.Delay{1, 9, 9, 9}},
		"a hundred":                 {changes(start, 100), status.Delay{100, 50, 99, 100}},
		"the old ones are left out": {changes(start, 512), status.Delay{512, 384, 510, 512}},
		"what waits is bounded":     {func(d *status.Delays) { heardOnly(d, 5000, start); d.InForce(5000, at(1)) }, status.Delay{1024, 1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var d status.Delays
			c.do(&d)
			if got := d.Delay(); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

// changes come into force after 1 ms, 2 ms and so on.
func changes(start time.Time, n int) func(*status.Delays) {
	return func(d *status.Delays) {
		for i := 1; i <= n; i++ {
			d.Heard(uint64(i), start)
			d.InForce(uint64(i), start.Add(time.Duration(i)*time.Millisecond))
		}
	}
}

func heardOnly(d *status.Delays, n int, at time.Time) {
	for i := 1; i <= n; i++ {
		d.Heard(uint64(i), at)
	}
}
