package cost_test

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/netctl/netctl/test/bench/cost"
)

// TestClockCountsWork: what this process does is counted, as soon as the kernel has
// charged it.
func TestClockCountsWork(t *testing.T) {
	t.Parallel()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	me := cost.Processes{os.Getpid()}
	before, err := me.Read()
	if err != nil || len(before) == 0 {
		t.Fatalf("%v, %v", before, err)
	}
	for spent := 0.0; spent < 0.01; {
		now, err := me.Read()
		if err != nil {
			t.Fatal(err)
		}
		spent = now.Since(before)
	}
}

func TestClockOfTheDead(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "true")
	if err := cmd.Run(); err != nil {
		t.Skip(err)
	}
	c, err := cost.Processes{cmd.Process.Pid}.Read()
	if err != nil || c.Since(cost.Clock{}) != 0 {
		t.Errorf("%v, %v", c, err)
	}
}

func TestKernelThreadsAreFound(t *testing.T) {
	t.Parallel()
	found, err := cost.SoftirqThreads()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range found {
		if _, err := (cost.Processes{pid}).Read(); err != nil {
			t.Error(err)
		}
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	m, err := cost.Memory(os.Getpid())
	if err != nil || m["VmRSS"] < 1 || m["VmRSS"] < m["RssAnon"] {
		t.Errorf("%v, %v", m, err)
	}
}
