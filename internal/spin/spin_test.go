package spin

import (
	"runtime"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// spinner plays a worker that gets one packet a gap, on a clock of its own.
type spinner struct {
	Spin

	at    time.Time
	asked int
	room  bool
}

const (
	look = 400 * time.Nanosecond
	wake = 10 * time.Microsecond // what a sleep takes at least
)

func newSpinner() *spinner {
	s := &spinner{at: time.Unix(1000, 0), room: true}
	s.now = func() time.Time { return s.at }
	s.spare = func() bool {
		s.asked++
		return s.room
	}
	return s
}

// packet lets a gap pass and reports whether the worker slept, and how often it
// looked in vain.
func (s *spinner) packet(gap time.Duration) (slept bool, looks int) {
	s.Looked(true, false)
	due := s.at.Add(gap)
	for s.Again() {
		s.at = s.at.Add(look)
		if !s.at.Before(due) {
			s.Looked(true, false)
			return false, looks
		}
		looks++
		s.Looked(false, false)
	}
	if due = due.Add(wake); s.at.Before(due) {
		s.at = due
	}
	s.Looked(true, true)
	return true, looks
}

func TestSpinCatchesAConversation(t *testing.T) {
	t.Parallel()
	s := newSpinner()
	if slept, looks := s.packet(20 * time.Microsecond); !slept || looks != spinLooks {
		t.Errorf("before it pays: slept %v after %d looks", slept, looks)
	}
	for range 1000 {
		if slept, _ := s.packet(20 * time.Microsecond); slept {
			t.Fatal("the worker sleeps while two ends talk")
		}
	}
	if elapsed := time.Duration(1000) * 20 * time.Microsecond; s.asked > int(elapsed/spareTime)+1 {
		t.Errorf("the machine was asked %d times in %v", s.asked, elapsed)
	}
}

func TestSpinDoesNotWaitForRarePackets(t *testing.T) {
	t.Parallel()
	s := newSpinner()
	s.packet(20 * time.Microsecond)
	if slept, looks := s.packet(time.Millisecond); !slept || time.Duration(looks)*look > 2*spinTime {
		t.Errorf("one look too long: slept %v after %d looks", slept, looks)
	}
	for range 100 {
		if slept, looks := s.packet(time.Millisecond); !slept || looks != spinLooks {
			t.Fatalf("slept %v after %d looks, though it never pays", slept, looks)
		}
	}
}

func TestSpinLeavesAFullMachineAlone(t *testing.T) {
	t.Parallel()
	s := newSpinner()
	s.room = false
	for range 100 {
		if slept, looks := s.packet(20 * time.Microsecond); !slept || looks != spinLooks {
			t.Fatalf("slept %v after %d looks, with nobody's processor", slept, looks)
		}
	}
	s.room = true // and it notices when there is room
	n := 0
	for slept := true; slept; n++ {
		if slept, _ = s.packet(20 * time.Microsecond); n > 100 {
			t.Fatal("it never spins again")
		}
	}
}

func TestCalmWithoutCompetition(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	go func() { // whose thread is its own
		defer close(done)
		runtime.LockOSThread()
		at := time.Unix(1000, 0)
		c := calm{delay: kernel.NewDelay(), now: func() time.Time { return at }}
		defer c.delay.Close()
		if c.spare() {
			t.Error("the first answer is a guess")
		}
		at = at.Add(1000 * time.Hour)
		if !c.spare() {
			t.Error("it cannot have waited for a tenth of so long")
		}
		c.waited -= time.Hour
		at = at.Add(time.Hour)
		if c.spare() {
			t.Error("it waited for an hour of an hour")
		}
	}()
	<-done
}
