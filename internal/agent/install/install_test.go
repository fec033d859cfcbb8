package install_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/install"
)

// What somebody removes comes back, what is in the way is named once, and nothing
// happens before additions are served.
func TestKeeper(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in := cni.Installation{
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"),
		Binary: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("program")), nil },
	}
	conflist := filepath.Join(in.ConfDir, cni.DefaultConfName)
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		k := install.NewKeeper(in, slog.New(slog.NewTextHandler(&text, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		serving, done := make(chan struct{}), make(chan error)
		go func() { done <- k.Run(ctx, serving) }()
		time.Sleep(time.Hour)
		if _, err := os.Stat(conflist); err == nil || k.Err() == nil {
			t.Errorf("before anybody serves: %v, %v", err, k.Err())
		}
		close(serving)
		synctest.Wait()
		if _, err := os.Stat(conflist); err != nil || k.Err() != nil {
			t.Errorf("when additions are served: %v, %v", err, k.Err())
		}
		if err := os.WriteFile(filepath.Join(in.ConfDir, "00-other.conf"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(conflist); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if _, err := os.Stat(conflist); err != nil {
			t.Errorf("what was removed: %v", err)
		}
		if got := k.Before(); !slices.Equal(got, []string{"00-other.conf"}) {
			t.Errorf("in the way: %v", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := strings.Count(text.String(), "00-other.conf"); n != 1 {
			t.Errorf("said %d times what is in the way: %s", n, text.String())
		}
	})
	if _, err := os.Stat(conflist); err != nil {
		t.Errorf("after the agent: %v", err)
	}
}

func TestKeeperSaysWhyNot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k := install.NewKeeper(cni.Installation{BinDir: filepath.Join(file, "bin"), ConfDir: dir}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	serving, done := make(chan struct{}), make(chan error)
	close(serving)
	go func() { done <- k.Run(ctx, serving) }()
	for k.Err() == nil || !strings.Contains(k.Err().Error(), file) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
