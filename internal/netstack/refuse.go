package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// localAge is how old the list of the host's addresses may be. A newer address
// is still found: the kernel is asked as well.
const localAge = 2 * time.Second

// neverDial are the ranges that are never reached on behalf of a pod: what is
// not an address of a host, what only this host or link can mean, and forms of
// IPv6 that carry an IPv4 address past the other rules.
//
//nolint:gochecknoglobals // a table known at compile time
var neverDial = []struct {
	prefix netip.Prefix
	reason string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"}, // the metadata address too
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::/96"), "unspecified or IPv4-compatible"},
	{netip.MustParsePrefix("::ffff:0.0.0.0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "local-use NAT64"},
	{netip.MustParsePrefix("2002:7f00::/24"), "6to4 of loopback"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// refusedError marks what Config.Refuse said.
type refusedError struct{ reason error }

func (e *refusedError) Error() string { return "refused: " + e.reason.Error() }
func (e *refusedError) Unwrap() error { return e.reason }

// HostGuard refuses destinations that would lead a pod into the host: the
// ranges that never leave a host, every address that the host has, and
// broadcast. Egress must not be a way to the agent's or the node's own
// sockets. The zero value is ready; safe for concurrent use.
//
// It does not know which routes lead back into the router: whoever sets those
// wraps it.
type HostGuard struct {
	mu    sync.Mutex
	local map[netip.Addr]struct{} // guarded by mu
	read  time.Time               // guarded by mu; when local was read
}

// Refuse says why a pod may not reach dst, or nil.
func (g *HostGuard) Refuse(dst netip.Addr) error {
	if !dst.IsValid() || dst.Zone() != "" {
		return errors.New("not an address of a host")
	}
	for _, n := range neverDial {
		if n.prefix.Contains(dst) {
			return fmt.Errorf("%s address", n.reason)
		}
	}
	known, err := g.isLocal(dst)
	if err != nil {
		return fmt.Errorf("addresses of the host are unknown: %w", err)
	}
	if known {
		return errors.New("address of the host")
	}
	return routesToHost(dst)
}

func (g *HostGuard) isLocal(dst netip.Addr) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.local == nil || time.Since(g.read) > localAge {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return false, err
		}
		g.local = make(map[netip.Addr]struct{}, len(addrs))
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(n.IP); ok {
					g.local[addr.Unmap()] = struct{}{}
				}
			}
		}
		g.read = time.Now()
	}
	_, ok := g.local[dst]
	return ok, nil
}

// routesToHost asks the kernel, by connecting a datagram socket, which sends
// nothing: for a local destination it takes the destination itself as the
// source (also for whole local prefixes, which no interface shows), and
// without SO_BROADCAST it refuses broadcast addresses.
func routesToHost(dst netip.Addr) error {
	c, err := dialUDP(context.Background(), netip.AddrPortFrom(dst, 9))
	if errors.Is(err, syscall.EACCES) {
		return errors.New("broadcast or prohibited address")
	}
	if err != nil {
		return nil // no route: the dial itself will say so
	}
	defer c.Close()
	if src, ok := c.LocalAddr().(*net.UDPAddr); ok {
		if a := src.AddrPort().Addr().Unmap(); a == dst || a.IsLoopback() {
			return errors.New("address of the host")
		}
	}
	return nil
}

// dialUDP is the default Config.DialUDP. Go allows broadcast on every datagram
// socket; a pod must not have it.
func dialUDP(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_BROADCAST, 0)
		})
		return errors.Join(err, serr)
	}}
	return d.DialUDP(ctx, "udp", netip.AddrPort{}, dst)
}
