package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

func TestBlocks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := run(t, dir)
	store := s.d.Blocks()
	a := model.Block{CIDR: netip.MustParsePrefix("10.1.2.0/24"), Node: "a"}
	six := model.Block{CIDR: netip.MustParsePrefix("fd00::/112"), Node: "a"}
	b := a
	b.Node = "b"
	ctx := t.Context()
	for _, x := range []model.Block{six, a} {
		if err := store.Create(ctx, x); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Create(ctx, b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a block that is taken: %v", err)
	}
	if err := store.Create(ctx, model.Block{CIDR: netip.MustParsePrefix("10.1.2.3/24"), Node: "a"}); err == nil || errors.Is(err, fs.ErrExist) {
		t.Errorf("a block that is none: %v", err)
	}
	want := []model.Block{a, six}
	got, err := store.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, comparers()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	s.until("two blocks", func(st *model.State) bool { return cmp.Equal(want, st.Blocks, comparers()) })
	if err := store.Delete(ctx, b); err == nil || !strings.Contains(err.Error(), "it belongs to node a now") {
		t.Errorf("another node's block: %v", err)
	}
	for range 2 {
		if err := store.Delete(ctx, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Create(ctx, b); err != nil {
		t.Fatal(err)
	}
	s.until("the block of b", func(st *model.State) bool { return len(st.Blocks) == 2 && st.Blocks[0] == b })
	s.problems()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".block-") {
			t.Errorf("%s was left behind", f.Name())
		}
	}
}

// TestBlocksHaveOneOwner lets many nodes claim and give up few blocks: whoever
// was told that it has a block must be alone with it.
func TestBlocksHaveOneOwner(t *testing.T) {
	t.Parallel()
	d, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 3
	var owners [blocks]atomic.Int32
	var claims atomic.Int32
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			store := d.Blocks()
			for i := range 30 {
				k := (n + i) % blocks
				b := model.Block{CIDR: netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", k)), Node: fmt.Sprintf("n%d", n)}
				err := store.Create(context.Background(), b)
				if errors.Is(err, fs.ErrExist) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				claims.Add(1)
				if owners[k].Add(1) != 1 {
					t.Errorf("block %d has two owners", k)
				}
				owners[k].Add(-1)
				if err := store.Delete(context.Background(), b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if claims.Load() < 10 {
		t.Errorf("only %d claims", claims.Load())
	}
}

func TestBlocksTakeADamagedFileForTaken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "block-10-0-0-0-24.yaml"), []byte("oops: ["), 0o644); err != nil {
		t.Fatal(err)
	}
	b := model.Block{CIDR: netip.MustParsePrefix("10.0.0.0/24"), Node: "a"}
	if err := d.Blocks().Create(t.Context(), b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create: %v", err)
	}
	if got, err := d.Blocks().List(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("list: %v, %v", got, err)
	}
	if err := d.Blocks().Delete(t.Context(), b); err == nil {
		t.Error("a block whose owner is unknown was deleted")
	}
}
