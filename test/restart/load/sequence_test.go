package load

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSequence(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	type arrival struct {
		number uint64
		at     time.Duration
	}
	begin := time.Now()
	tests := map[string]struct {
		arrivals []arrival
		cut      time.Duration
		want     Counts
	}{
		"nothing came":       {cut: 5 * ms},
		"in order":           {[]arrival{{1, 1 * ms}, {2, 2 * ms}, {3, 3 * ms}}, 4 * ms, Counts{Sent: 3, Gap: 1 * ms}},
		"begins anywhere":    {[]arrival{{700, 1 * ms}, {701, 2 * ms}}, 3 * ms, Counts{Sent: 2, Gap: 1 * ms}},
		"two lost":           {[]arrival{{1, 1 * ms}, {4, 4 * ms}}, 5 * ms, Counts{Sent: 4, Lost: 2, Gap: 3 * ms}},
		"late, not lost":     {[]arrival{{1, 1 * ms}, {3, 3 * ms}, {2, 4 * ms}}, 5 * ms, Counts{Sent: 3, Reordered: 1, Gap: 2 * ms}},
		"twice":              {[]arrival{{1, 1 * ms}, {2, 2 * ms}, {2, 3 * ms}}, 4 * ms, Counts{Sent: 2, Duplicates: 1, Gap: 1 * ms}},
		"late, then twice":   {[]arrival{{1, 0}, {3, 0}, {2, 0}, {2, 0}}, 0, Counts{Sent: 3, Reordered: 1, Duplicates: 1}},
		"waited in a queue":  {[]arrival{{1, 0}, {2, 300 * ms}, {3, 300 * ms}, {4, 300 * ms}}, 301 * ms, Counts{Sent: 4, Gap: 300 * ms}},
		"silent ever since":  {[]arrival{{1, 0}}, 80 * ms, Counts{Sent: 1, Gap: 80 * ms}},
		"window passed over": {[]arrival{{1, 0}, {2 + 3*window, 0}, {2 + 2*window, 0}}, 0, Counts{Sent: 2 + 3*window, Lost: 3 * window, Reordered: 1}},
		"same bits as one a window ago": {
			[]arrival{{5, 0}, {5 + window, 0}, {5 + window, 0}}, 0, Counts{Sent: 1 + window, Lost: window - 1, Duplicates: 1},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s sequence
			for _, a := range tt.arrivals {
				s.arrive(a.number, a.at, begin.Add(a.at))
			}
			if diff := cmp.Diff(tt.want, s.cut(begin.Add(tt.cut))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A sequence is cut again and again; what comes late is then taken off again.
func TestSequenceCut(t *testing.T) {
	t.Parallel()
	var s sequence
	now := time.Now()
	s.arrive(1, 1, now)
	s.arrive(3, 3, now.Add(time.Second))
	total := s.cut(now.Add(time.Second))
	if total.Lost != 1 || total.Gap != time.Second {
		t.Errorf("at first %+v", total)
	}
	s.arrive(2, 2, now.Add(2*time.Second))
	s.astray()
	s.fail()
	second := s.cut(now.Add(4 * time.Second))
	if want := (Counts{Lost: -1, Reordered: 1, Wrong: 1, Failed: 1, Gap: 2 * time.Second}); second != want {
		t.Errorf("then %+v, want %+v", second, want)
	}
	total.Add(second)
	if want := (Counts{Sent: 3, Reordered: 1, Wrong: 1, Failed: 1, Gap: 2 * time.Second}); total != want {
		t.Errorf("altogether %+v, want %+v", total, want)
	}
	if s.newest() != 3 {
		t.Errorf("the newest was sent at %d", s.newest())
	}
}

func TestWiden(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		bits         uint16
		newest, want uint64
	}{
		{1, 1, 1},
		{7, 9, 7},
		{0xffff, 0x10001, 0xffff},
		{1, 0x10001, 0x10001},
		{2, 0x20001, 0x10002},
	} {
		if got := widen(tt.bits, tt.newest); got != tt.want {
			t.Errorf("widen(%#x, %#x) = %#x, want %#x", tt.bits, tt.newest, got, tt.want)
		}
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	want := message{stream: 1, server: 2, number: 1 << 40, sent: time.Hour}
	buf := make([]byte, datagramSize)
	want.encode(buf)
	if got := decode(buf); got != want {
		t.Errorf("%+v became %+v", want, got)
	}
}
