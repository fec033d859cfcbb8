// Package ends is the two ends of the traffic that is measured: one small process
// in each network namespace, which serves all kinds of traffic at once and sends
// any of them when it is told to.
//
// The process is the measuring program itself, started again (see Main). It takes
// requests as JSON lines on its standard input, answers on its standard output and
// ends when the input does, so that none outlives the program that started it.
// System calls on its sockets block threads of its own: no scheduler but the
// kernel's is in the figures.
package ends

import (
	"net/netip"
	"time"
)

// The ports that every end serves, with the same numbers behind Services.
const (
	SinkPort  = 7001 // TCP: takes what comes and closes when the client has; UDP: see flood.go
	EchoPort  = 7002 // TCP: sends back what comes
	GreetPort = 7003 // TCP: says one byte and closes
)

// DefaultSize is of what has no size in its Request.
const DefaultSize = 64

// Kind is a kind of traffic.
type Kind string

// The kinds.
const (
	Stream  Kind = "stream"  // TCP, as much as goes through
	Flood   Kind = "flood"   // datagrams, as many as go through
	Ask     Kind = "ask"     // requests over one TCP connection, each after the reply to the one before
	Connect Kind = "connect" // TCP connections, each opened, heard and closed
	Count   Kind = "count"   // nothing: it says how many bytes its sink has taken so far
)

// Request says what an end is to send.
type Request struct {
	Kind Kind           `json:"kind"`
	To   netip.AddrPort `json:"to"`
	// Number is of streams, or of those that ask or connect at the same time;
	// 0 is 1.
	Number int `json:"number,omitempty"`
	// Size is of a datagram's payload or of a request; 0 is DefaultSize.
	Size int           `json:"size,omitempty"`
	For  time.Duration `json:"for"`
	// Pace is the time from one request to the next; 0: as fast as replies come.
	Pace time.Duration `json:"pace,omitempty"`
	// Flows is to how many ports of its own a flood goes on in turns; 0 is 1.
	Flows int `json:"flows,omitempty"`
}

// Result is what came of it.
type Result struct {
	Bytes   float64       `json:"bytes"`   // that arrived, except of a stream: the other end counts those
	Packets float64       `json:"packets"` // datagrams that arrived
	Lost    float64       `json:"lost"`    // datagrams that did not
	Count   float64       `json:"count"`   // requests or connections that were answered
	Failed  float64       `json:"failed"`  // connections that were not
	Took    time.Duration `json:"took"`    // from the first byte to the last that arrived
	P50     time.Duration `json:"p50"`     // of requests or connections
	P99     time.Duration `json:"p99"`
	Max     time.Duration `json:"max"`
}

// patience is how long an end waits for anything: a lost packet must not hang a
// measurement.
const patience = 10 * time.Second
