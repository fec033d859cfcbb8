package port

import (
	"errors"
	"fmt"
	"testing"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/overlay"
)

// failing is an engine whose Send fails.
type failing struct {
	overlay.Engine

	err error
}

func (e failing) Send([]byte) error { return e.err }

// The router counts drops under the reason that the engine has.
func TestEngineErrors(t *testing.T) {
	t.Parallel()
	other := errors.New("other")
	for _, c := range []struct{ of, want error }{
		{nil, nil},
		{overlay.ErrFull, datapath.ErrFull},
		{overlay.ErrNoPeer, datapath.ErrNoPeer},
		{overlay.ErrMalformed, datapath.ErrRefused},
		{overlay.ErrClosed, overlay.ErrClosed},
		{other, other},
	} {
		t.Run(fmt.Sprint(c.of), func(t *testing.T) {
			t.Parallel()
			if err := (Engine{Engine: failing{err: c.of}}).Write(nil); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}
