package options

import (
	"fmt"
	"net/netip"
	"strings"
)

// Transport is how an upstream is spoken to.
type Transport string

// The transports.
const (
	UDP Transport = "udp" // and TCP where an answer does not fit
	TCP Transport = "tcp"
	TLS Transport = "tls"
)

// The ports of those who do not say.
const (
	portDNS = 53
	portTLS = 853
)

// Upstream is a server that names are asked at. It is written as
//
//	192.0.2.1   192.0.2.1:5353   [2001:db8::1]:53   tcp://192.0.2.1
//	tls://192.0.2.1#dns.example   tls://[2001:db8::1]:853#dns.example
//
// where the name behind # is the one that its certificate must have; without one
// that is the address.
type Upstream struct {
	Addr       netip.AddrPort
	Transport  Transport // "" is UDP
	ServerName string    // TLS only
}

// ParseUpstream reads an upstream.
func ParseUpstream(s string) (Upstream, error) {
	u := Upstream{Transport: UDP}
	rest, port := s, uint16(portDNS)
	if scheme, after, ok := strings.Cut(s, "://"); ok {
		u.Transport, rest = Transport(scheme), after
		switch u.Transport {
		case TLS:
			port = portTLS
			rest, u.ServerName, _ = strings.Cut(rest, "#")
			if u.ServerName != "" && !IsName(u.ServerName) {
				return Upstream{}, fmt.Errorf("upstream %q: %q is no name of a certificate", s, u.ServerName)
			}
		case UDP, TCP:
		default:
			return Upstream{}, fmt.Errorf("upstream %q: want udp, tcp or tls before ://", s)
		}
	}
	if a, err := netip.ParseAddr(strings.Trim(rest, "[]")); err == nil {
		u.Addr = netip.AddrPortFrom(a.Unmap(), port)
	} else if u.Addr, err = netip.ParseAddrPort(rest); err != nil {
		return Upstream{}, fmt.Errorf("upstream %q: want an address such as 192.0.2.1, 192.0.2.1:5353 or tls://192.0.2.1#dns.example", s)
	}
	u.Addr = netip.AddrPortFrom(u.Addr.Addr().Unmap(), u.Addr.Port())
	a := u.Addr.Addr()
	switch {
	case a.IsUnspecified() || a.IsMulticast() || u.Addr.Port() == 0:
		return Upstream{}, fmt.Errorf("upstream %q: not the address of a server", s)
	case a.IsLoopback() && u.Addr.Port() == portDNS:
		return Upstream{}, fmt.Errorf("upstream %q: what listens at a loopback address is likely to ask us; name the server behind it, or another port", s)
	}
	return u, nil
}

// String writes it as ParseUpstream reads it.
func (u Upstream) String() string {
	s := u.Addr.String()
	switch {
	case u.Transport == TLS && u.Addr.Port() == portTLS, u.Transport != TLS && u.Addr.Port() == portDNS:
		s = u.Addr.Addr().String()
	}
	if u.Transport == TCP || u.Transport == TLS {
		s = string(u.Transport) + "://" + s
	}
	if u.ServerName != "" {
		s += "#" + u.ServerName
	}
	return s
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *Upstream) UnmarshalText(text []byte) (err error) {
	*u, err = ParseUpstream(string(text))
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (u Upstream) MarshalText() ([]byte, error) { return []byte(u.String()), nil }
