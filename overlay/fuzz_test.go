package overlay_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/overlaytest"
)

// FuzzSend gives the engine any bytes as a packet. Whatever they are, a good
// packet sent after them must arrive, and in one piece.
func FuzzSend(f *testing.F) {
	a, b := pair(f, overlaytest.New(overlaytest.Config{}))
	f.Add(udp(pod4(1), pod4(2), "payload"))
	f.Add(udp(pod6(1), pod6(2), ""))
	f.Add(tcpSuper(pod4(1), pod4(2), 1, make([]byte, 5000), 1380))
	f.Add(tcpSuper(pod6(1), pod6(2), 1, make([]byte, 5000), 10))
	f.Fuzz(func(t *testing.T, buf []byte) {
		if len(buf) > packet.VNetLen+20 { // make it likely to have a peer
			copy(buf[packet.VNetLen+16:], pod4(2).AsSlice())
		}
		_ = a.Send(buf)
		good := udp(pod4(1), pod4(2), "good")
		a.send(t, good)
		b.in.wait(t, "good packet", func(got [][]byte) bool {
			for _, pkt := range got {
				if string(pkt) == string(good) {
					return true
				}
				p := packet.Packet{Buf: pkt}
				if packet.Parse(&p) == packet.FaultNone && p.Tuple.Src.Netip() != pod4(1) {
					// Merged or not: only a's own addresses pass.
					if src := p.Tuple.Src.Netip(); !prefix("10.0.1.0/24").Contains(src) && !prefix("fd00:0:0:1::/64").Contains(src) {
						t.Fatalf("source %s came through", src)
					}
				}
				// Equal datagrams before it may have taken it in.
				if p.Tuple.Proto == packet.ProtoUDP && p.GSOSize > 0 {
					return true
				}
			}
			return false
		})
	})
}

// FuzzReceive injects any bytes as a datagram from the peer's address. Nothing
// of it may come out, and the tunnel goes on working.
func FuzzReceive(f *testing.F) {
	net := overlaytest.New(overlaytest.Config{})
	a, b := pair(f, net)
	a.send(f, udp(pod4(1), pod4(2), "session"))
	b.in.waitN(f, "first packet", 1)
	for kind := range uint32(6) {
		f.Add(binary.LittleEndian.AppendUint32(nil, kind))
		f.Add(append(binary.LittleEndian.AppendUint32(nil, kind), make([]byte, 144)...))
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		if len(datagram) > 65535 {
			return
		}
		net.Inject(overlaytest.Datagram{From: a.at, To: b.at, Payload: datagram})
		good := udp(pod4(1), pod4(2), "good")
		a.send(t, good)
		if got := b.in.waitN(t, "good packet", 1); len(got) != 1 || string(got[0]) != string(good) {
			t.Errorf("got %x", got)
		}
	})
}

// FuzzApply makes peers of any prefixes: the engine accepts or refuses them,
// and afterwards says what it accepted.
func FuzzApply(f *testing.F) {
	a := start(f, overlaytest.New(overlaytest.Config{}), 1, nil)
	f.Add([]byte{10, 0, 0, 0}, 8, []byte{10, 1, 0, 0}, 16)
	f.Add([]byte{15: 1}, 128, []byte{10: 255, 11: 255, 12: 10}, 104)
	f.Fuzz(func(t *testing.T, x []byte, xb int, y []byte, yb int) {
		ax, _ := netip.AddrFromSlice(x)
		ay, _ := netip.AddrFromSlice(y)
		peers := []overlay.Peer{
			{Node: "x", PublicKey: keyOf(1), Endpoint: ports("192.0.2.8:1"), AllowedIPs: []netip.Prefix{netip.PrefixFrom(ax, xb)}},
			{Node: "y", PublicKey: keyOf(2), Endpoint: ports("192.0.2.9:1"), AllowedIPs: []netip.Prefix{netip.PrefixFrom(ay, yb)}},
		}
		if a.Apply(peers) != nil {
			return
		}
		got, err := a.Peers()
		if err != nil || len(got) != 2 || len(got[0].AllowedIPs) != 1 || len(got[1].AllowedIPs) != 1 {
			t.Fatalf("%v applied as %v, %v", peers, got, err)
		}
	})
}

// FuzzImport imports any bytes as sessions. Whatever is accepted does no harm:
// the engine starts, and shakes hands with its peer.
func FuzzImport(f *testing.F) {
	net := overlaytest.New(overlaytest.Config{})
	a, b := pair(f, net)
	a.send(f, udp(pod4(1), pod4(2), "session"))
	b.in.waitN(f, "first packet", 1)
	if err := a.Stop(); err != nil {
		f.Fatal(err)
	}
	good := a.ExportSessions()
	f.Add(good)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"sessions":[{"peer":"AA=="}]}`))
	f.Add(bytes.Replace(good, []byte(`"created":`), []byte(`"created":1`), 1))
	f.Add(bytes.Replace(good, []byte(`"local":`), []byte(`"local":1`), 1))
	f.Add(bytes.Replace(good, []byte(`"sent":`), []byte(`"sent":1844674407370955161`), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := overlay.NewWireGuard(overlay.WireGuardConfig{
			Key: a.key, MTU: testMTU, Sink: func([][]byte) {}, Wire: overlaytest.New(overlaytest.Config{}).Wire(addr("192.0.2.1")),
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = n.ImportSessions(data)
		if err := errors.Join(n.Apply([]overlay.Peer{b.peer()}), n.Start()); err != nil {
			t.Fatal(err)
		}
		_ = n.Send(udp(pod4(1), pod4(2), "x"))
		if _, err := n.Peers(); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}
