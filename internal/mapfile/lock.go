package mapfile

import (
	"crypto/rand"
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	// seats is how many processes may have a file open and their death noticed.
	// Two do during a handover, three when one of them has died and the next has
	// come.
	seats = 15
	// seatBytes is where the seats' bytes begin: far behind any file's end.
	seatBytes = 1 << 50

	seatShift = 56
	// noTicket is the ticket of a process without a seat, whose death nobody can
	// see: there was no seat left, or the kernel has no such locks.
	noTicket = 1

	// spinFor is how many turns Lock waits at full speed: a lock is held for less
	// than a microsecond by who has a processor.
	spinFor = 1 << 10
	nap     = 100 * time.Microsecond
	// blindNaps is for how many naps, a second and more, a holder without a seat is
	// believed to live.
	blindNaps = 10_000
)

// sit takes a free seat.
func (f *File) sit() error {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	for i := range uint64(seats) {
		free, err := takeSeat(f.file, seatBytes+int64(i)) // at most seats
		if err != nil {
			return nil //nolint:nilerr // a kernel without these locks: we do without a seat
		}
		if !free {
			continue
		}
		f.ticket = (i+1)<<seatShift | binary.NativeEndian.Uint64(b[:])>>(64-seatShift) | 1
		// Whoever sat here left without a word, since the ticket is still there.
		if f.words[headSeats+i].Swap(f.ticket) != 0 {
			f.died.Store(true)
		}
		return nil
	}
	return nil
}

// stand gives the seat up.
func (f *File) stand() {
	if i := f.ticket >> seatShift; i > 0 {
		f.words[headSeats+i-1].CompareAndSwap(f.ticket, 0)
	}
	f.ticket = noTicket
}

// Lock takes the lock that lies in w, one of the file's words. It keeps
// processes apart, not the goroutines of one: they need a mutex of their own
// around it.
func (f *File) Lock(w *atomic.Uint64) {
	if !w.CompareAndSwap(0, f.ticket) {
		f.wait(w)
	}
}

// Unlock gives the lock in w back.
func (f *File) Unlock(w *atomic.Uint64) { w.Store(0) }

// wait takes the lock when its holder gives it up or is found dead.
func (f *File) wait(w *atomic.Uint64) {
	for turn := 0; !w.CompareAndSwap(0, f.ticket); turn++ {
		if turn < spinFor {
			runtime.Gosched()
			continue
		}
		holder := w.Load()
		if holder != 0 && f.dead(holder, turn-spinFor) && w.CompareAndSwap(holder, f.ticket) {
			f.died.Store(true)
			return
		}
		time.Sleep(nap) //nolint:forbidigo // the dead tell nobody
	}
}

// dead reports whether the process with a ticket has ended; naps is how often
// the caller has waited for it.
func (f *File) dead(ticket uint64, naps int) bool {
	i := ticket >> seatShift
	switch {
	case i == 0 || i > seats:
		return naps >= blindNaps
	case f.words[headSeats+i-1].Load() != ticket:
		return true // the seat is another's by now
	case ticket == f.ticket:
		return false
	}
	free, err := seatFree(f.file, seatBytes+int64(i)-1) // at most seats
	return err == nil && free
}

// Shared reports whether another process that lives is seen to have the file open.
func (f *File) Shared() bool {
	if f.file == nil {
		return false
	}
	for i := range seats {
		t := f.words[headSeats+i].Load()
		if t == 0 || t == f.ticket {
			continue
		}
		if free, err := seatFree(f.file, seatBytes+int64(i)); err == nil && !free {
			return true
		}
	}
	return false
}

// Died reports, once, that a process which had the file open has ended without
// Close since the last call: what it was writing is half-written.
func (f *File) Died() bool {
	if f.file == nil {
		return false
	}
	for i := range seats {
		w := &f.words[headSeats+i]
		t := w.Load()
		if t == 0 || t == f.ticket {
			continue
		}
		free, err := seatFree(f.file, seatBytes+int64(i))
		if err == nil && free && w.CompareAndSwap(t, 0) {
			f.died.Store(true)
		}
	}
	return f.died.Swap(false)
}
