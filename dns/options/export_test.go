package options

import "time"

// SetClock makes f's clock stand still; the returned function advances it.
func SetClock(f *File) (later func()) {
	at := time.Now()
	f.now = func() time.Time { return at }
	return func() { at = at.Add(2 * checkEvery) }
}
