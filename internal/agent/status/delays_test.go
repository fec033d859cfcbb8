package status

import (
	"testing"
	"time"
)

func TestDelays(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for name, c := range map[string]struct {
		do   func(d *Delays)
		want Delay
	}{
		"nothing heard":             {func(d *Delays) { d.inForce(7, at(1)) }, Delay{}},
		"not in force yet":          {func(d *Delays) { d.Heard(2, at(0)); d.inForce(1, at(9)) }, Delay{}},
		"time not known":            {func(d *Delays) { d.Heard(1, time.Time{}); d.inForce(1, at(9)) }, Delay{}},
		"in force twice":            {func(d *Delays) { d.Heard(1, at(0)); d.inForce(1, at(4)); d.inForce(1, at(9)) }, Delay{1, 4, 4, 4}},
		"one turn for several":      {func(d *Delays) { d.Heard(1, at(0)); d.Heard(3, at(5)); d.inForce(3, at(9)) }, Delay{2, 4, 9, 9}},
		"the next one waits":        {func(d *Delays) { d.Heard(1, at(0)); d.Heard(2, at(5)); d.inForce(1, at(9)) }, Delay{1, 9, 9, 9}},
		"a hundred":                 {changes(start, 100), Delay{100, 50, 99, 100}},
		"the old ones are left out": {changes(start, 512), Delay{512, 384, 510, 512}},
		"what waits is bounded":     {func(d *Delays) { heardOnly(d, 5000, start); d.inForce(5000, at(1)) }, Delay{1024, 1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var d Delays
			c.do(&d)
			if got := d.Delay(); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

// changes come into force after 1 ms, 2 ms and so on.
func changes(start time.Time, n int) func(*Delays) {
	return func(d *Delays) {
		for i := 1; i <= n; i++ {
			d.Heard(uint64(i), start)
			d.inForce(uint64(i), start.Add(time.Duration(i)*time.Millisecond))
		}
	}
}

func heardOnly(d *Delays, n int, at time.Time) {
	for i := 1; i <= n; i++ {
		d.Heard(uint64(i), at)
	}
}
