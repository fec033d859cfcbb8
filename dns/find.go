package dns

import (
	"net/netip"
	"strings"

	"github.com/netctl/netctl/internal/model"
)

// kind is what a name is.
type kind uint8

const (
	kindOutside  kind = iota // not a name of ours
	kindNone                 // ours, and it does not exist
	kindEmpty                // exists without records of its own
	kindApex                 // the zone itself
	kindVersion              // dns-version
	kindServer               // ns.dns
	kindService              // service.namespace.svc
	kindPort                 // _port._protocol.service.namespace.svc
	kindHost                 // endpoint.service.namespace.svc
	kindPod                  // address.namespace.pod
	kindExternal             // an ExternalName service
	kindReverse              // d.c.b.a.in-addr.arpa
)

// found is what find says of a name.
type found struct {
	kind kind
	zone int        // label at which the zone of the name starts
	set  addrs      // of a name that has several
	one  netip.Addr // of a name that has one, or the address of a reverse name
	svc  *service
}

// find looks a name up. It does not allocate.
//
//	[endpoint | _port _protocol] service namespace svc DOMAIN
//	                             address namespace pod DOMAIN
func (z *Zone) find(n *name) found {
	k := n.labels - z.labels
	if k < 0 || string(n.from(k)) != z.wire {
		return z.findReverse(n)
	}
	f := found{kind: kindNone, zone: k}
	switch k {
	case 0:
		f.kind = kindApex
		return f
	case 1:
		switch string(n.label(0)) {
		case "svc", "pod":
			f.kind = kindEmpty
		case "dns-version":
			f.kind = kindVersion
		}
		return f
	}
	inSvc := string(n.label(k-1)) == "svc"
	if !inSvc && string(n.label(k-1)) != "pod" {
		if k == 2 && string(n.label(0)) == "ns" && string(n.label(1)) == "dns" {
			f.kind = kindServer
		}
		return f
	}
	ns := z.namespaces[string(n.label(k-2))]
	switch {
	case ns == nil || !inSvc && z.podMode == PodsDisabled:
	case k == 2:
		f.kind = kindEmpty
	case inSvc:
		if s := ns.services[string(n.label(k-3))]; s != nil {
			s.find(n, k-3, &f)
		}
	case k <= 5: // CoreDNS ignores up to two labels below a pod's name
		z.findPod(ns, n.label(k-3), &f)
	}
	return f
}

// find looks up the name whose label i is the service's.
func (s *service) find(n *name, i int, f *found) {
	if s.object.Type == model.ExternalName {
		if i == 0 && s.target != nil {
			f.kind, f.svc = kindExternal, s
		}
		return
	}
	switch i {
	case 0:
		if s.object.Headless && s.all.empty() {
			return // no ready endpoint: the name does not exist
		}
		f.kind, f.svc, f.set = kindService, s, s.all
	case 1:
		label := n.label(0)
		if set, ok := s.hosts[string(label)]; ok {
			f.kind, f.svc, f.set = kindHost, s, set
			return
		}
		if a, ok := parseDashed(label); ok && s.dashed.contains(a) && isDashed(label, a) {
			f.kind, f.svc, f.one = kindHost, s, a
		}
	case 2:
		if s.hasPort(n.label(0), n.label(1)) {
			f.kind, f.svc = kindPort, s
		}
	}
}

// findPod looks up an address below a namespace of the pod subdomain.
func (z *Zone) findPod(ns *namespace, label []byte, f *found) {
	a, ok := parseDashed(label)
	if !ok {
		return
	}
	if z.podMode == PodsVerified {
		if _, ok := ns.pods[a]; !ok {
			return
		}
	}
	f.kind, f.one = kindPod, a
}

// findReverse looks up a name outside the zone: it is ours when it is the
// reverse of an address that has a name or lies in our ranges.
func (z *Zone) findReverse(n *name) found {
	a, ok := parseReverse(n)
	if !ok {
		return found{}
	}
	f := found{kind: kindReverse, zone: n.labels - 2, one: a}
	if z.vips.Get(a) != nil || z.endpoints.Get(a) != nil {
		return f
	}
	if z.within(a) {
		f.kind = kindNone
		return f
	}
	return found{}
}

// hasPort reports whether _port._protocol names a port that serves somebody.
func (s *service) hasPort(port, proto []byte) bool {
	p, ok := portOf(port, proto)
	if !ok {
		return false
	}
	if !s.object.Headless {
		for i := range s.object.Ports {
			if p.matches(s.object.Ports[i].Name, s.object.Ports[i].Protocol) {
				return true
			}
		}
		return false
	}
	for _, sl := range s.slices {
		if !p.served(sl) {
			continue
		}
		for i := range sl.Endpoints {
			if sl.Endpoints[i].Ready {
				return true
			}
		}
	}
	return false
}

// portName is a port as a question names it, without underscores.
type portName struct {
	name  []byte
	proto model.Protocol
}

func portOf(port, proto []byte) (portName, bool) {
	p := portName{name: trimUnderscore(port)}
	switch string(trimUnderscore(proto)) {
	case "tcp":
		p.proto = model.TCP
	case "udp":
		p.proto = model.UDP
	case "sctp":
		p.proto = model.SCTP
	default:
		return p, false
	}
	return p, len(p.name) > 0
}

func trimUnderscore(b []byte) []byte {
	if len(b) > 0 && b[0] == '_' {
		return b[1:]
	}
	return b
}

// matches compares without regard to case; p is in lower case already.
func (p portName) matches(name string, proto model.Protocol) bool {
	if proto != p.proto || len(name) != len(p.name) {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if c-'A' < 26 {
			c |= 0x20
		}
		if c != p.name[i] {
			return false
		}
	}
	return true
}

// served reports whether a slice has the port.
func (p portName) served(sl *model.EndpointSlice) bool {
	for i := range sl.Ports {
		if p.matches(sl.Ports[i].Name, sl.Ports[i].Protocol) {
			return true
		}
	}
	return false
}

// contains searches the sorted addresses.
func (s addrs) contains(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return search(s.v4, b[:])
	}
	b := a.As16()
	return search(s.v6, b[:])
}

func search(sorted string, want []byte) bool {
	size := len(want)
	lo, hi := 0, len(sorted)/size
	for lo < hi {
		mid := (lo + hi) / 2
		switch at := sorted[mid*size : mid*size+size]; {
		case at == string(want):
			return true
		case at < string(want):
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false
}

// parseDashed reads an address whose dots or colons are dashes, with the rule
// of the kubernetes plugin: three dashes, none doubled, are IPv4.
func parseDashed(b []byte) (netip.Addr, bool) {
	dashes, double := 0, false
	for i, c := range b {
		if c == '-' {
			dashes++
			double = double || i > 0 && b[i-1] == '-'
		}
	}
	if dashes == 3 && !double {
		return parseDashed4(b)
	}
	return parseDashed6(b)
}

func parseDashed4(b []byte) (netip.Addr, bool) {
	var out [4]byte
	part, digits, value := 0, 0, 0
	for i := 0; i <= len(b); i++ {
		if i == len(b) || b[i] == '-' {
			if digits == 0 || part > 3 {
				return netip.Addr{}, false
			}
			out[part] = byte(value)
			part, digits, value = part+1, 0, 0
			continue
		}
		if b[i]-'0' > 9 || digits > 0 && value == 0 { // no leading zeros
			return netip.Addr{}, false
		}
		value = value*10 + int(b[i]-'0')
		if digits++; value > 255 {
			return netip.Addr{}, false
		}
	}
	return netip.AddrFrom4(out), part == 4
}

func parseDashed6(b []byte) (netip.Addr, bool) { //nolint:gocognit // a scanner in one piece; a loop with three ends
	var out [16]byte
	n, gap := 0, -1 // bytes written; where "--" stands
	for i := 0; i < len(b); {
		if b[i] == '-' {
			// A dash alone separates; two are the gap; at the ends only the gap.
			switch {
			case i+1 < len(b) && b[i+1] == '-':
				if gap >= 0 {
					return netip.Addr{}, false
				}
				gap = n
				i += 2
				continue
			case i == 0 || i+1 == len(b) || b[i-1] == '-':
				return netip.Addr{}, false
			}
			i++
		}
		value, digits := 0, 0
		for ; i < len(b) && digits <= 4; i++ {
			d := hexDigit(b[i])
			if d > 15 {
				break
			}
			value = value<<4 | int(d)
			digits++
		}
		if digits == 0 || digits > 4 || n == 16 || i < len(b) && b[i] != '-' {
			return netip.Addr{}, false
		}
		out[n], out[n+1] = byte(value>>8), byte(value)
		n += 2
	}
	if gap < 0 && n != 16 || gap >= 0 && n == 16 {
		return netip.Addr{}, false
	}
	if gap >= 0 {
		copy(out[16-(n-gap):], out[gap:n])
		clear(out[gap : 16-(n-gap)])
	}
	return netip.AddrFrom16(out).Unmap(), true
}

func hexDigit(c byte) byte {
	switch {
	case c-'0' <= 9:
		return c - '0'
	case c|0x20-'a' < 6:
		return c | 0x20 - 'a' + 10
	default:
		return 0xff
	}
}

// dashedName returns the label of an endpoint that has no hostname.
func dashedName(a netip.Addr) string {
	if a.Is4() {
		return strings.ReplaceAll(a.String(), ".", "-")
	}
	s := strings.ReplaceAll(a.String(), ":", "-")
	if strings.HasSuffix(s, "-") {
		s += "0"
	}
	return s
}

// isDashed reports whether label is dashedName(a). It does not allocate.
func isDashed(label []byte, a netip.Addr) bool {
	if a.Is4() {
		return true // parseDashed4 accepts one spelling only
	}
	var buf [48]byte
	b := a.AppendTo(buf[:0])
	for i, c := range b {
		if c == ':' {
			b[i] = '-'
		}
	}
	if len(b) > 0 && b[len(b)-1] == '-' {
		b = append(b, '0')
	}
	return string(label) == string(b)
}

// parseReverse reads the address of a reverse name: exactly four decimal
// labels below in-addr.arpa or 32 hexadecimal ones below ip6.arpa.
func parseReverse(n *name) (netip.Addr, bool) {
	switch {
	case n.labels == 6 && string(n.from(4)) == "\x07in-addr\x04arpa\x00":
		var out [4]byte
		for i := range 4 {
			v, ok := decimal(n.label(3 - i))
			if !ok {
				return netip.Addr{}, false
			}
			out[i] = v
		}
		return netip.AddrFrom4(out), true
	case n.labels == 34 && string(n.from(32)) == "\x03ip6\x04arpa\x00":
		var out [16]byte
		for i := range 32 {
			l := n.label(31 - i)
			if len(l) != 1 || hexDigit(l[0]) > 15 {
				return netip.Addr{}, false
			}
			out[i/2] = out[i/2]<<4 | hexDigit(l[0])
		}
		return netip.AddrFrom16(out).Unmap(), true
	}
	return netip.Addr{}, false
}

// decimal reads a number from 0 to 255 without leading zeros.
func decimal(b []byte) (byte, bool) {
	if len(b) == 0 || len(b) > 3 || len(b) > 1 && b[0] == '0' {
		return 0, false
	}
	v := 0
	for _, c := range b {
		if c-'0' > 9 {
			return 0, false
		}
		v = v*10 + int(c-'0')
	}
	return byte(v), v <= 255
}
