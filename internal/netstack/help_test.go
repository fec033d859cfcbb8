package netstack_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
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
