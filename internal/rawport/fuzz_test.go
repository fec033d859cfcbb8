package rawport

import (
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/packet"
)

// FuzzDeliver gives the reader what anybody on the network can send to the node.
// Whatever it makes of that must be what the router's parser takes or refuses,
// and pieces no larger than the pod's MTU.
func FuzzDeliver(f *testing.F) {
	const mtu = 1420
	for _, host := range []string{"192.0.2.1", "2001:db8::1"} {
		from := netip.AddrPortFrom(netip.MustParseAddr(host), 53)
		for _, n := range []int{0, 1, 3000} {
			f.Add(packet.UDP(make([]byte, packet.MaxSize), from, from, make([]byte, n))[packet.VNetLen:])
		}
	}
	f.Add([]byte{0x4f, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2})
	f.Fuzz(func(t *testing.T, ip []byte) {
		if len(ip) > packet.MaxSize-packet.VNetLen || len(ip) == 0 {
			return
		}
		buf := append(make([]byte, packet.VNetLen), ip...)
		proto := 6
		if ip[0]>>4 == 4 && len(ip) > 9 {
			proto = int(ip[9])
		} else if len(ip) > 6 {
			proto = int(ip[6])
		}
		if ip[0]>>4 != 4 && (ip[0]>>4 != 6 || len(ip) < header6) {
			return // the kernel gives headers of the socket's family, read6 makes its own
		}
		r := reader{socket: &rawSocket{proto: proto, is4: ip[0]>>4 == 4}, mtu: mtu, buf: buf}
		r.deliver(len(buf), func(b []byte) {
			p := packet.Packet{Buf: b}
			if packet.Parse(&p) == packet.FaultNone && !p.Is4() && p.Tuple.Proto == packet.ProtoUDP && len(p.Buf)-packet.VNetLen > mtu {
				t.Errorf("a datagram of %d bytes was not cut", len(p.Buf)-packet.VNetLen)
			}
		})
	})
}
