package vnet

import (
	"bytes"
	"maps"
	"net/netip"
	"time"

	"github.com/netctl/netctl/internal/packet"
)

const (
	// probePort is where probes go; nothing listens, the engines' sinks keep them.
	probePort = 9
	// probeEvery is how often a probe is repeated until one arrives.
	probeEvery = 100 * time.Millisecond
	probeMark  = "vnet probe from "
)

// prove sends a packet through every tunnel in which none has arrived before,
// until one does. On a loaded machine two handshakes may cross so that one end
// believes in a session that the other has given up: WireGuard loses what is
// sent meanwhile, as a network may, and makes another one. Tests are about what
// comes after.
func (c *Cluster) prove() {
	c.tb.Helper()
	links := c.mutual()
	c.mu.Lock()
	maps.DeleteFunc(c.links, func(link [2]string, _ bool) bool { _, ok := links[link]; return !ok })
	c.mu.Unlock()
	for link := range links {
		if !c.proven(link) {
			var last time.Time
			c.wait("no packet gets from "+link[0]+" to "+link[1], func() bool {
				if time.Since(last) > probeEvery {
					last = time.Now()
					c.probe(link)
				}
				return c.proven(link)
			})
		}
	}
}

// probe sends a packet from one node's address to the other's.
func (c *Cluster) probe(link [2]string) {
	from, to := c.addrs[link[0]][0], c.addrs[link[1]][0]
	buf := packet.UDP(make([]byte, packet.MaxError), netip.AddrPortFrom(from, probePort), netip.AddrPortFrom(to, probePort), []byte(probeMark+link[0]))
	_ = c.nodes[link[0]].Engine.Send(buf) // repeated until it arrives
}

// isProbe notes a probe that has arrived at a node, and reports whether buf is
// one.
func (c *Cluster) isProbe(node string, buf []byte) bool {
	_, from, ok := bytes.Cut(buf, []byte(probeMark))
	if ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.links[[2]string{string(from), node}] = true
	}
	return ok
}

func (c *Cluster) proven(link [2]string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.links[link]
}
