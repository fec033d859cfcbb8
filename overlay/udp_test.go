package overlay

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/netctl/netctl/overlay/udp"
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
		set   Offload
		fault error
		want  string
	}{
		{OffloadAuto, nil, "on"},
		{OffloadAuto, broken, "off: broken"},
		{OffloadAuto, fmt.Errorf("%w: no loopback", udp.ErrUntested), "on"},
		{OffloadOn, broken, "on"},
		{OffloadOff, nil, "off: by the settings"},
	} {
		if got := tt.set.judge(tt.fault); got != tt.want {
			t.Errorf("switch %d, fault %v: %q, want %q", tt.set, tt.fault, got, tt.want)
		}
	}
	o, why := UDPConfig{GSO: OffloadOff, GRO: OffloadOn}.decide(slog.New(slog.DiscardHandler))
	if o.GSO || !o.GRO || why.GSO != "off: by the settings" || why.GRO != "on" {
		t.Errorf("got %+v, %+v", o, why)
	}
}
