package overlay

import (
	"errors"
	"fmt"
)

var (
	// ErrNoPeer says that no peer is responsible for the packet's destination.
	// The packet was dropped: nothing ever leaves unencrypted.
	ErrNoPeer = errors.New("no peer for destination")
	// ErrFull says that the socket, or the queue of what waits for a handshake, has
	// no room; drop the packet.
	ErrFull = errors.New("overlay queue is full")
	// ErrMalformed says that the packet has no readable destination.
	ErrMalformed = errors.New("malformed packet")
	// ErrTooBig says that the packet does not fit the tunnel and cannot be cut.
	ErrTooBig = fmt.Errorf("%w: larger than the tunnel's MTU", ErrMalformed)
	// ErrClosed says that the engine was stopped or closed.
	ErrClosed = errors.New("overlay engine is closed")
)
