package flow

import "sync/atomic"

// State is how far a connection has come. Both slots of a connection carry it.
//
//	TCP:  New ──SYN──▶ SynSent ──SYN,ACK──▶ SynReceived ──ACK──▶ Established
//	       │                                                        ▲  │
//	       └── picked up in the middle, a reply came ───────────────┘  │ FIN
//	                                                                   ▼
//	      TimeWait ◀── FIN of the other side ── FinForward / FinReverse
//
//	      any ──RST──▶ ResetForward / ResetReverse (whose RST it was)
//
//	else: New ──reply──▶ Replied ──more than four packets one way──▶ Stream
//
// A reset is believed only as long as its sender is silent: when the side that
// is said to have reset goes on sending, the reset was forged or out of window
// and the connection is established as before.
type State uint8

// The states.
const (
	New          State = iota + 1 // only the opener has spoken
	Replied                       // UDP and others: both have spoken
	Stream                        // UDP and others: a conversation
	SynSent                       // TCP: the opener's SYN
	SynReceived                   // TCP: the SYN,ACK
	Established                   // TCP
	FinForward                    // TCP: the opener has closed its half
	FinReverse                    // TCP: the other side has closed its half
	TimeWait                      // TCP: both have closed
	ResetForward                  // TCP: the opener reset
	ResetReverse                  // TCP: the other side reset
	numStates
)

//nolint:gochecknoglobals // a table known at compile time
var stateNames = [numStates]string{
	"invalid", "new", "replied", "stream", "syn-sent", "syn-received", "established",
	"fin-forward", "fin-reverse", "time-wait", "reset-forward", "reset-reverse",
}

// String returns the name of the state, as status output shows it.
func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return stateNames[0]
}

// TCP flags (RFC 9293 §3.1).
const (
	flagFIN = 1 << 0
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

const protoTCP = 6

// Over reports whether the connection has ended, so that a new SYN on the same
// tuple opens another one.
func (s State) Over() bool { return s == TimeWait || s == ResetForward || s == ResetReverse }

// unanswered reports whether nobody has been seen to accept the connection:
// such entries are evicted when the table is full.
func (s State) unanswered() bool { return s == New || s == SynSent || s == SynReceived }

// Reopens reports whether a packet with these TCP flags starts a new connection
// on the tuple of this entry, which is over. The caller removes the entry and
// takes the packet as the first of a flow (RFC 9293 §3.10.7.4, RFC 6191).
func (e *Entry) Reopens(tcpFlags uint8) bool {
	return tcpFlags&(flagSYN|flagACK|flagRST) == flagSYN && e.State.Over()
}

// steady reports that a packet with these flags cannot move the state.
func (s State) steady(tcpFlags uint8) bool {
	switch s {
	case Established:
		return tcpFlags&(flagFIN|flagRST) == 0
	case Stream:
		return true
	default:
		return false
	}
}

// streamPackets is the number of packets in one direction after which a
// conversation is no single question and answer: a resolver asks for A and
// AAAA on one socket and repeats each once.
const streamPackets = 4

// step returns the state after a packet: n counts the packets of its direction.
func (s State) step(proto uint8, reverse bool, tcpFlags uint8, n uint64) State {
	if proto == protoTCP {
		return s.stepTCP(reverse, tcpFlags)
	}
	switch {
	case s == New && reverse:
		return Replied
	case s == Replied && n > streamPackets:
		return Stream
	default:
		return s
	}
}

func (s State) stepTCP(reverse bool, f uint8) State {
	if f&flagRST != 0 {
		return s.reset(reverse)
	}
	switch s {
	case New:
		return openTCP(reverse, f)
	case SynSent:
		if reverse && f&(flagSYN|flagACK) != 0 {
			return SynReceived
		}
	case SynReceived:
		return acceptTCP(reverse, f)
	case Established:
		return finTCP(reverse, f)
	case FinForward:
		if reverse && f&flagFIN != 0 {
			return TimeWait
		}
	case FinReverse:
		if !reverse && f&flagFIN != 0 {
			return TimeWait
		}
	case ResetForward:
		if !reverse && f&flagSYN == 0 {
			return Established
		}
	case ResetReverse:
		if reverse && f&flagSYN == 0 {
			return Established
		}
	default:
	}
	return s
}

// reset keeps the first reset: the answer to one in flight changes nothing.
func (s State) reset(reverse bool) State {
	switch {
	case s.Over():
		return s
	case reverse:
		return ResetReverse
	default:
		return ResetForward
	}
}

func openTCP(reverse bool, f uint8) State {
	switch {
	case !reverse && f&flagSYN != 0 && f&flagACK == 0:
		return SynSent
	case reverse && f&flagSYN != 0:
		return SynReceived
	case reverse: // picked up in the middle: both sides speak
		return finTCP(reverse, f)
	default:
		return New
	}
}

// acceptTCP takes the opener's ACK for the proof that it owns its address.
func acceptTCP(reverse bool, f uint8) State {
	if reverse || f&flagACK == 0 {
		return SynReceived
	}
	return finTCP(reverse, f)
}

func finTCP(reverse bool, f uint8) State {
	switch {
	case f&flagFIN == 0:
		return Established
	case reverse:
		return FinReverse
	default:
		return FinForward
	}
}

// Timeouts are the seconds after which an idle connection is forgotten. A zero
// field means its default.
//
//	                 default   why
//	Unreplied           30     nf_conntrack udp_timeout
//	Replied            120     RFC 4787 REQ-5: not under two minutes
//	RepliedWellKnown    30     RFC 4787 REQ-5a allows less for ports under 1024 (DNS)
//	Stream             180     between nf_conntrack's 120 and RFC 4787's advice of 300
//	ICMP                30     nf_conntrack; RFC 5508 REQ-2 asks 60 of a NAT whose
//	                           identifiers are mapped, ours are kept
//	SCTP               210     seven heartbeats of 30 s (nf_conntrack)
//	Other              600     nf_conntrack generic
//	Opening             60     Cilium; SYNs are repeated within 32 s and each one counts
//	Established      86400     kube-proxy; RFC 5382 REQ-5 demands 7440
//	HalfClosed        3600     kube-proxy's CLOSE_WAIT; RFC 5382 REQ-5 demands 240
//	TimeWait           120     nf_conntrack, 2 MSL of RFC 9293 in practice
//	Reset               10     nf_conntrack tcp CLOSE
type Timeouts struct {
	Unreplied, Replied, RepliedWellKnown, Stream uint32
	ICMP, SCTP, Other                            uint32
	Opening, Established, HalfClosed             uint32
	TimeWait, Reset                              uint32
}

// DefaultTimeouts returns the documented defaults.
func DefaultTimeouts() Timeouts {
	return Timeouts{
		Unreplied: 30, Replied: 120, RepliedWellKnown: 30, Stream: 180,
		ICMP: 30, SCTP: 210, Other: 600,
		Opening: 60, Established: 86400, HalfClosed: 3600,
		TimeWait: 120, Reset: 10,
	}
}

func (o *Timeouts) setDefaults() {
	d := DefaultTimeouts()
	for _, f := range []struct{ have, want *uint32 }{
		{&o.Unreplied, &d.Unreplied},
		{&o.Replied, &d.Replied},
		{&o.RepliedWellKnown, &d.RepliedWellKnown},
		{&o.Stream, &d.Stream},
		{&o.ICMP, &d.ICMP},
		{&o.SCTP, &d.SCTP},
		{&o.Other, &d.Other},
		{&o.Opening, &d.Opening},
		{&o.Established, &d.Established},
		{&o.HalfClosed, &d.HalfClosed},
		{&o.TimeWait, &d.TimeWait},
		{&o.Reset, &d.Reset},
	} {
		if *f.have == 0 {
			*f.have = *f.want
		}
	}
}

const (
	protoICMP   = 1
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132

	wellKnownPorts = 1024
)

// of returns the timeout of a connection; port is the destination port of its
// opener.
func (o *Timeouts) of(proto uint8, st State, port uint16) uint32 {
	switch proto {
	case protoTCP:
		return o.ofTCP(st)
	case protoICMP, protoICMPv6:
		return o.ICMP
	}
	switch {
	case st == New || st == 0:
		return o.Unreplied
	case proto == protoSCTP:
		return o.SCTP
	case proto != protoUDP:
		return o.Other
	case st == Stream:
		return o.Stream
	case port < wellKnownPorts:
		return o.RepliedWellKnown
	default:
		return o.Replied
	}
}

func (o *Timeouts) ofTCP(st State) uint32 {
	switch st {
	case Established:
		return o.Established
	case FinForward, FinReverse:
		return o.HalfClosed
	case TimeWait:
		return o.TimeWait
	case ResetForward, ResetReverse:
		return o.Reset
	default:
		return o.Opening
	}
}

// advance records the second of the last packet and moves the state. The slot
// of the forward direction holds the authoritative state; the other one has a
// copy, which is written again whenever either side had to look.
func (t *Table) advance(i uint32, n uint64, tcpFlags uint8, now uint32) {
	s := &t.slots[i]
	touch(&s[wordActivity], now)
	ports := s[wordPorts].Load()
	reverse, proto := flagsOf(ports)&FlagReverse != 0, uint8(ports>>24) // the named bits
	partner := high(s[wordPartner].Load())
	if partner >= t.nslots {
		return
	}
	p := &t.slots[partner]
	if high(p[wordPartner].Load()) != i {
		return // the pair was removed a moment ago
	}
	first, second := s, p
	if reverse {
		first, second = p, s
	}
	st := advanceState(&first[wordActivity], func(st State) State { return st.step(proto, reverse, tcpFlags, n) })
	advanceState(&second[wordActivity], func(State) State { return st })
}

// touch moves last seen forward to now.
func touch(w *atomic.Uint64, now uint32) {
	for {
		a := activity(w.Load())
		if after(now, a.lastSeen()) <= 0 {
			return
		}
		if w.CompareAndSwap(uint64(a), uint64(makeActivity(now, a.state(), a.frontSlot()))) {
			return
		}
	}
}

// after returns by how many seconds a is later than b, on a clock that wraps.
func after(a, b uint32) int32 { return int32(a - b) } // wraps on purpose

// advanceState maps the state and returns the one that holds afterwards.
func advanceState(w *atomic.Uint64, step func(State) State) State {
	for {
		a := activity(w.Load())
		st := step(a.state())
		if st == a.state() || w.CompareAndSwap(uint64(a), uint64(makeActivity(a.lastSeen(), st, a.frontSlot()))) {
			return st
		}
	}
}
