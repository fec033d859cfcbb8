package nodeport

import "testing"

// Whatever clients do, half of the files are left.
func TestLimitsFor(t *testing.T) {
	t.Parallel()
	defaults := Limits{}.withDefaults()
	if got := LimitsFor(1 << 20); got != defaults {
		t.Errorf("of many files: %+v, want the defaults", got)
	}
	for _, files := range []int{8, 1024, 65536, 131072} {
		l := LimitsFor(files)
		if l.Files() > files/2 {
			t.Errorf("of %d files clients may take %d: %+v", files, l.Files(), l)
		}
		if l.Conns < 1 || l.Flows < 1 || l.ConnsPerClient > l.Conns || l.FlowsPerClient > l.Flows {
			t.Errorf("of %d files: %+v", files, l)
		}
	}
}
