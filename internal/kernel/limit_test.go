package kernel_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/kernel"
)

// TestFileLimitIsTheHardOne: a service manager's soft limit is usually 1024.
func TestFileLimitIsTheHardOne(t *testing.T) {
	t.Parallel()
	if os.Getenv("KERNEL_TEST_FILE_LIMIT") != "" {
		if n, err := kernel.FileLimit(); n < 299 || n > 300 || err != nil {
			t.Errorf("limit %d, error %v; want 300 less the runtime's one", n, err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `ulimit -Sn 100 && ulimit -Hn 300 && exec "$0" -test.v -test.run "^TestFileLimitIsTheHardOne$"`, self)
	cmd.Env = append(os.Environ(), "KERNEL_TEST_FILE_LIMIT=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("child: %v\n%s", err, out)
	}
}

// TestOpenFilesCounts runs alone: other tests open files, too.
func TestOpenFilesCounts(t *testing.T) {
	count := func() int {
		n, err := kernel.OpenFiles()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if got := count(); got != before+2 {
		t.Errorf("%d open files with a pipe, want %d", got, before+2)
	}
	if err := errors.Join(r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != before {
		t.Errorf("%d open files without the pipe, want %d", got, before)
	}
}
