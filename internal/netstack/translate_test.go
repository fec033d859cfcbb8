package netstack_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

const virtualPort = 80

// A client of a virtual address speaks to its backend and sees the virtual
// address alone.
func TestTranslate(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			tcpPort := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
			udpPort := udpEcho(t, f)
			var asked atomic.Int32
			n := start(t, func(cfg *netstack.Config) {
				cfg.Translate = func(proto uint8, src, dst netip.AddrPort) (netip.AddrPort, error) {
					asked.Add(1)
					if src.Addr() != f.pod || dst != netip.AddrPortFrom(f.out, virtualPort) {
						t.Errorf("asked about %s > %s", src, dst)
					}
					if proto == packet.ProtoTCP {
						return netip.AddrPortFrom(f.loopback, tcpPort), nil
					}
					return netip.AddrPortFrom(f.loopback, udpPort), nil
				}
			})
			c := n.mustDial(t, f, virtualPort)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			got := n.capture()
			for range 3 {
				_ = n.stack.Write(f.udp(virtualPort, []byte("x")))
				p := got.next(t, "echo", isUDP)
				if p.Tuple.Src != packet.AddrFrom(f.out) || p.Tuple.SrcPort != virtualPort {
					t.Fatalf("reply is from %s", p.Tuple)
				}
			}
			if asked.Load() != 2 {
				t.Errorf("asked %d times, want once for the connection and once for the flow", asked.Load())
			}
		})
	}
}

// Errors of Translate are seen as a dial's, and what it returns is refused as
// any other destination.
func TestTranslateErrors(t *testing.T) {
	t.Parallel()
	reset := func(p *packet.Packet) bool { return p.TCPFlags&packet.TCPRst != 0 }
	for _, f := range families(t) {
		for name, c := range map[string]struct {
			err      error
			tcp, udp func(*packet.Packet) bool // nil: no answer
		}{
			"reject":       {syscall.ECONNREFUSED, reset, unreachable(packet.UnreachPort)},
			"drop":         {os.ErrDeadlineExceeded, nil, nil},
			"not ours":     {syscall.EHOSTUNREACH, unreachable(packet.UnreachHost), unreachable(packet.UnreachHost)},
			"then refused": {nil, reset, unreachable(packet.UnreachAdmin)},
		} {
			t.Run(f.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				n := start(t, func(cfg *netstack.Config) {
					cfg.Refuse = refuseAll
					cfg.Translate = func(_ uint8, _, dst netip.AddrPort) (netip.AddrPort, error) { return dst, c.err }
				})
				got := n.capture()
				for _, try := range []struct {
					buf  []byte
					want func(*packet.Packet) bool
				}{{f.syn(4001, virtualPort), c.tcp}, {f.udp(virtualPort, []byte("x")), c.udp}} {
					_ = n.stack.Write(try.buf)
					if try.want != nil {
						got.next(t, name, try.want)
						continue
					}
					eventually(t, "attempt ends", func() bool {
						st := n.stack.Stats()
						return st.Dials == 0 && st.Flows == 0 && st.TimedOut+st.FlowsOpened > 0
					})
					got.none(t)
				}
				buf := packet.Echo(make([]byte, packet.MaxSize), packet.EchoHeader{Src: f.pod, Dst: f.out, ID: 7}, []byte("x"))
				_ = n.stack.Write(buf)
				if c.udp != nil {
					got.next(t, "answer to a ping", c.udp)
				}
			})
		}
	}
}

// A flow of datagrams whose backend is gone goes to another one with its next
// datagram.
func TestHolds(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			backends := []uint16{udpEcho(t, f), udpEcho(t, f)}
			var chosen, now atomic.Int32
			n := start(t, func(cfg *netstack.Config) {
				cfg.Translate = func(uint8, netip.AddrPort, netip.AddrPort) (netip.AddrPort, error) {
					chosen.Store(now.Load())
					return netip.AddrPortFrom(f.loopback, backends[now.Load()]), nil
				}
				cfg.Holds = func(dst, backend netip.AddrPort) bool {
					return dst == netip.AddrPortFrom(f.out, virtualPort) && backend.Port() == backends[now.Load()]
				}
			})
			got := n.capture()
			for i := range int32(2) {
				now.Store(i)
				for range 2 {
					_ = n.stack.Write(f.udp(virtualPort, []byte("x")))
					got.next(t, "echo", isUDP)
				}
				if st := n.stack.Stats(); chosen.Load() != i || st.FlowsOpened != uint64(i)+1 {
					t.Errorf("backend %d after %d flows, want %d after %d", chosen.Load(), st.FlowsOpened, i, i+1)
				}
			}
			eventually(t, "the former flow is gone", func() bool { return n.stack.Stats().Flows == 1 })
		})
	}
}
