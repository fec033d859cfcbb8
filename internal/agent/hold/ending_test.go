package hold

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/cni"
)

func TestEndings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n, took = 7, time.Second
		var e Endings
		var now, most, ended atomic.Int32
		id := func(i int) cni.ID { return cni.ID{ContainerID: strconv.Itoa(i), IfName: "eth0"} }
		start := time.Now()
		for i := range n {
			e.Begin(id(i), uint64(100+i), func() {
				most.Store(max(most.Load(), now.Add(1)))
				time.Sleep(took)
				now.Add(-1)
				ended.Add(1)
			})
		}
		if err := e.Wait(t.Context(), id(n), 99); err != nil || time.Since(start) != 0 {
			t.Errorf("one that has nothing to do with them waits: %v, %v", time.Since(start), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), took/2)
		defer cancel()
		if err := e.Wait(ctx, id(0), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waited past its deadline: %v", err)
		}
		for _, same := range []struct {
			name  string
			id    cni.ID
			netns uint64
		}{{"attachment", id(n - 1), 0}, {"namespace", id(n), 100 + n - 2}} {
			if err := e.Wait(t.Context(), same.id, same.netns); err != nil {
				t.Error(err)
			}
			if e.find(same.id, same.netns) != nil {
				t.Errorf("one of the same %s did not wait", same.name)
			}
		}
		e.Close()
		if ended.Load() != n || most.Load() != endingsAtOnce || len(e.list) != 0 {
			t.Errorf("%d of %d ended, %d at once, %d left", ended.Load(), n, most.Load(), len(e.list))
		}
	})
}
