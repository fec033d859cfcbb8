package netstack_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

// bulk is enough to go through slow start and several windows.
const bulk = 8 << 20

func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestTCPBulkBothWays(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			up, down := pattern(bulk), pattern(bulk + 1)[1:]
			got := make(chan [32]byte, 1)
			port := listen(t, f, func(c *net.TCPConn) {
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					_, _ = c.Write(down)
					_ = c.CloseWrite()
				}()
				h := sha256.New()
				_, _ = io.Copy(h, c)
				got <- [32]byte(h.Sum(nil))
				<-sent
			})
			n := start(t, nil)
			c := n.mustDial(t, f, port)
			go func() {
				_, _ = c.Write(up)
				_ = c.CloseWrite()
			}()
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				t.Fatal(err)
			}
			if [32]byte(h.Sum(nil)) != sha256.Sum256(down) {
				t.Error("what came down is not what was sent")
			}
			if <-got != sha256.Sum256(up) {
				t.Error("what went up is not what was sent")
			}
			if st := n.stack.Stats(); st.BytesUp != bulk || st.BytesDown != bulk {
				t.Errorf("counted %d up, %d down, want %d", st.BytesUp, st.BytesDown, bulk)
			}
			eventually(t, "connection is given back", func() bool { return n.stack.Stats().Conns == 0 })
		})
	}
}

func TestTCPSuperPackets(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = c.Write(pattern(bulk)) })
	n := start(t, nil)
	var largest sizes
	n.pod.watch(largest.see)
	c := n.mustDial(t, f, port)
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatal(err)
	}
	n.pod.watch(nil)
	if got := largest.max(); got < 32<<10 || got > packet.MaxSize {
		t.Errorf("largest packet towards the pod has %d bytes, want a super-packet", got)
	}
}

func TestTCPRefusedStaysRefused(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", net.JoinHostPort(f.loopback.String(), "0"))
			if err != nil {
				t.Fatal(err)
			}
			port := uint16(l.Addr().(*net.TCPAddr).Port)
			l.Close()
			n := start(t, nil)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_, err = n.dial(ctx, f, port)
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("dial of a closed port: %v, want refused", err)
			}
			if got := n.stack.Stats().Refused; got != 1 {
				t.Errorf("refused %d, want 1", got)
			}
		})
	}
}

func TestTCPHalfClose(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name+"/pod first", func(t *testing.T) {
			t.Parallel()
			port := listen(t, f, func(c *net.TCPConn) {
				all, _ := io.ReadAll(c) // returns only when the pod's FIN is here
				_, _ = c.Write([]byte(strings.ToUpper(string(all))))
			})
			c := start(t, nil).mustDial(t, f, port)
			_, _ = c.Write([]byte("question"))
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); err != nil || string(got) != "QUESTION" {
				t.Errorf("answer %q, %v", got, err)
			}
		})
		t.Run(f.name+"/server first", func(t *testing.T) {
			t.Parallel()
			got := make(chan string, 1)
			port := listen(t, f, func(c *net.TCPConn) {
				_, _ = c.Write([]byte("hello"))
				_ = c.CloseWrite()
				all, _ := io.ReadAll(c)
				got <- string(all)
			})
			c := start(t, nil).mustDial(t, f, port)
			if all, err := io.ReadAll(c); err != nil || string(all) != "hello" {
				t.Fatalf("greeting %q, %v", all, err)
			}
			_, _ = c.Write([]byte("still here"))
			_ = c.CloseWrite()
			if s := <-got; s != "still here" {
				t.Errorf("server got %q", s)
			}
		})
	}
}

func TestTCPResetPropagates(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	t.Run("from the server", func(t *testing.T) {
		t.Parallel()
		port := listen(t, f, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		})
		c := start(t, nil).mustDial(t, f, port)
		_, _ = c.Write([]byte("x"))
		_, err := c.Read(make([]byte, 1))
		if err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "reset") {
			t.Errorf("read after a reset: %v, want a reset", err)
		}
	})
	t.Run("from the pod", func(t *testing.T) {
		t.Parallel()
		got := make(chan error, 1)
		port := listen(t, f, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("x"))
			_, err := c.Read(make([]byte, 1))
			got <- err
		})
		n := start(t, nil)
		c := n.mustDial(t, f, port)
		_, _ = io.ReadFull(c, make([]byte, 1))
		for _, e := range n.pod.stack.RegisteredEndpoints() {
			e.Abort()
		}
		if err := <-got; err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("server read %v, want a reset", err)
		}
	})
}

func TestServeAnswersAtOnce(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := start(t, func(c *netstack.Config) { c.Serve = echoOn(53); c.Refuse = refuseAll })
			c := n.mustDial(t, f, 53)
			_, _ = c.Write([]byte("query"))
			_ = c.CloseWrite()
			if got, err := io.ReadAll(c); err != nil || string(got) != "query" {
				t.Errorf("answer %q, %v", got, err)
			}
			if st := n.stack.Stats(); st.Served != 1 || st.Dialled != 0 {
				t.Errorf("served %d, dialled %d", st.Served, st.Dialled)
			}
		})
	}
}
