package udp

import (
	"errors"
	"fmt"
	"testing"
)

func TestBreaksGSO(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]bool{
		"6.18.44-fc": false, "7.0.0-rc1": true, "7.0.12-generic": true, "7.1.0": true, "7.1.4": true, "7.1.5": false,
		"7.2.0": false, "8.0.1": false, "5.4": false, "7.0": true, "": false, "x": false, "7": false,
	} {
		if got := breaksGSO(release); got != want {
			t.Errorf("%q: got %v, want %v", release, got, want)
		}
	}
}

func TestJudgeOffload(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, tt := range []struct {
		set   Switch
		fault error
		want  string
	}{
		{Auto, nil, "on"},
		{Auto, broken, "off: broken"},
		{Auto, fmt.Errorf("%w: no loopback", ErrUntested), "on"},
		{On, broken, "on"},
		{Off, nil, "off: by the settings"},
	} {
		if got := tt.set.judge(tt.fault); got != tt.want {
			t.Errorf("switch %d, fault %v: %q, want %q", tt.set, tt.fault, got, tt.want)
		}
	}
	o, why := Choose(Off, On)
	if o.GSO || !o.GRO || why.GSO != "off: by the settings" || why.GRO != "on" {
		t.Errorf("got %+v, %+v", o, why)
	}
	if got := (Offloads{GSO: "off: by the settings", GRO: "off: broken"}).Faults(); len(got) != 1 || got[0] != "GRO: broken" {
		t.Errorf("faults %q", got)
	}
}
