package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/cni/queue"
	"github.com/netctl/netctl/cni/wire"
)

func TestKilledAddLeavesNothing(t *testing.T) {
	t.Parallel()
	ns := netns(t)
	t.Run("while it works", func(t *testing.T) {
		t.Parallel()
		n := newNode(t)
		n.start(true)
		begun, ended := make(chan struct{}), make(chan error, 1)
		n.agent.onAdd = func(ctx context.Context, _ cni.Attachment) error {
			close(begun)
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}
		kill(t, n, ns, begun)
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the work ended with %v, want a cancellation", err)
		}
		eventually(t, "no port", func() bool { return n.agent.len() == 0 })
	})
	t.Run("after the port was made", func(t *testing.T) {
		t.Parallel()
		n := newNode(t)
		n.start(true)
		begun := make(chan struct{})
		n.agent.afterAdd = func(ctx context.Context) { close(begun); <-ctx.Done() }
		kill(t, n, ns, begun)
		eventually(t, "undone", func() bool { return n.agent.deleted() == 1 && n.agent.len() == 0 })
	})
	t.Run("undo fails", func(t *testing.T) {
		t.Parallel()
		n := newNode(t)
		n.start(true)
		begun := make(chan struct{})
		n.agent.afterAdd = func(ctx context.Context) { close(begun); <-ctx.Done() }
		n.agent.onDel = func(context.Context, cni.ID) error { return errors.New("not now") }
		kill(t, n, ns, begun)
		eventually(t, "queued", func() bool {
			return queue.Beside(n.socket).Has(queue.Entry{ContainerID: "pod1", IfName: "eth0"})
		})
	})
}

func kill(t *testing.T, n *node, ns string, begun <-chan struct{}) {
	t.Helper()
	cmd := n.command("ADD", n.config("1.1.0", ""), attach("pod1", ns)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-begun
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

// TestLostReply speaks the protocol by hand: a plugin that dies between the
// reply and its acknowledgement.
func TestLostReply(t *testing.T) {
	t.Parallel()
	ns := netns(t)
	for _, c := range []struct {
		name string
		end  func(*net.UnixConn)
		want int // ports
	}{
		{"closed without reading", func(*net.UnixConn) {}, 0},
		{"closed after reading", func(c *net.UnixConn) { _, _ = wire.ReadFrame(c) }, 0},
		{"wrong byte", func(c *net.UnixConn) { _, _ = wire.ReadFrame(c); _, _ = c.Write([]byte{1}) }, 0},
		{"acknowledged", func(c *net.UnixConn) { _, _ = wire.ReadFrame(c); _, _ = c.Write([]byte{wire.Ack}) }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			_, stop := n.start(true)
			conn := n.dial()
			frame := n.addFrame(ns)
			f, err := os.Open(ns)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.WriteMsgUnix(frame, unix.UnixRights(int(f.Fd())), nil); err != nil {
				t.Fatal(err)
			}
			_ = f.Close()
			made := func() bool { return n.agent.len() == 1 || n.agent.deleted() == 1 }
			eventually(t, "port", made)
			c.end(conn)
			_ = conn.Close()
			stop() // waits for every session
			if got := n.agent.len(); got != c.want {
				t.Errorf("got %d ports, want %d", got, c.want)
			}
		})
	}
}

func (n *node) dial() *net.UnixConn {
	n.t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: n.socket, Net: "unix"})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (n *node) addFrame(ns string) []byte {
	n.t.Helper()
	frame, err := wire.Frame(&wire.Request{
		Version: 1, Command: "ADD", ContainerID: "pod1", IfName: "eth0", Netns: ns, BudgetMS: 5000,
		Config: json.RawMessage(n.config("1.1.0", "")),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return frame
}

func TestRequestInPiecesAndRubbish(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	frame, err := wire.Frame(&wire.Request{Version: 1, Command: "STATUS", Config: json.RawMessage(n.config("1.1.0", ""))})
	if err != nil {
		t.Fatal(err)
	}
	conn := n.dial()
	for _, b := range frame {
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	body, err := wire.ReadFrame(conn)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := wire.DecodeResponse(body); err != nil || r.Exit != 0 {
		t.Errorf("in pieces: %s %v", body, err)
	}
	future, err := wire.Frame(&wire.Request{Version: 99, Command: "STATUS"})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"too long":       {0xff, 0xff, 0xff, 0xff},
		"no JSON":        {0, 0, 0, 2, '{', '{'},
		"future version": future,
	} {
		conn := n.dial()
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		body, err := wire.ReadFrame(conn)
		if err != nil {
			t.Errorf("%s: no answer: %v", name, err)
			continue
		}
		if r, err := wire.DecodeResponse(body); err != nil || r.Exit != 1 {
			t.Errorf("%s: got %s %v, want an error", name, body, err)
		}
	}
}

// TestForeignDescriptorsAreClosed sends more descriptors than one, many times:
// none may stay open in the agent.
func TestForeignDescriptorsAreClosed(t *testing.T) {
	n := newNode(t)
	_, stop := n.start(true)
	fds := func() int {
		l, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }()
	before := fds()
	for range 20 {
		conn := n.dial()
		frame := n.addFrame("/x")
		if _, _, err := conn.WriteMsgUnix(frame, unix.UnixRights(int(r.Fd()), int(w.Fd()), int(r.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := wire.ReadFrame(conn); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	stop()
	if after := fds(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
