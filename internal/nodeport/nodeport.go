// Package nodeport holds the sockets that the node listens on for others: the
// node ports of Services and the host ports of pods.
//
//	client ──> listening socket ──Pick──> backend
//	             accept            ├─ in the cluster: Dial, from the client's own address
//	             or a datagram     └─ a host's: an ordinary socket
//
// Why sockets, not packets. What is sent to the node's own address is delivered
// by the node's kernel and never meets the router. A socket also makes a port
// that somebody else uses an error with a name instead of a silent theft.
//
// Invariants:
//   - A socket binds the very address that was asked for, without
//     SO_REUSEPORT: two owners of one port are an error that names the port.
//   - Apply is idempotent: a listener that stays wanted is not touched. One that
//     goes takes its socket and its UDP flows with it; TCP connections go on.
//   - What a backend sees as the client is what Source says, and nothing else
//     decides it.
//   - A client without a backend is reset at once; a server that speaks last is
//     heard to the end; what one side aborts is aborted on the other.
//   - UDP answers leave from the address that was asked.
//   - Connections and flows are bounded in total and per client (package quota).
//   - After Close nothing is left: no socket, no goroutine.
//   - Of two processes that have the same socket only one takes what comes in: the
//     one stops (StopListening) before the other begins (Adopt, Apply).
//   - A connection whose process dies is reset by the kernel, not ended as if
//     everything had been said.
//
// Tests need no root: clients and backends are on loopback addresses, and a
// fake cluster records from which address it was dialled.
package nodeport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/netctl/netctl/internal/model"
)

// Listener is a port of the node that is wanted.
type Listener struct {
	Addr  netip.AddrPort // may be unspecified: every address of that family
	Proto model.Protocol // TCP or UDP
	// Owner says in errors whose port it is: "service default/web port http".
	Owner string
	// Service is whose port it is, if it is a Service's.
	Service model.Name
	// Target is the backend of a host port. Zero: Config.Pick is asked for each
	// connection and each new client of UDP.
	Target netip.AddrPort
}

// Flow carries the datagrams of one client into the cluster.
type Flow interface {
	// Send sends a datagram. An error means that the flow is of no use any more.
	Send(data []byte) error
	// LocalAddr is what the backend sees as the client.
	LocalAddr() netip.AddrPort
	Close()
}

// Config is what New needs. Limits and Logger may be left out, and Pick, Has,
// Dial and Datagrams where no Listener needs them.
type Config struct {
	// Pick chooses the backend of a new connection to dst, an address of the node
	// that the client asked; false: there is none for this client.
	Pick func(dst netip.AddrPort, proto model.Protocol, client netip.AddrPort) (backend netip.AddrPort, ok bool)
	// Has reports whether a UDP flow to dst may stay with its backend; asked for
	// every datagram. When it may not, Pick is asked again. nil: it always may.
	Has func(dst netip.AddrPort, proto model.Protocol, backend netip.AddrPort) bool

	// Place says what an address is to this node.
	Place func(netip.Addr) Place
	// Router is the router's own address of a family, .2 of the node's block; the
	// zero Addr while there is none.
	Router func(is4 bool) netip.Addr

	// Dial opens a TCP connection into the cluster that comes from src.
	// If it has CloseWrite and SetLinger, half-close and resets are carried over.
	Dial func(ctx context.Context, src, dst netip.AddrPort) (net.Conn, error)
	// Datagrams opens a flow of datagrams into the cluster that comes from src.
	// What comes back goes to receive, which does not block or keep its buffer.
	Datagrams func(src, dst netip.AddrPort, receive func(data []byte)) (Flow, error)
	// Resume is like Datagrams for a flow of a predecessor (AdoptFlows), whose source
	// stays what it was. nil: Datagrams.
	Resume func(src, dst netip.AddrPort, receive func(data []byte)) (Flow, error)

	// DialHost and DialHostUDP open connections to backends that are hosts'
	// addresses; nil means a net.Dialer.
	DialHost    func(ctx context.Context, dst netip.AddrPort) (net.Conn, error)
	DialHostUDP func(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error)

	Limits Limits
	Logger *slog.Logger // nil: silent
}

// ErrStopped is what Apply answers after StopListening.
var ErrStopped = errors.New("node sockets are given to a successor")

// ErrClosed is what Apply answers after Close, or after Run has returned.
var ErrClosed = errors.New("node sockets are closed")

// ConflictError says that a wanted port cannot be had.
type ConflictError struct {
	Listener Listener
	Err      error // from the kernel
}

// Error names the port, whose it is and what to do.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("cannot listen on %s/%s for %s: %s", e.Listener.Addr, e.Listener.Proto, e.Listener.Owner, advice(e))
}

// Unwrap returns the kernel's word.
func (e *ConflictError) Unwrap() error { return e.Err }
