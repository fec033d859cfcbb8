package status

import (
	"context"
	"sync"
	"testing"
	"time"
)

// What is described is not looked at any more once Serve has returned: an agent lets
// go of it then. The race detector tells.
func TestNobodyAsksAfterwards(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 20 {
		thing := new(int)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error)
		began := make(chan struct{})
		var once sync.Once
		go func() {
			served <- Serve(ctx, dir, func() (Status, error) {
				once.Do(func() { close(began) })
				s := Status{Flows: *thing}
				time.Sleep(time.Millisecond) // as one that takes its time
				return Status{Flows: s.Flows + *thing}, nil
			})
		}()
		var askers sync.WaitGroup
		quit := make(chan struct{})
		for range 4 {
			askers.Go(func() {
				for {
					select {
					case <-quit:
						return
					default:
						_, _ = Read(t.Context(), dir) // nobody may be there
					}
				}
			})
		}
		<-began
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		*thing = 1
		thing = nil
		close(quit)
		askers.Wait()
	}
}
