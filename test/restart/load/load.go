// Package load is traffic that counts what it loses: datagrams with numbers,
// streams whose every byte is known, connections that stay, connections that are
// new, questions to a name server. Something bad happens to the network in between,
// and each load says what that was to it.
//
// All ends of a load are sockets of this process, or of a child (see Introduce),
// made in the network namespaces of pods, nodes and other hosts. So one clock
// measures everything, and nothing needs to be installed where the traffic flows.
package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// The ports that the servers of the loads have, at pods and behind the Services in
// front of them.
const (
	TalkPort  = 9000 // TCP: Introduce
	BulkPort  = 9001 // TCP: Bulk
	CountPort = 9002 // UDP: Datagrams
)

// Counts are what a load has seen since it was asked last. Each load uses those
// that mean something to it.
type Counts struct {
	Sent       int           // packets, questions, attempts, or connections at stake
	Lost       int           // of these, never answered
	Duplicates int           // came twice
	Reordered  int           // came after a later one
	Wrong      int           // came from, or to, somebody else than before
	Resets     int           // connections that were reset or refused
	Failed     int           // anything else that went wrong
	Slow       int           // took more than a second
	Silent     int           // tenths of a second in which nothing came
	Again      int           // segments that were sent once more
	Gap        time.Duration // the longest silence
	Example    string        // the first error of those that count
}

// Add adds what was seen in another time.
func (c *Counts) Add(o Counts) {
	c.Sent += o.Sent
	c.Lost += o.Lost
	c.Duplicates += o.Duplicates
	c.Reordered += o.Reordered
	c.Wrong += o.Wrong
	c.Resets += o.Resets
	c.Failed += o.Failed
	c.Slow += o.Slow
	c.Silent += o.Silent
	c.Again += o.Again
	c.Gap = max(c.Gap, o.Gap)
	c.Example = cmp.Or(c.Example, o.Example)
}

// fail counts an error of a connection.
func (c *Counts) fail(err error) {
	c.Example = cmp.Or(c.Example, err.Error())
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE) {
		c.Resets++
		return
	}
	c.Failed++
}

// Load is traffic under way.
type Load interface {
	Name() string
	// Cut returns what was seen since it was called last.
	Cut() Counts
	// Flows returns nil once something has come through that was sent after a time.
	Flows(since time.Time) error
	// Settle waits until it is known what became of what is under way.
	Settle(ctx context.Context)
	// Close ends it.
	Close() error
}

// Way is how a client reaches servers: by the address of one, or by a virtual one.
type Way struct {
	Name string
	From *Place
	To   netip.Addr
}

func (w Way) String() string { return fmt.Sprintf("%s (%s to %s)", w.Name, w.From.Name, w.To) }
