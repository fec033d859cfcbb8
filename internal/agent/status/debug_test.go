package status_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/agent/status"
)

// serve runs a status socket until the test ends and returns its directory.
func serve(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "st") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- status.Serve(ctx, dir, func() (status.Status, error) {
			return status.Status{Node: "n", Process: status.Process{Memory: status.ReadMemory()}}, nil
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for {
		if _, err := status.Read(t.Context(), dir); err == nil {
			return dir
		}
		select {
		case err := <-done:
			t.Fatal(err)
		default:
			runtime.Gosched()
		}
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	dir := serve(t)
	for _, name := range []string{"heap", "goroutine", "allocs"} {
		var b bytes.Buffer
		if err := status.Profile(t.Context(), &b, dir, name, 0); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		z, err := gzip.NewReader(&b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if data, err := io.ReadAll(z); err != nil || len(data) == 0 {
			t.Errorf("%s: %d bytes, %v", name, len(data), err)
		}
	}
	err := status.Profile(t.Context(), io.Discard, dir, "../status", 0)
	if !errors.Is(err, status.ErrNoProfile) {
		t.Errorf("what is no profile: %v", err)
	}
	err = status.Profile(t.Context(), io.Discard, filepath.Join(dir, "nobody"), "heap", 0)
	if err == nil || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestSocketIsItsUsersOwn(t *testing.T) {
	t.Parallel()
	info, err := os.Stat(filepath.Join(serve(t), "status.sock"))
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	runtime.GC()
	m := status.ReadMemory()
	if m.Resident < m.Heap || m.Heap == 0 || m.Collections == 0 {
		t.Errorf("memory %+v", m)
	}
}
