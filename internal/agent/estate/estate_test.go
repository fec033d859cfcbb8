package estate

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/holder"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

// hold starts a holder at a path and returns how to end it.
func hold(t *testing.T, path string) (*holder.Holder, func()) {
	t.Helper()
	h := holder.New(holder.Config{})
	l, err := holder.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.Serve(ctx, l) }()
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		h.Close()
	}
	t.Cleanup(end)
	return h, end
}

func pipes(t *testing.T, names ...string) Estate {
	t.Helper()
	e := Estate{}
	for _, name := range names {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fd, err := kernel.DupOf(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = r.Close(), w.Close()
		e[name] = []int{fd}
	}
	t.Cleanup(e.Close)
	return e
}

func lend(e Estate) func() (Estate, func()) { return func() (Estate, func()) { return e, func() {} } }

func custodian(t *testing.T, path string) *Custodian {
	t.Helper()
	c, err := NewCustodian(path, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func names(h *holder.Holder) int {
	n, _ := h.Held()
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// A holder that is started anew is given everything again.
func TestHolderIsReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), HoldersDir, "a.sock")
	first, end := hold(t, path)
	c := custodian(t, path)
	all := pipes(t, "a", "b")
	c.Own(lend(all))
	if names(first) != 2 {
		t.Fatalf("%d names are held", names(first))
	}
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error)
	go func() {
		kept <- c.Keep(ctx, func() (Estate, func()) { return all, func() {} }, func() error { return nil })
	}()
	end()
	c.Put("c", all["a"]...) // to nobody
	second, _ := hold(t, path)
	eventually(t, "the second holder was given nothing", func() bool { return names(second) == 2 })
	c.Put("c", all["a"]...)
	c.Drop("a")
	eventually(t, "a change was not told", func() bool { return names(second) == 2 })
	cancel()
	if err := <-kept; err != nil {
		t.Error(err)
	}
	c.Goodbye()
	if names(second) != 0 {
		t.Errorf("%d names are held after all", names(second))
	}
}

// Between the predecessor's goodbye and the moment in which the successor has given
// everything, the successor is the owner, and the copies are still there.
func TestClaim(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), HoldersDir, "a.sock")
	h, _ := hold(t, path)
	old, heir := custodian(t, path), custodian(t, path)
	old.Own(lend(pipes(t, "a", "b")))
	heir.Claim()
	old.Goodbye()
	if names(h) != 2 || !h.Owned() {
		t.Errorf("%d names are held, there is an owner: %t", names(h), h.Owned())
	}
	heir.Own(lend(pipes(t, "b")))
	if names(h) != 1 {
		t.Errorf("%d names are held", names(h))
	}
	heir.Goodbye()
	if names(h) != 0 || h.Owned() {
		t.Error("it is still the owner")
	}
}

// What is given is found out when nobody can put or drop: what ends meanwhile is
// dropped after it, not before.
func TestNothingIsDroppedBeforeItIsGiven(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), HoldersDir, "a.sock")
	h, _ := hold(t, path)
	c := custodian(t, path)
	all := pipes(t, "a", "b")
	dropped := make(chan struct{})
	c.Own(func() (Estate, func()) {
		go func() {
			c.Drop("a")
			close(dropped)
		}()
		time.Sleep(20 * time.Millisecond)
		return all, func() {}
	})
	<-dropped
	if names(h) != 1 {
		t.Errorf("%d names are held", names(h))
	}
}

// Who takes the node over without the one before finds what that one's holder has,
// and relieves it.
func TestFoundAtOtherHolders(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), HoldersDir)
	if Watched(dir) {
		t.Error("nobody watches")
	}
	own, _ := hold(t, filepath.Join(dir, "own.sock"))
	if !Watched(dir) {
		t.Error("a holder watches")
	}
	other, _ := hold(t, filepath.Join(dir, "other.sock"))
	dead, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "dead.sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "dead.sock"), long, long); err != nil {
		t.Fatal(err)
	}
	before := custodian(t, filepath.Join(dir, "other.sock"))
	before.Own(lend(pipes(t, "x", "y")))
	mine := custodian(t, filepath.Join(dir, "own.sock"))
	mine.Own(lend(pipes(t, "y", "z")))
	found, relieve := mine.Found(t.Context(), dir)
	if len(found) != 3 {
		t.Errorf("found %s", found)
	}
	found.Close()
	relieve()
	if names(other) != 0 || names(own) != 2 {
		t.Errorf("the other has %d, the own %d", names(other), names(own))
	}
	if _, err := os.Lstat(filepath.Join(dir, "dead.sock")); err == nil {
		t.Error("a dead holder's socket stays")
	}
}

// However its path is written, the own holder is no other one: what it has must stay.
func TestOwnHolderByAnotherPath(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := filepath.Join(base, HoldersDir)
	h, _ := hold(t, filepath.Join(dir, "own.sock"))
	if err := os.Symlink(base, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{base + "//" + HoldersDir + "/own.sock", filepath.Join(base, "link", HoldersDir, "own.sock")} {
		c := custodian(t, path)
		c.Own(lend(pipes(t, "a")))
		found, relieve := c.Found(t.Context(), dir)
		found.Close()
		relieve()
		if names(h) != 1 || !h.Owned() {
			t.Errorf("by %s: %d names", path, names(h))
		}
		c.Goodbye()
	}
}

// What an agent cannot get its copies of it can have closed, at its own holder and at
// others.
func TestFree(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), HoldersDir)
	own, _ := hold(t, filepath.Join(dir, "own.sock"))
	other, _ := hold(t, filepath.Join(dir, "other.sock"))
	custodian(t, filepath.Join(dir, "own.sock")).Own(lend(pipes(t, "a")))
	custodian(t, filepath.Join(dir, "other.sock")).Own(lend(pipes(t, "b")))
	c := custodian(t, filepath.Join(dir, "own.sock"))
	c.Free(t.Context(), dir)
	if names(own)+names(other) != 0 {
		t.Errorf("%d and %d names are held", names(own), names(other))
	}
	c.Own(lend(pipes(t, "a")))
	if names(own) != 1 || !own.Owned() {
		t.Error("the own holder is of no use after that")
	}
}

func TestWithoutAHolder(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", filepath.Join(t.TempDir(), "none.sock")} {
		c := custodian(t, path)
		all := pipes(t, "a")
		c.Own(lend(all))
		c.Put("b", all["a"]...)
		c.Drop("a")
		if found, relieve := c.Found(t.Context(), filepath.Join(t.TempDir(), "none")); len(found) > 0 {
			t.Errorf("found %s", found)
		} else {
			relieve()
		}
		c.Goodbye()
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	at := netip.MustParseAddrPort("[2001:db8::1]:30080")
	e := pipes(t, Listener(at, model.UDP), "listen/x/y", "listen/17/nowhere", Pod(cni.ID{ContainerID: "c", IfName: "eth0"}))
	n := 0
	e.Listeners(func(got netip.AddrPort, proto model.Protocol, fd int) {
		n++
		if got != at || proto != model.UDP {
			t.Errorf("%s, %s", got, proto)
		}
		kernel.CloseFDs([]int{fd})
	})
	if n != 1 || len(e) != 3 || !IsListener(Listener(at, model.TCP)) || IsListener(HostTUN) {
		t.Errorf("%d listeners, %s left", n, e)
	}
	e["two"] = pipes(t, "a")["a"]
	if fd, ok := e.TakeOne("two"); !ok {
		t.Error("not taken")
	} else {
		kernel.CloseFDs([]int{fd})
	}
	if _, ok := e.TakeOne("two"); ok {
		t.Error("taken twice")
	}
}
