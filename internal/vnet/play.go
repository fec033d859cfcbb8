package vnet

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/netctl/netctl/internal/packet"
)

// Play runs a script, one step a line, with addresses of the family:
//
//	a -> PACKET        port a sends it; everything settles
//	b <- PACKET        the next packet that port b got is this
//	n1 drops REASON N  n1's router dropped N packets (one when left out) for it
//
// A PACKET is a kind, its ends, and what it has:
//
//	tcp a:1000 > web:80 flags=SA seq=7 ttl=9 mss=1460 len=10 data=hello gso=500 df id=3
//	udp | echo a > b id=1 | reply a > b id=1
//	wrapped router.n1 > router.n2 [tcp:outside:1000>b:80,flags=S]
//	unreach-port | unreach-host | unreach-admin | time-exceeded | too-big b > a mtu=1280 [udp:a:1000>b:80]
//
// Names are those of pods, nodes, services, "router.n1" and "host.n1". What a
// received PACKET does not mention is not compared. In the end every packet
// that a port got and every drop must have been mentioned.
func (c *Cluster) Play(f Family, script string) {
	c.tb.Helper()
	before := map[string]map[string]uint64{}
	for _, n := range c.order {
		before[n.Name] = n.drops()
	}
	left := map[string][]*packet.Packet{}
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			c.step(f, line, left, before)
		}
	}
	for name, p := range c.ports {
		for _, q := range append(left[name], p.Take()...) {
			c.tb.Errorf("%v: %s got, and nobody expected: %s", f, name, c.Text(q))
		}
	}
	for _, n := range c.order {
		if got := n.drops(); !maps.Equal(got, before[n.Name]) {
			c.tb.Errorf("%v: %s has dropped %v, the script says %v", f, n.Name, got, before[n.Name])
		}
	}
}

func (n *Node) drops() map[string]uint64 {
	sum := n.Router.Counters()
	return sum.ByReason()
}

// step runs one line. left holds what ports got and no line has asked for yet,
// drops what each node is said to have dropped so far.
func (c *Cluster) step(f Family, line string, left map[string][]*packet.Packet, drops map[string]map[string]uint64) {
	c.tb.Helper()
	who, rest, _ := strings.Cut(line, " ")
	verb, what, _ := strings.Cut(strings.TrimSpace(rest), " ")
	switch verb {
	case "->":
		c.Port(who).Send(c.Build(f, what))
		c.Settle()
	case "<-":
		left[who] = append(left[who], c.Port(who).Take()...)
		if len(left[who]) == 0 {
			c.tb.Errorf("%v: %s got nothing, want %s; drops: %v", f, who, what, c.Drops())
			return
		}
		got := c.Text(left[who][0])
		left[who] = left[who][1:]
		if !matches(got, what) {
			c.tb.Errorf("%v: %s\n got %s\nwant %s", f, who, got, what)
		}
	case "drops":
		reason, count, ok := strings.Cut(strings.TrimSpace(what), " ")
		n := 1
		if ok {
			var err error
			if n, err = strconv.Atoi(count); err != nil {
				c.tb.Fatalf("line %q: %v", line, err)
			}
		}
		drops[who][reason] += uint64(n) // a small count
	default:
		c.tb.Fatalf("line %q: no such step", line)
	}
}

// matches reports whether the packet's text has the kind, the ends and every
// other word of want.
func matches(got, want string) bool {
	const ends = 4 // kind, source, ">", destination
	g, w := strings.Fields(got), strings.Fields(want)
	if len(w) < ends || !slices.Equal(g[:ends], w[:ends]) {
		return false
	}
	for _, word := range w[ends:] {
		if !slices.Contains(g[ends:], word) {
			return false
		}
	}
	return true
}

// Drops returns what every node dropped so far, by node and reason.
func (c *Cluster) Drops() map[string]map[string]uint64 {
	out := map[string]map[string]uint64{}
	for _, n := range c.order {
		out[n.Name] = n.drops()
	}
	return out
}
