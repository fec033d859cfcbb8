package netstack

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// servedPatience is how long a connection to a server in this process is read
// after the Stack has retired. The server knows the world as it was then, and
// clients of name servers expect that a stream ends (RFC 7766 §6.2.4).
const servedPatience = 5 * time.Second

// servedConn is a connection to a server in this process. Once the Stack has
// retired, no deadline for reading is later than until.
type servedConn struct {
	*gonet.TCPConn

	mu    sync.Mutex
	until time.Time // guarded by mu; zero: the Stack serves
}

// limit sets the last deadline; the zero time takes it back.
func (c *servedConn) limit(until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = until
	if !until.IsZero() {
		_ = c.TCPConn.SetReadDeadline(until) // never fails
	}
}

// SetReadDeadline is that of net.Conn.
func (c *servedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.until.IsZero() && (t.IsZero() || t.After(c.until)) {
		t = c.until
	}
	return c.TCPConn.SetReadDeadline(t)
}

// SetDeadline is that of net.Conn.
func (c *servedConn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// limitServed gives the connections to servers in this process a last deadline.
func (s *Stack) limitServed(until time.Time) {
	for _, c := range s.connections(func(c *spliced) bool { return c.served != nil }) {
		c.served.limit(until)
	}
}
