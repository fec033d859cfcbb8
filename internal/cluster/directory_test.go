package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	d, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: dir, Rescan: time.Minute}) // events must do
	if err != nil {
		t.Fatal(err)
	}
	return start(t, d)
}

func start(t *testing.T, d *cluster.Directory) *source {
	t.Helper()
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

// namespaces returns the names of the State's namespaces.
func namespaces(st *model.State) string {
	var out []string
	for _, n := range st.Namespaces {
		out = append(out, n.Name)
	}
	return strings.Join(out, " ")
}

// have waits until the State has exactly these namespaces.
func (s *source) have(want string) *model.State {
	s.t.Helper()
	if s.last != nil && namespaces(s.last) == want {
		return s.last
	}
	return s.until("namespaces "+want, func(st *model.State) bool { return namespaces(st) == want })
}

// problems waits until the source reports exactly these.
func (s *source) problems(want ...string) {
	s.t.Helper()
	var got []string
	for range 1000 {
		got = nil
		for _, p := range s.d.Problems() {
			got = append(got, p.Error())
		}
		if slices.Equal(got, want) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Fatalf("problems are %q, want %q", got, want)
}

// ns is a manifest of namespaces.
func ns(names ...string) string {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", n)
	}
	return b.String()
}

func TestDirectoryFollowsFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "a.yaml", ns("one"))
	s := run(t, dir)
	first := s.have("one")
	if !first.Synced || first.Revision == 0 {
		t.Errorf("the first State: %+v", first)
	}
	write(t, dir, "b.yml", ns("three", "two"))
	s.have("one three two")
	if s.last.Namespace("one") != first.Namespace("one") {
		t.Error("an object that did not change has a new pointer")
	}
	write(t, dir, "a.yaml", ns("four"))
	s.have("four three two")
	write(t, dir, "c.json", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"five"}}`)
	s.have("five four three two")
	if err := os.Rename(filepath.Join(dir, "c.json"), filepath.Join(dir, "d.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "b.yml")); err != nil {
		t.Fatal(err)
	}
	s.have("five four")
	write(t, dir, "README.txt", ns("no"))
	write(t, dir, ".hidden.yaml", ns("no"))
	if err := os.Rename(filepath.Join(dir, "d.yaml"), filepath.Join(dir, "d.bak")); err != nil {
		t.Fatal(err)
	}
	s.have("four")
	write(t, dir, "a.yaml", "") // nothing at all is not broken
	s.have("")
	s.problems()
}

func TestDirectoryPublishesWithoutDelay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := run(t, dir)
	best := time.Hour
	for i := range 10 {
		start := time.Now()
		write(t, dir, "a.yaml", ns(fmt.Sprintf("x%d", i)))
		s.have(fmt.Sprintf("x%d", i))
		best = min(best, time.Since(start))
	}
	if best > 50*time.Millisecond {
		t.Errorf("the fastest of ten changes took %s", best)
	}
}

func TestDirectoryFollowsSubdirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := t.TempDir()
	mkdir := func(name string) {
		t.Helper()
		if err := os.MkdirAll(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(filepath.Join(dir, "old"))
	write(t, dir, "old/a.yaml", ns("a"))
	s := run(t, dir)
	s.have("a")
	mkdir(filepath.Join(dir, "new", "deep"))
	write(t, dir, "new/deep/b.yaml", ns("b"))
	s.have("a b")
	write(t, dir, "new/deep/b.yaml", ns("c"))
	s.have("a c")
	mkdir(filepath.Join(outside, "whole", "tree"))
	write(t, outside, "whole/tree/d.yaml", ns("d"))
	if err := os.Rename(filepath.Join(outside, "whole"), filepath.Join(dir, "whole")); err != nil {
		t.Fatal(err)
	}
	s.have("a c d")
	if err := os.Rename(filepath.Join(dir, "whole"), filepath.Join(dir, "renamed")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "renamed/tree/d.yaml", ns("e"))
	s.have("a c e")
	if err := os.RemoveAll(filepath.Join(dir, "new")); err != nil {
		t.Fatal(err)
	}
	s.have("a e")
	if err := os.Rename(filepath.Join(dir, "renamed"), filepath.Join(outside, "gone")); err != nil {
		t.Fatal(err)
	}
	s.have("a")
	mkdir(filepath.Join(dir, ".git"))
	write(t, dir, ".git/x.yaml", ns("no"))
	write(t, dir, "old/a.yaml", ns("z"))
	s.have("z")
}

func TestDirectoryKeepsWhatABrokenFileHad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "a.yaml", ns("one", "two", "three"))
	write(t, dir, "b.yaml", ns("other"))
	s := run(t, dir)
	s.have("one other three two")
	// two is broken, three is not there, one is as it was, four is new.
	write(t, dir, "a.yaml", ns("one")+"---\napiVersion: v1\nkind: Namespace\nmetadata:\n name: two\n  x: y\n"+ns("four"))
	s.have("four one other three two")
	s.problems("a.yaml:10: mapping values are not allowed in this context")
	write(t, dir, "b.yaml", ns("another")) // the rest lives on
	s.have("another four one three two")
	write(t, dir, "a.yaml", ns("one", "four"))
	s.have("another four one")
	s.problems()
	// A file that was never good has what is good in it.
	write(t, dir, "c.yaml", ns("five")+"---\nkind: oops\n")
	s.have("another five four one")
	s.problems("c.yaml:6: not a Kubernetes object: apiVersion or kind is missing")
	if err := os.Remove(filepath.Join(dir, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	s.have("another four one")
	s.problems()
}

func TestDirectoryReportsObjects(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "a.yaml", "# head\napiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 10.0.0.300}\n")
	write(t, dir, "b.yaml", "apiVersion: example.org/v1\nkind: Thing\nmetadata: {name: t}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"+ns("x"))
	s := run(t, dir)
	s.have("x")
	s.problems(`a.yaml:2: Service default/s: spec.clusterIPs: "10.0.0.300" is not an IP address`)
	if err := os.Symlink("/nowhere", filepath.Join(dir, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("dir.yaml", filepath.Join(dir, "e.yaml")); err != nil {
		t.Fatal(err)
	}
	s.problems(`a.yaml:2: Service default/s: spec.clusterIPs: "10.0.0.300" is not an IP address`, "e.yaml: cannot be read: not a regular file")
}

func TestDirectoryReportsDuplicates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pod := func(node string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: " + node + "}\n"
	}
	write(t, dir, "b.yaml", pod("n-b"))
	s := run(t, dir)
	node := func(want string) {
		t.Helper()
		if len(s.last.Pods) != 1 || s.last.Pods[0].Node != want {
			s.until("the pod on "+want, func(st *model.State) bool { return len(st.Pods) == 1 && st.Pods[0].Node == want })
		}
	}
	node("n-b")
	write(t, dir, "c.yaml", ns("x")+"---\n"+pod("n-c"))
	s.problems("c.yaml:6: Pod default/p is already defined at b.yaml:1; this one is ignored")
	node("n-b")
	write(t, dir, "a.yaml", pod("n-a")) // the first by name counts, whenever it came
	node("n-a")
	s.problems("b.yaml:1: Pod default/p is already defined at a.yaml:1; this one is ignored", "c.yaml:6: Pod default/p is already defined at a.yaml:1; this one is ignored")
	if err := errors.Join(os.Remove(filepath.Join(dir, "a.yaml")), os.Remove(filepath.Join(dir, "b.yaml"))); err != nil {
		t.Fatal(err)
	}
	node("n-c")
	s.problems()
}

func TestDirectoryFollowsSwappedLinks(t *testing.T) {
	t.Parallel()
	// What kubelet makes of a ConfigMap: x.yaml -> ..data/x.yaml, ..data -> ..1.
	dir := t.TempDir()
	for i, n := range []string{"one", "two"} {
		sub := fmt.Sprintf("..%d", i)
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, dir, sub+"/x.yaml", ns(n))
	}
	if err := errors.Join(os.Symlink("..0", filepath.Join(dir, "..data")), os.Symlink("..data/x.yaml", filepath.Join(dir, "x.yaml"))); err != nil {
		t.Fatal(err)
	}
	s := run(t, dir)
	s.have("one")
	if err := errors.Join(os.Symlink("..1", filepath.Join(dir, "..tmp")), os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data"))); err != nil {
		t.Fatal(err)
	}
	s.have("two")
}

func TestDirectoryOutlivesItsDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", ns("one"))
	d, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: dir, Rescan: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, d)
	s.have("one")
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	select {
	case st := <-s.states:
		t.Fatalf("a State without the directory: %s", namespaces(st))
	default:
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", ns("two"))
	s.have("two")
}

func TestDirectoryRefusesNoDirectory(t *testing.T) {
	t.Parallel()
	d, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context(), func(*model.State) { t.Error("a State") }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestDirectoryMergesNodePatches(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := run(t, dir)
	claim := cluster.NodeClaim{Node: "n1", PublicKey: "KEY=", Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("[2001:db8::1]:51820")}}
	if err := s.d.PublishNode(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	node := "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: ADDR}]}\n"
	write(t, dir, "nodes.yaml", strings.Replace(node, "ADDR", "192.0.2.1", 1))
	full := func(a string) *model.Node {
		t.Helper()
		return s.until("the node with its claim", func(st *model.State) bool {
			n := st.Node("n1")
			return n != nil && n.PublicKey == "KEY=" && slices.Equal(n.Endpoints, claim.Endpoints) && n.Addresses[0] == netip.MustParseAddr(a)
		}).Node("n1")
	}
	before := full("192.0.2.1")
	write(t, dir, "x.yaml", ns("x")) // something else
	if s.have("x").Node("n1") != before {
		t.Error("the merged node has a new pointer though nothing changed")
	}
	write(t, dir, "nodes.yaml", strings.Replace(node, "ADDR", "192.0.2.7", 1))
	full("192.0.2.7")
	if err := s.d.PublishNode(t.Context(), claim); err != nil { // again: nothing happens
		t.Fatal(err)
	}
	claim.PublicKey = "NEW="
	if err := s.d.PublishNode(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	s.until("the new key", func(st *model.State) bool { return st.Node("n1").PublicKey == "NEW=" })
	s.problems()
	if err := s.d.PublishNode(t.Context(), cluster.NodeClaim{Node: "../x"}); err == nil {
		t.Error("a path was taken for a node's name")
	}
}

// TestDirectoryAgainstReadingAnew writes, renames, breaks and removes files at
// random and compares the watched State with one read from scratch.
func TestDirectoryAgainstReadingAnew(t *testing.T) {
	t.Parallel()
	const seed = 11
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := run(t, dir)
	for round := range 12 {
		for range 20 {
			file := []string{"a.yaml", "b.yaml", "c.json", "sub/d.yaml", "sub/e.yml", "sub/f.txt"}[rng.IntN(6)]
			switch rng.IntN(4) {
			case 0:
				os.Remove(filepath.Join(dir, file))
			case 1:
				os.Rename(filepath.Join(dir, file), filepath.Join(dir, []string{"g.yaml", "sub/h.yaml", "h.bak"}[rng.IntN(3)]))
			default:
				var names []string
				for range rng.IntN(5) {
					names = append(names, fmt.Sprintf("n%d", rng.IntN(12)))
				}
				write(t, dir, file, ns(names...))
			}
		}
		want, _, err := cluster.Read(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("seed %d round %d: %s", seed, round, namespaces(want))
		s.have(namespaces(want))
	}
}
