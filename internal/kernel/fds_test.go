package kernel_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/kernel"
)

func lines(b []byte) []string {
	var out []string
	for l := range strings.Lines(string(b)) {
		out = append(out, strings.TrimSpace(l))
	}
	return out
}

// socketPair returns two ends of a unix socket of the given network.
func socketPair(t *testing.T, network string) (a, b *net.UnixConn) {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: network}
	ln, err := net.ListenUnix(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.DialUnix(network, nil, addr); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// sendFDs sends payload together with copies of the descriptors, as the plugin
// does.
func sendFDs(c *net.UnixConn, payload []byte, fds []int) error {
	_, _, err := c.WriteMsgUnix(payload, unix.UnixRights(fds...), nil)
	return err
}

func nonblocking(t *testing.T, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.O_NONBLOCK != 0
}

func TestFDsPassAndStayNonBlocking(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			a, b := socketPair(t, network)
			r, w := pipe(t)
			if err := sendFDs(a, []byte("two ends"), []int{r, w}); err != nil {
				t.Fatal(err)
			}
			// What File() and Fd() of an unlucky sender do to the shared
			// file description.
			if err := unix.SetNonblock(r, false); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			n, fds, err := kernel.RecvFDs(b, buf)
			if err != nil || string(buf[:n]) != "two ends" || len(fds) != 2 {
				t.Fatalf("got %q, %v, %v", buf[:n], fds, err)
			}
			defer kernel.CloseFDs(fds)
			for _, fd := range fds {
				if !nonblocking(t, fd) {
					t.Errorf("descriptor %d blocks", fd)
				}
				if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("descriptor %d survives exec", fd)
				}
			}
			if _, err := unix.Write(fds[1], []byte("x")); err != nil {
				t.Error(err)
			}
			if n, err := unix.Read(r, buf); n != 1 || err != nil {
				t.Errorf("not the same pipe: %d, %v", n, err)
			}
		})
	}
}

func TestFDMessagesHaveLimits(t *testing.T) {
	t.Parallel()
	a, b := socketPair(t, "unix")
	r, _ := pipe(t)
	many := func(n int) []int {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = r
		}
		return fds
	}
	for _, count := range []int{0, 1, kernel.MaxFDs} {
		if err := sendFDs(a, []byte("x"), many(count)); err != nil {
			t.Errorf("%d: %v", count, err)
		}
		n, fds, err := kernel.RecvFDs(b, make([]byte, 10))
		if n != 1 || len(fds) != count || err != nil {
			t.Errorf("%d: got %d, %d descriptors, %v", count, n, len(fds), err)
		}
		kernel.CloseFDs(fds)
	}
	a.Close()
	if _, _, err := kernel.RecvFDs(b, make([]byte, 10)); !errors.Is(err, io.EOF) {
		t.Errorf("sender gone: %v, want io.EOF", err)
	}
}

func TestTruncatedMessageLeaksNothing(t *testing.T) {
	t.Parallel()
	a, b := socketPair(t, "unixpacket")
	r, w := pipe(t)
	if err := sendFDs(a, []byte("longer than the buffer"), []int{w}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(w); err != nil {
		t.Fatal(err)
	}
	// pipe closes w once more at the end; keep its number taken until then.
	hole, err := unix.FcntlInt(uintptr(r), unix.F_DUPFD_CLOEXEC, w)
	if err != nil {
		t.Fatal(err)
	}
	if hole != w {
		defer unix.Close(hole)
	}
	if _, fds, err := kernel.RecvFDs(b, make([]byte, 4)); !errors.Is(err, kernel.ErrTruncated) || fds != nil {
		t.Errorf("got %v, %v, want ErrTruncated", fds, err)
	}
	if n, err := unix.Read(r, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the writing end is still open somewhere: %d, %v", n, err)
	}
}

func TestPeerUID(t *testing.T) {
	t.Parallel()
	a, b := socketPair(t, "unix")
	for _, c := range []*net.UnixConn{a, b} {
		if uid, err := kernel.PeerUID(c); err != nil || int(uid) != os.Geteuid() {
			t.Errorf("got %d, %v", uid, err)
		}
	}
	a.Close()
	if _, err := kernel.PeerUID(a); err == nil {
		t.Error("asked a closed socket")
	}
}

func TestCloseOfTheHeldDescriptorKeepsTheCopies(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home := newNS(t)
	tun := newTUN(t, home, kernel.TUNConfig{Name: "nctl%d"}) // not persistent
	dup, err := unix.FcntlInt(uintptr(tun.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := kernel.Describe(home, tun.Name()); err != nil {
		t.Errorf("device went although a holder has it: %v", err)
	}
	if err := unix.Close(dup); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := kernel.Describe(home, tun.Name())
		if errors.Is(err, kernel.ErrNotFound) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("device outlives its last holder: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}
