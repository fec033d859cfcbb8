package drain

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
)

func pair(t testing.TB) (a, b *wire) {
	t.Helper()
	ours, fd, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := Conn(fd)
	if err != nil {
		t.Fatal(err)
	}
	a, b = mustWire(t, ours), mustWire(t, theirs)
	return a, b
}

func mustWire(t testing.TB, c *net.UnixConn) *wire {
	t.Helper()
	w, err := newWire(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func stack(t testing.TB) *netstack.Stack {
	t.Helper()
	s, err := netstack.New(netstack.Config{Out: func([]byte) {}, Inbound: func([]byte) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func tuple(port uint16, proto uint8) packet.Tuple {
	return packet.Tuple{
		Src: packet.AddrFrom(netip.MustParseAddr("10.1.0.5")), Dst: packet.AddrFrom(netip.MustParseAddr("192.0.2.1")),
		SrcPort: port, DstPort: 443, Proto: proto,
	}
}

func TestWireKeepsMessages(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	bodies := [][]byte{nil, {1}, bytes.Repeat([]byte{7}, packet.MaxSize)}
	for i, body := range bodies {
		if err := a.send(kind(i+1), body, -1); err != nil {
			t.Fatal(err)
		}
	}
	a.close() // what was said before still arrives
	for i, body := range bodies {
		k, got, fd, err := b.receive()
		if err != nil || k != kind(i+1) || !bytes.Equal(got, body) || fd != -1 {
			t.Errorf("message %d: kind %d, %d bytes, descriptor %d, %v", i, k, len(got), fd, err)
		}
	}
	if _, _, _, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last: %v", err)
	}
	if err := b.send(kindPacket, []byte{1}, -1); err == nil {
		t.Error("a closed wire takes a message")
	}
}

func TestWireCarriesDescriptors(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	if err := a.send(kindFlow, []byte("x"), p[1]); err != nil {
		t.Fatal(err)
	}
	unix.Close(p[1])
	_, _, fd, err := b.receive()
	if err != nil || fd < 0 {
		t.Fatalf("descriptor %d, %v", fd, err)
	}
	_, _ = unix.Write(fd, []byte("y"))
	unix.Close(fd)
	buf := make([]byte, 2)
	if n, err := unix.Read(p[0], buf); n != 1 || err != nil || buf[0] != 'y' {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestWireFull: a worker of the router does not wait for room, a retired stack
// does.
func TestWireFull(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	big := make([]byte, packet.MaxSize)
	n := 0
	for ; ; n++ {
		if err := a.try(kindPacket, big); errors.Is(err, errFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	sent := make(chan error, 1)
	go func() { sent <- a.send(kindDone, nil, -1) }()
	for ; n > 0; n-- {
		if k, body, _, err := b.receive(); err != nil || k != kindPacket || len(body) != len(big) {
			t.Fatalf("kind %d, %d bytes, %v", k, len(body), err)
		}
	}
	if k, _, _, err := b.receive(); err != nil || k != kindDone {
		t.Errorf("kind %d, %v", k, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestRecords(t *testing.T) {
	t.Parallel()
	flow := netstack.Flow{Tuple: tuple(7, packet.ProtoUDP), Backend: netip.MustParseAddrPort("[2001:db8::1]:53"), Replied: true, Idle: time.Second}
	if got, err := parseFlow(flowRecord(&flow)); err != nil || got != flow {
		t.Errorf("flow %+v became %+v, %v", flow, got, err)
	}
	udp := nodeport.UDPFlow{
		Listener: netip.MustParseAddrPort("[::]:30053"), Client: netip.MustParseAddrPort("[fe80::1%3]:5353"), Asked: netip.MustParseAddr("fe80::2%3"),
		Backend: netip.MustParseAddrPort("[fd00::5]:53"), Source: netip.MustParseAddrPort("[fd00::2]:1024"), Idle: time.Minute, FD: -1,
	}
	b := appendUDPFlow(nil, &udp)
	if got, err := parseUDPFlow(append(b, "a later version's"...)); err != nil || got != udp {
		t.Errorf("flow %+v became %+v, %v", udp, got, err)
	}
	for n := range b {
		if _, err := parseUDPFlow(b[:n]); !errors.Is(err, errMessage) {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	if err := checkHello(append([]byte(magic), Version+1)); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("another version is greeted with %v", err)
	}
}

// TestNewRefusesNonsense: the wire ends, and the predecessor goes on.
func TestNewRefusesNonsense(t *testing.T) {
	t.Parallel()
	for name, messages := range map[string][]message{
		"no greeting":     {{kindBegan, nil}},
		"another version": {{kindHello, append([]byte(magic), 9)}},
		"half a tuple":    {{kindHello, hello()}, {kindBegan, make([]byte, tupleLen-1)}},
		"no protocol":     {{kindHello, hello()}, {kindBegan, make([]byte, tupleLen)}},
		"no socket":       {{kindHello, hello()}, {kindFlow, flowRecord(&netstack.Flow{Tuple: tuple(1, packet.ProtoUDP), Backend: netip.MustParseAddrPort("192.0.2.1:53")})}},
		"no end":          {{kindHello, hello()}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			for _, m := range messages {
				if err := a.send(m.kind, m.body, -1); err != nil {
					t.Fatal(err)
				}
			}
			if name == "no end" {
				a.close()
			}
			if _, err := New(context.Background(), b.conn, Ends{Stack: stack(t)}); err == nil {
				t.Error("New took it")
			}
			if name != "no end" {
				if _, _, _, err := a.receive(); !errors.Is(err, io.EOF) {
					t.Errorf("the predecessor hears %v, want the end", err)
				}
			}
		})
	}
}

func TestNewWaitsNoLongerThanItsContext(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if err := a.send(kindHello, hello(), -1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := New(ctx, b.conn, Ends{Stack: stack(t)}); err == nil {
		t.Error("New took it")
	}
}

// TestOldIsTakenBackByItsContext: a successor that hangs.
func TestOldIsTakenBackByItsContext(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Old(ctx, a.conn, Ends{Stack: stack(t)}) }()
	for {
		k, _, _, err := b.receive()
		if err != nil {
			t.Fatal(err)
		}
		if k == kindReady {
			break
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, ErrNotTaken) {
		t.Errorf("Old says %v", err)
	}
	_ = b.send(kindServing, nil, -1) // too late
	if _, _, _, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("the successor that woke up hears %v, want the end", err)
	}
}

// both takes a fuzzed conversation apart: | kind 1 | length 2 | body |...
func both(data []byte, f func(k kind, body []byte)) {
	for len(data) >= 3 {
		k, n := kind(data[0]), int(data[1])<<8|int(data[2])
		data = data[3:]
		n = min(n, len(data))
		f(k, data[:n])
		data = data[n:]
	}
}

func conversation(messages ...message) []byte {
	var out []byte
	for _, m := range messages {
		out = append(append(out, byte(m.kind), byte(len(m.body)>>8), byte(len(m.body))), m.body...)
	}
	return out
}

func FuzzNew(f *testing.F) {
	t1 := tuple(1, packet.ProtoTCP)
	syn := packet.UDP(make([]byte, 200), netip.MustParseAddrPort("10.1.0.5:1"), netip.MustParseAddrPort("192.0.2.1:443"), []byte("x"))
	udp := nodeport.UDPFlow{
		Listener: netip.MustParseAddrPort("127.0.0.1:30053"), Client: netip.MustParseAddrPort("127.0.0.1:5353"), Asked: netip.MustParseAddr("127.0.0.1"),
		Backend: netip.MustParseAddrPort("10.1.0.5:53"), Source: netip.MustParseAddrPort("10.1.0.2:1024"),
	}
	f.Add(conversation(message{kindBegan, appendTuple(nil, &t1, true)}, message{kindReturn, syn}, message{kindPacket, syn}, message{kindEnded, appendTuple(nil, &t1, false)}))
	f.Add(conversation(message{kindUDPFlow, appendUDPFlow(nil, &udp)}, message{kindFlow, flowRecord(&netstack.Flow{Tuple: t1, Backend: udp.Backend})}, message{kindDone, nil}))
	f.Fuzz(func(t *testing.T, data []byte) {
		refuse := func(netip.Addr) error { return errors.New("no") }
		s, err := netstack.New(netstack.Config{Out: func([]byte) {}, Inbound: func([]byte) {}, Refuse: refuse})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		a, _ := pair(t)
		h := &Heritage{Ends: Ends{Stack: s}, wire: a, control: make(chan message, 1)}
		h.heirs = s.Inherit(predecessor{h})
		both(data, func(k kind, body []byte) { _ = h.take(k, bytes.Clone(body), -1) })
		h.Close()
		if n := s.Stats().Inherited; n != 0 {
			t.Errorf("%d connections are left of a predecessor that is gone", n)
		}
	})
}

func FuzzOld(f *testing.F) {
	syn := packet.UDP(make([]byte, 200), netip.MustParseAddrPort("10.1.0.5:1"), netip.MustParseAddrPort("192.0.2.1:443"), []byte("x"))
	f.Add(conversation(message{kindServing, nil}, message{kindPacket, syn}, message{kindPacketInbound, syn}, message{kindAdopted, nil}, message{kindForget, []byte{10, 1, 0, 5}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := stack(t)
		a, b := pair(t)
		server := nodeport.New(nodeport.Config{})
		defer server.Close()
		o := newOld(a, Ends{Stack: s, Sockets: server})
		go func() { // the successor reads
			for {
				if _, _, fd, err := b.receive(); err != nil {
					return
				} else if fd >= 0 {
					closeFD(fd)
				}
			}
		}()
		if err := o.retire(); err != nil {
			t.Fatal(err)
		}
		both(data, func(k kind, body []byte) { _ = o.take(k, bytes.Clone(body)) })
		o.breakOff()
	})
}

func FuzzRecords(f *testing.F) {
	f.Add(flowRecord(&netstack.Flow{Tuple: tuple(7, packet.ProtoUDP), Backend: netip.MustParseAddrPort("[2001:db8::1]:53")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if flow, err := parseFlow(data); err == nil {
			again, err := parseFlow(flowRecord(&flow))
			if err != nil || again != flow {
				t.Errorf("%+v became %+v, %v", flow, again, err)
			}
		}
		if flow, err := parseUDPFlow(data); err == nil {
			again, err := parseUDPFlow(appendUDPFlow(nil, &flow))
			if err != nil || !reflect.DeepEqual(again, flow) {
				t.Errorf("%+v became %+v, %v", flow, again, err)
			}
		}
		_ = parseTuples(data, func(packet.Tuple, bool) {})
	})
}

// BenchmarkWire is the way of one super-packet to the other process.
func BenchmarkWire(b *testing.B) {
	for name, size := range map[string]int{"small": 100, "super": 60 << 10} {
		b.Run(name, func(b *testing.B) {
			x, y := pair(b)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range b.N {
					if _, _, _, err := y.receive(); err != nil {
						b.Error(err)
						return
					}
				}
			}()
			buf := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := x.send(kindPacket, buf, -1); err != nil {
					b.Fatal(err)
				}
			}
			<-done
		})
	}
}
