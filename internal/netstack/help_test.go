package netstack_test

import (
	"errors"
	"io"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/netctl/netctl/internal/packet"
)

func echoOn(port uint16) func(netip.AddrPort) func(net.Conn) {
	return func(dst netip.AddrPort) func(net.Conn) {
		if dst.Port() != port {
			return nil
		}
		return func(c net.Conn) {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}
	}
}

func refuseAll(netip.Addr) error { return errors.New("nothing is allowed") }

func addr(b []byte) tcpip.Address { return tcpip.AddrFromSlice(b) }

// sound recomputes the checksum of an ICMP message.
func sound(p *packet.Packet) bool {
	ip := p.IP()
	sum := uint16(0)
	if !p.Is4() {
		sum = header.PseudoHeaderChecksum(packet.ProtoICMPv6, addr(ip[8:24]), addr(ip[24:40]), uint16(len(ip)-p.L4))
	}
	return checksum.Checksum(ip[p.L4:], sum) == 0xffff
}
