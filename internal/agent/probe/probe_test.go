package probe_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/agent/probe"
)

func TestProbe(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pod", "probe.sock")
	if err := probe.Ask(t.Context(), path, probe.Live); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("without an agent: %v", err)
	}
	for range 2 { // the second one finds the first one's socket
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- probe.Serve(ctx, path, probe.Subject{
				Live:  func() error { return nil },
				Ready: func() error { return errors.New("no tables yet") },
			})
		}()
		for probe.Ask(t.Context(), path, probe.Live) != nil {
			select {
			case err := <-done:
				t.Fatal(err)
			default:
			}
		}
		if err := probe.Ask(t.Context(), path, probe.Ready); err == nil || err.Error() != "not ready: no tables yet" {
			t.Errorf("ready: %v", err)
		}
		if err := probe.Ask(t.Context(), path, "nonsense"); err == nil {
			t.Error("a question that does not exist was answered with yes")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
