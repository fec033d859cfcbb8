package datapath

import (
	"encoding/binary"
	"math/bits"

	"github.com/netctl/netctl/internal/packet"
)

// Who sends a packet pays for it: what is bounded, is bounded for each sender,
// so that one that asks for too much takes nothing from the others. Local ports
// are senders of their own. Pods of other nodes share peerSenders numbers for
// each peer, and peers their numbers when they are more than peerGroups, so that
// neither a pod nor a whole node that is hostile has more than a small part.
const (
	peerGroups  = 64
	peerSenders = 16
	firstPort   = peerGroups * peerSenders // the sender number of port 0
)

// sender numbers the sender of the current packet, whose addresses are still
// those that it came with.
func (in *Input) sender() uint32 {
	if in.tables.port(in.id).Kind != KindOverlay {
		return firstPort + uint32(in.id)
	}
	src, peer := &in.pkt.Tuple.Src, in.via
	if peer == 0 {
		peer = in.tables.route(*src).Peer
	}
	return peer%peerGroups*peerSenders + addrHash(src)%peerSenders
}

// addrHash spreads addresses, neighbours above all, over its low bits.
func addrHash(a *packet.Addr) uint32 {
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(a[8:])^0x9e3779b97f4a7c15, binary.LittleEndian.Uint64(a[:8])^0xff51afd7ed558ccd)
	return uint32((hi^lo)>>32) ^ uint32(hi^lo)
}

// Answers are the ICMP errors and resets that packets cause. They are bounded so
// that a flood is not answered by a flood (RFC 1812 §4.3.2.8); those that tell a
// size apart from the rest, because connections do not go on without them.
const (
	senderAnswers = 200  // a second and kind
	nodeAnswers   = 1000 // of ports that carry more than one pod's packets
)

type answerKind uint8

const (
	answerError answerKind = iota
	answerSize
)

type answerKey struct {
	sender uint32
	kind   answerKind
}

// mayAnswer reports whether the sender of the packet in in.pkt is to be told what
// became of it, and takes one answer from what it has in this second.
func (in *Input) mayAnswer(kind answerKind) bool {
	if !packet.AnswersError(&in.pkt) {
		return false
	}
	if in.second != in.now {
		in.second = in.now
		clear(in.answers)
	}
	limit := uint16(nodeAnswers)
	if k := in.tables.port(in.id).Kind; k == KindPod || k == KindOverlay {
		limit = senderAnswers
	}
	key := answerKey{in.sender(), kind}
	n := in.answers[key]
	if n >= limit {
		return false
	}
	in.answers[key] = n + 1
	return true
}
