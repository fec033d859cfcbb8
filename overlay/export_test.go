package overlay

import "time"

// Age makes the engine believe that d has passed. Timers do not know.
func (w *WireGuard) Age(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate.Lock()
	defer w.gate.Unlock()
	w.clock.boot += int64(d)
}

// Load puts the engine under load for a while.
func (w *WireGuard) Load(d time.Duration) {
	w.gate.Lock()
	defer w.gate.Unlock()
	w.loaded.Store(w.clock.now() + int64(d))
}

// Loaded reports whether the engine is under load.
func (w *WireGuard) Loaded() bool { return w.clock.now() < w.loaded.Load() }

// SlotsInUse counts the slots that are given out, and sessions that can be found.
func (w *WireGuard) SlotsInUse() (slots, found, flying int) {
	for i := range w.table {
		if w.table[i].Load() != nil {
			found++
		}
	}
	w.inmu.Lock()
	defer w.inmu.Unlock()
	return w.store.InUse(), found, len(w.flying)
}

// Fill takes all slots, until release.
func (w *WireGuard) Fill() (release func()) {
	var taken []int
	for {
		i, err := w.store.Alloc()
		if err != nil {
			return func() {
				for _, i := range taken {
					w.store.Free(i)
				}
			}
		}
		taken = append(taken, i)
	}
}

// Held returns the bytes that wait for handshakes.
func (w *WireGuard) Held() int64 { return w.held.Load() }

// Secret returns the bytes of a private key.
func (p PrivateKey) Secret() [32]byte { return p.secret }

// Interrupt ends reading alone.
func (w *WireGuard) Interrupt() {
	w.wire.Interrupt()
	w.readers.Wait()
	_ = w.store.Unlock()
}

// Kill ends the engine as SIGKILL does: nothing is written any more, and nothing
// is given back.
func (w *WireGuard) Kill() {
	w.gate.Lock()
	w.running.Store(false)
	w.gate.Unlock()
	w.wire.Interrupt()
	w.readers.Wait() // only so that nobody reads in memory that tests share
	_ = w.store.Unlock()
}
