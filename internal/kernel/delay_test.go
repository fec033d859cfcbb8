package kernel

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDelayFollowsItsGoroutine(t *testing.T) {
	t.Parallel()
	d := NewDelay()
	defer d.Close()
	seen := map[int]bool{}
	for range 2 {
		done := make(chan struct{})
		go func() { // on a thread that ends with it
			defer close(done)
			runtime.LockOSThread()
			for range 2 {
				thread, waited, err := d.Waited()
				if err != nil || thread != unix.Gettid() || waited < 0 {
					t.Errorf("thread %d instead of %d waited %v (%v)", thread, unix.Gettid(), waited, err)
				}
				seen[thread] = true
			}
		}()
		<-done
	}
	if len(seen) != 2 {
		t.Errorf("threads %v, want two", seen)
	}
}

// Two threads that want one processor wait for each other.
func TestDelayGrowsWhereOthersRun(t *testing.T) {
	t.Parallel()
	var stop atomic.Bool
	pin := func() {
		runtime.LockOSThread() // and ends with the goroutine
		var one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &one); err != nil {
			t.Error(err)
			return
		}
		for cpu := range 1024 {
			if one.IsSet(cpu) {
				one.Zero()
				one.Set(cpu)
				break
			}
		}
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			t.Error(err)
		}
	}
	go func() {
		pin()
		for !stop.Load() {
		}
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pin()
		d := NewDelay()
		defer d.Close()
		_, first, err := d.Waited()
		for begin := time.Now(); err == nil && time.Since(begin) < 30*time.Second; {
			var now time.Duration
			if _, now, err = d.Waited(); now > first {
				return
			}
		}
		t.Errorf("it never waited (%v)", err)
	}()
	<-done
	stop.Store(true)
}

func TestParseWaited(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]time.Duration{
		"0 7818685 1\n":              7818685,
		"99 0 3\n":                   0,
		"":                           -1,
		"12\n":                       -1,
		"12 13\n":                    -1,
		"12 many 3\n":                -1,
		"1 99999999999999999999 3\n": -1,
	} {
		got, err := parseWaited([]byte(line))
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v (%v), want %v", line, got, err, want)
		}
	}
}

func TestDelayDoesNotAllocate(t *testing.T) { //nolint:paralleltest // counts allocations of the process
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	d := NewDelay()
	defer d.Close()
	if _, _, err := d.Waited(); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _, _ = d.Waited() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
