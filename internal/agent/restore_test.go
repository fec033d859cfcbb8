package agent

import (
	"errors"
	"testing"

	"github.com/netctl/netctl/internal/kernel"
)

// A device that is busy is taken from the holders, once, and only by an agent that
// nobody hands over to.
func TestBusyDeviceIsFreed(t *testing.T) {
	t.Parallel()
	for _, alone := range []bool{true, false} {
		a, freed, tries := new(Agent), 0, 0
		if alone {
			a.free = func() {
				freed++
				a.free = nil
			}
		}
		open := func() (*kernel.TUN, error) {
			if tries++; freed == 0 || tries < 4 {
				return nil, kernel.ErrBusy
			}
			return new(kernel.TUN), nil
		}
		t1, err := unlessBusy(a, open)
		switch {
		case alone && (err != nil || t1 == nil || freed != 1):
			t.Errorf("%v, %v, freed %d times", t1, err, freed)
		case !alone && (!errors.Is(err, kernel.ErrBusy) || tries != 1):
			t.Errorf("%v, %v after %d tries", t1, err, tries)
		}
	}
}
