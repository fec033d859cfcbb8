package cluster_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// source runs a Directory on dir and delivers its States.
type source struct {
	t      *testing.T
	d      *cluster.Directory
	states chan *model.State
	last   *model.State
}

func run(t *testing.T, dir string) *source {
	t.Helper()
	d, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: dir, Rescan: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	s := &source{t: t, d: d, states: make(chan *model.State, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, func(st *model.State) { s.states <- st }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	s.until("first state", func(*model.State) bool { return true })
	return s
}

// until waits for a State that satisfies ok.
func (s *source) until(what string, ok func(*model.State) bool) *model.State {
	s.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case st := <-s.states:
			if s.last != nil && st.Revision <= s.last.Revision {
				s.t.Fatalf("revision %d after %d", st.Revision, s.last.Revision)
			}
			s.last = st
			if ok(st) {
				return st
			}
		case <-deadline:
			s.t.Fatalf("no State with %s; problems: %v", what, s.d.Problems())
		}
	}
}

// write replaces a file atomically.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	tmp := filepath.Join(filepath.Dir(path), ".tmp-"+filepath.Base(path))
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

const podText = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec: {nodeName: n1}\n"

func TestDirectoryFollowsAtomicUpdates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := run(t, dir)
	write(t, dir, "a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: one}\n")
	s.until("namespace one", func(st *model.State) bool { return st.Namespace("one") != nil })
}
