// Package drain carries connections that end in sockets of a process past the
// end of its service: the process that has the ports now passes it their packets,
// and sends on what it says, until the last of them has ended.
//
//	retired process                             its successor
//	netstack.Stack ── Heir ──> wire ═════════> netstack.Inheritance ──> router
//	netstack.Stack <────────── wire <═════════ Predecessor <─────────── Stack.Write
//
// Why. A TCP connection between a pod and a socket is two, and what joins them,
// gVisor's state, cannot leave its process. Flows of datagrams can: they move,
// with their sockets and source ports.
//
// How. At the switch, in the process that retires, when nothing reads its TUNs
// and its tunnel any more:
//
//	ours, theirs, err := drain.Pair()     // theirs goes to the successor
//	err = drain.Old(ctx, ours, ends)      // returns when the last has ended
//
// Stack.Run, Sockets.Run and what they call (the name server) go on meanwhile. The
// end of ctx takes everything back before the successor serves, and is the hard
// limit after. With ErrNotTaken everything is in service again, and only the
// readers are to be started. Otherwise Stack and Sockets are closed.
//
// In the successor, which has a Stack and a Server that have seen no packet:
//
//	conn, err := drain.Conn(theirs)
//	heritage, err := drain.New(ctx, conn, ends) // the old one takes nothing in any more
//	sockets.Adopt(listeners)                     // got by other ways
//	... publish tables ...
//	err = heritage.Serve(ctx)                    // now the old one cannot come back
//	go heritage.Run(ctx)
//	... start to read TUNs and tunnel ...
//	sockets.Apply(want)
//	heritage.Adopted()
//
// Run lives as long as the process, also when that retires itself: it may have to
// pass on what its own predecessor still says.
//
// Invariants:
//   - What the old process has in hand when New returns is known to the new one:
//     no packet of it is taken for somebody else's.
//   - A worker of the router never waits: a full wire loses the packet, which is
//     counted. What the old process emits waits instead.
//   - Until Serve, the old process can take everything back.
//   - At no time both processes serve: Serve is a question that the old one answers
//     with yes, or it serves again.
//   - When either process dies, the other notices by the socket: the old one
//     ends, the new one lets pods know (netstack.Inheritance.Lost).
//   - The other process is trusted, its messages are still checked: what makes
//     no sense ends the draining, not the process.
//
// Tests connect two stacks by a real socket and switch a pod from one to the
// other in the middle of everything.
package drain

import (
	"errors"
	"log/slog"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
)

// Ends are where connections end in a process.
type Ends struct {
	Stack   *netstack.Stack
	Sockets *nodeport.Server // nil: there are none
	Logger  *slog.Logger     // nil: silent
}

func (e *Ends) setDefaults() {
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
}

// ErrNotTaken is what Old answers when the successor went away before it served.
// Stack and Sockets are in service again, as before.
var ErrNotTaken = errors.New("the successor has not taken over")
