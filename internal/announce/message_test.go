package announce

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
)

var (
	mine  = [6]byte{2, 0, 0, 0, 0, 1}
	yours = [6]byte{2, 0, 0, 0, 0, 2}
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// solicit is a neighbour solicitation as a kernel sends it.
func solicit(target, from netip.Addr) []byte {
	to := solicitedNode(target)
	b := ethernet(multicastMAC(to), yours, protoIPv6, ip6Len+nsLen+8)
	p := b[ethLen:]
	p[0] = 6 << 4
	binary.BigEndian.PutUint16(p[4:], nsLen+8)
	p[6], p[7] = icmpv6, maxHops
	src, dst, t := from.As16(), to.As16(), target.As16()
	copy(p[8:], src[:])
	copy(p[24:], dst[:])
	icmp := p[ip6Len:]
	icmp[0] = typeNS
	copy(icmp[8:], t[:])
	icmp[24], icmp[25] = 1, 1
	copy(icmp[26:], yours[:])
	binary.BigEndian.PutUint16(icmp[2:], checksum(p[8:40], icmp))
	return b
}

func TestQuestions(t *testing.T) {
	t.Parallel()
	four, six := addr("192.0.2.80"), addr("2001:db8::80")
	ask4 := arp(1, yours, addr("192.0.2.9"), broadcast, asker{addr: four})
	ask6 := solicit(six, addr("fe80::2"))
	change := func(b []byte, f func([]byte)) []byte {
		out := append([]byte(nil), b...)
		f(out)
		return out
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want netip.Addr
	}{
		{"ARP", ask4, four},
		{"ARP, padded", append(append([]byte(nil), ask4...), make([]byte, 18)...), four},
		{"ARP probe of somebody who wants the address", arp(1, yours, addr("0.0.0.0"), broadcast, asker{addr: four}), four},
		{"ARP reply", arp(2, yours, addr("192.0.2.9"), mine, asker{mine, four}), netip.Addr{}},
		{"ARP announcement", arp(1, yours, four, broadcast, asker{addr: four}), netip.Addr{}},
		{"ARP of other hardware", change(ask4, func(b []byte) { b[15] = 6 }), netip.Addr{}},
		{"ARP from a group", change(ask4, func(b []byte) { b[22] |= 1 }), netip.Addr{}},
		{"ARP cut", ask4[:len(ask4)-1], netip.Addr{}},
		{"NS", ask6, six},
		{"NS of somebody who wants the address", solicit(six, addr("::")), six},
		{"NS of the address itself", solicit(six, six), netip.Addr{}},
		{"NS from afar", change(ask6, func(b []byte) { b[ethLen+7] = 254 }), netip.Addr{}},
		{"NS damaged", change(ask6, func(b []byte) { b[len(b)-1]++ }), netip.Addr{}},
		{"NS of a group", solicit(addr("ff02::5"), addr("fe80::2")), netip.Addr{}},
		{"NS with a length beyond its end", change(ask6, func(b []byte) { b[ethLen+5] = 200 }), netip.Addr{}},
		{"NS cut", ask6[:ethLen+ip6Len+nsLen-1], netip.Addr{}},
		{"NA", advertisement(yours, six, mine, addr("fe80::1"), true), netip.Addr{}},
		{"something else", ethernet(mine, yours, 0x0800, 60), netip.Addr{}},
		{"nothing", nil, netip.Addr{}},
	} {
		target, from, ok := question(tt.b)
		if ok != tt.want.IsValid() || ok && (target != tt.want || from.mac != yours) {
			t.Errorf("%s: %v %v %v, want %v", tt.name, target, from, ok, tt.want)
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	six := addr("2001:db8::80")
	_, from, _ := question(solicit(six, addr("fe80::2")))
	b := answer(mine, six, from)
	if [6]byte(b[:6]) != yours || checksum(b[ethLen+8:ethLen+40], b[ethLen+ip6Len:]) != 0 || b[ethLen+ip6Len+4] != 0x60 || [6]byte(b[len(b)-6:]) != mine {
		t.Errorf("% x", b)
	}
	_, from, _ = question(solicit(six, addr("::")))
	if b := answer(mine, six, from); [6]byte(b[:6]) != multicastMAC(allNodes) || b[ethLen+ip6Len+4] != 0x20 {
		t.Errorf("to who wants the address: % x", b)
	}
	_, from, _ = question(arp(1, yours, addr("192.0.2.9"), broadcast, asker{addr: addr("192.0.2.80")}))
	b = answer(mine, addr("192.0.2.80"), from)
	if [6]byte(b[:6]) != yours || b[21] != 2 || [4]byte(b[28:32]) != [4]byte{192, 0, 2, 80} || [4]byte(b[38:42]) != [4]byte{192, 0, 2, 9} {
		t.Errorf("% x", b)
	}
	for _, a := range []netip.Addr{six, addr("192.0.2.80")} {
		for _, m := range announcement(mine, a) {
			if _, _, ok := question(m); ok || m[0]&1 == 0 {
				t.Errorf("the announcement of %s is a question, or for one machine", a)
			}
		}
	}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	links := []Link{
		{Name: "a", Index: 1, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
		{Name: "b", Index: 2, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("2001:db8::/64")}},
		{Name: "c", Index: 3},
	}
	for a, want := range map[string]string{"192.0.2.1": "ab", "192.0.2.200": "a", "2001:db8::1": "b", "203.0.113.1": "c"} {
		var names []string
		for _, l := range places(addr(a), links, "c") {
			names = append(names, l.Name)
		}
		if got := strings.Join(names, ""); got != want {
			t.Errorf("%s is answered for on %q, want %q", a, got, want)
		}
	}
	if got := places(addr("203.0.113.1"), links, ""); len(got) > 0 {
		t.Errorf("without a default route: %v", got)
	}
}

// Whatever a neighbour sends is read without harm, and only what it may ask is
// answered.
func FuzzQuestion(f *testing.F) {
	f.Add(arp(1, yours, addr("192.0.2.9"), broadcast, asker{addr: addr("192.0.2.80")}))
	f.Add(solicit(addr("2001:db8::80"), addr("fe80::2")))
	f.Fuzz(func(t *testing.T, b []byte) {
		target, from, ok := question(b)
		if !ok {
			return
		}
		if !target.IsValid() || target.IsMulticast() && target.Is6() || from.addr == target {
			t.Errorf("%v is asked for by %v", target, from)
		}
		if _, _, again := question(answer(mine, target, from)); again {
			t.Error("the answer is a question")
		}
	})
}
