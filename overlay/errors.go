package overlay

import "errors"

var (
	// ErrNoPeer says that no peer is responsible for the packet's destination.
	// The packet was dropped: nothing ever leaves unencrypted.
	ErrNoPeer = errors.New("no peer for destination")
	// ErrFull says that the queue towards the peers has no room; drop the packet.
	ErrFull = errors.New("overlay queue is full")
	// ErrMalformed says that the packet has no readable destination.
	ErrMalformed = errors.New("malformed packet")
	// ErrClosed says that the engine was closed.
	ErrClosed = errors.New("overlay engine is closed")
)
