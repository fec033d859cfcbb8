package queue_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/cni/queue"
	"github.com/netctl/netctl/cni/wire"
)

func soon() time.Time { return time.Now().Add(5 * time.Second) }

func TestPushListRemove(t *testing.T) {
	t.Parallel()
	q := queue.Beside(filepath.Join(t.TempDir(), "none", "cni.sock"))
	if got, err := q.List(); err != nil || got != nil {
		t.Errorf("unused queue: %v %v", got, err)
	}
	long := strings.Repeat("a", wire.MaxContainerID)
	want := []queue.Entry{{ContainerID: "a", IfName: "eth0"}, {ContainerID: "a", IfName: "net,1"}, {ContainerID: long, IfName: strings.Repeat("e", 15)}}
	for range 2 {
		for _, e := range want {
			if err := q.Push(e, soon()); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := q.List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("list (-got +want):\n%s", diff)
	}
	for range 2 {
		if err := q.Remove(want[1]); err != nil {
			t.Error(err)
		}
	}
	if q.Has(want[1]) || !q.Has(want[0]) {
		t.Error("the wrong record was removed")
	}
	info, err := os.Stat(q.Dir())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info, err)
	}
}

func TestInvalidNamesNeverReachTheDisk(t *testing.T) {
	t.Parallel()
	q := queue.Beside(filepath.Join(t.TempDir(), "cni.sock"))
	for _, e := range []queue.Entry{{}, {ContainerID: "../x", IfName: "eth0"}, {ContainerID: "a", IfName: "../x"}, {ContainerID: "a"}} {
		if err := q.Push(e, soon()); err == nil {
			t.Errorf("push %+v passed", e)
		}
		if q.Has(e) {
			t.Errorf("has %+v", e)
		}
		if err := q.Remove(e); err == nil {
			t.Errorf("remove %+v passed", e)
		}
	}
}

func TestForeignFilesArePassedOver(t *testing.T) {
	t.Parallel()
	q := queue.Beside(filepath.Join(t.TempDir(), "cni.sock"))
	e := queue.Entry{ContainerID: "a", IfName: "eth0"}
	if err := q.Push(e, soon()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README", "a,", ",eth0", "-x,eth0", ".a,eth0", "a,eth%d"} {
		if err := os.WriteFile(filepath.Join(q.Dir(), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := q.List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, []queue.Entry{e}); diff != "" {
		t.Errorf("list (-got +want):\n%s", diff)
	}
}

// TestBoundHoldsInParallel pushes more than fits from many writers at once.
func TestBoundHoldsInParallel(t *testing.T) {
	t.Parallel()
	q := queue.Beside(filepath.Join(t.TempDir(), "cni.sock"))
	const writers, each = 8, 40 // 320 in all
	var wg sync.WaitGroup
	var mu sync.Mutex
	full := 0
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				err := q.Push(queue.Entry{ContainerID: fmt.Sprintf("c%d-%d", w, i), IfName: "eth0"}, time.Now().Add(time.Minute))
				if errors.Is(err, queue.ErrFull) {
					mu.Lock()
					full++
					mu.Unlock()
				} else if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	entries, err := q.List()
	if err != nil || len(entries) != queue.Max {
		t.Errorf("got %d records %v, want %d", len(entries), err, queue.Max)
	}
	if want := writers*each - queue.Max; full != want {
		t.Errorf("got %d refusals, want %d", full, want)
	}
	for _, want := range []int64{int64(full), 0} {
		if lost, err := q.TakeLost(); err != nil || lost != want {
			t.Errorf("lost: got %d %v, want %d", lost, err, want)
		}
	}
}

func TestLockIsWaitedForUntilTheDeadline(t *testing.T) {
	t.Parallel()
	q := queue.Beside(filepath.Join(t.TempDir(), "cni.sock"))
	e := queue.Entry{ContainerID: "a", IfName: "eth0"}
	if err := q.Push(e, soon()); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(q.Dir(), ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	e.ContainerID = "b"
	if err := q.Push(e, time.Now().Add(20*time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	done := make(chan error, 1)
	go func() { done <- q.Push(e, soon()) }()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("after the lock is free: %v", err)
	}
}
