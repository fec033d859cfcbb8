package pathmtu

import (
	"testing"
	"time"
)

// way is a path that carries so much, and a kernel that believes something of it.
type way struct {
	carries, believes int
	answers           bool
	sent              int
}

// round plays a round to its end, and returns how long it took.
func (w *way) round(t *testing.T, s *Search, now int64) time.Duration {
	t.Helper()
	began := now
	s.Begin(now)
	for steps := 0; s.Due() != 0; steps++ {
		if steps > 200 {
			t.Fatal("the round does not end")
		}
		now = max(now, s.Due())
		one, two := s.Next(w.believes, now)
		for _, p := range []Probe{one, two} {
			if p.Size == 0 {
				continue
			}
			w.sent++
			if w.answers && p.Size <= w.carries {
				s.Answered(Probe{Answer: true, Size: p.Size, ID: p.ID}, w.believes, now)
			}
		}
	}
	return time.Duration(now - began)
}

func TestSearch(t *testing.T) {
	t.Parallel()
	const most = 1420
	for _, tt := range []struct {
		name      string
		way       way
		low, high int
	}{
		{"wide", way{carries: 1420, believes: 1420, answers: true}, 1420, 1420},
		{"a byte too narrow", way{carries: 1419, believes: 1420, answers: true}, 1412, 1419},
		{"narrow", way{carries: 1367, believes: 1420, answers: true}, 1360, 1367},
		{"the floor", way{carries: 1280, believes: 1420, answers: true}, 1280, 1280},
		{"less than the floor", way{carries: 1000, believes: 1420, answers: true}, 1420, 1420},
		{"nobody answers", way{believes: 1420}, 1420, 1420},
		{"the kernel knows", way{carries: 1420, believes: 1368, answers: true}, 1368, 1368},
		{"the kernel knows half", way{carries: 1300, believes: 1368, answers: true}, 1293, 1300},
		{"the kernel knows less than the floor", way{carries: 1420, believes: 600, answers: true}, 1280, 1280},
		{"the kernel knows of a wider link", way{carries: 1420, believes: 8920, answers: true}, 1420, 1420},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := New(most)
			took := tt.way.round(t, &s, 1)
			if got := s.MTU(); got < tt.low || got > tt.high {
				t.Errorf("found %d, want %d to %d", got, tt.low, tt.high)
			}
			if took > 10*time.Second || tt.way.sent > 60 {
				t.Errorf("took %v and %d probes", took, tt.way.sent)
			}
		})
	}
}

// TestEverySize finds every size there is, also on large links.
func TestEverySize(t *testing.T) {
	t.Parallel()
	for carries := Floor; carries <= 8920; carries += 7 {
		s, w := New(8920), way{carries: carries, believes: 8920, answers: true}
		w.round(t, &s, 1)
		if got := s.MTU(); got > carries || got < carries-grain {
			t.Fatalf("found %d on a way that carries %d", got, carries)
		}
	}
}

func TestResultHoldsAndExpires(t *testing.T) {
	t.Parallel()
	s, w := New(1420), way{carries: 1300, believes: 1420, answers: true}
	now := int64(1)
	now += int64(w.round(t, &s, now))
	found := s.MTU()
	w.carries = 1420
	w.sent = 0
	w.round(t, &s, now+int64(Expiry)/2)
	if s.MTU() != found || w.sent != 2 {
		t.Errorf("found %d after half the time with %d probes, want %d with 2", s.MTU(), w.sent, found)
	}
	w.round(t, &s, now+int64(Expiry)+1)
	if s.MTU() != 1420 {
		t.Errorf("found %d after the result has expired", s.MTU())
	}
	w.carries = 1290 // narrower than what held
	now += 2 * int64(Expiry)
	now += int64(w.round(t, &s, now))
	w.carries = 1282
	w.round(t, &s, now)
	if got := s.MTU(); got > 1282 || got < Floor {
		t.Errorf("found %d on a way that has become narrower again", got)
	}
}

// A probe is lost now and then without a reason.
func TestLossIsNoNarrowness(t *testing.T) {
	t.Parallel()
	s := New(1420)
	s.Begin(1)
	now := int64(1)
	for range tries - 1 {
		one, two := s.Next(1420, now)
		if one.Size != 1420 || two.Size != Floor {
			t.Fatalf("probes of %d and %d", one.Size, two.Size)
		}
		s.Answered(Probe{Answer: true, Size: Floor, ID: two.ID}, 1420, now)
		s.Answered(Probe{Answer: true, Size: one.Size, ID: one.ID + 1}, 1420, now) // forged
		now = s.Due()
	}
	one, _ := s.Next(1420, now)
	s.Answered(Probe{Answer: true, Size: one.Size, ID: one.ID}, 1420, now)
	if s.MTU() != 1420 || s.Due() != 0 {
		t.Errorf("found %d after all probes but one were lost", s.MTU())
	}
}

// The kernel learns from ICMP while the round is under way, and the next probe
// arrives in fragments.
func TestFragmentsDoNotCount(t *testing.T) {
	t.Parallel()
	s := New(1420)
	s.Begin(1)
	one, _ := s.Next(1420, 1)
	s.Answered(Probe{Answer: true, Size: one.Size, ID: one.ID}, 1350, 2)
	one, _ = s.Next(1350, s.Due())
	if one.Size != 1350 {
		t.Fatalf("asks for %d", one.Size)
	}
	s.Answered(Probe{Answer: true, Size: one.Size, ID: one.ID}, 1350, 3)
	if s.MTU() != 1350 || s.Due() != 0 {
		t.Errorf("found %d", s.MTU())
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range []Probe{{Size: Size, ID: 1}, {Answer: true, Size: 1420, ID: 1 << 63}} {
		b := make([]byte, Size)
		p.Put(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := Parse(b)
		if !ok {
			return
		}
		if b[0]>>4 != 0 {
			t.Errorf("%x could be an IP packet", b)
		}
		if !p.Answer && p.Size != len(b) {
			t.Errorf("%x is a probe of %d bytes", b, p.Size)
		}
		again := make([]byte, Size)
		p.Put(again)
		if string(again) != string(b[:Size]) {
			t.Errorf("%x becomes %x", b[:Size], again)
		}
	})
}

// FuzzSearch plays any answers at any time: the result is always between the floor
// and the most, and every round ends.
func FuzzSearch(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0, 0, 0, 7}, uint16(1420))
	f.Fuzz(func(t *testing.T, script []byte, size uint16) {
		most := max(Floor, int(size))
		s, now := New(most), int64(1)
		s.Begin(now)
		for _, b := range script {
			one, two := s.Next(most-int(b&3)*40, now)
			if b&4 != 0 {
				s.Answered(one, most-int(b&8)*10, now)
			}
			if b&16 != 0 {
				s.Answered(two, most, now)
			}
			now = max(now, s.Due())
			if mtu := s.MTU(); mtu < Floor || mtu > most {
				t.Fatalf("the largest packet is %d of %d", mtu, most)
			}
		}
		for n := 0; s.Due() != 0; n++ {
			if n > 1000 {
				t.Fatal("the round does not end")
			}
			now = s.Due()
			s.Next(most, now)
		}
	})
}
