package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestZombieOfAnyName: a process may be called whatever a file may.
func TestZombieOfAnyName(t *testing.T) {
	t.Parallel()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("needs sleep")
	}
	path := filepath.Join(t.TempDir(), "a) S (b")
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, program, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: path, Args: []string{"sleep", "60"}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	pid := cmd.Process.Pid
	if started := startTime(pid); zombie(pid) || started == "gone" {
		t.Errorf("alive: zombie %t, started %s", zombie(pid), started)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for !zombie(pid) { // until Wait
		if time.Now().After(deadline) {
			t.Fatal("a dead process is not seen to be one")
		}
		time.Sleep(time.Millisecond)
	}
}
