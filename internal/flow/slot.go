package flow

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"github.com/netctl/netctl/internal/packet"
)

// slot is one direction of a connection:
//
//	 0  owner 32          | sequence 32        odd: being written
//	 1  partner slot 32   | InGen 32
//	 2  source address, 16 bytes               ┐
//	 4  destination address, 16 bytes          │ the key
//	 6  sport 16 | dport 16 | proto 8 | zone 16 ┘ | used 1 | flags 7
//	 7  rewritten source address, 16 bytes
//	 9  rewritten destination address, 16 bytes
//	11  sport 16 | dport 16 | exit port 32
//	12  OutGen 32         | FrontGen 32
//	13  last seen 32      | state 8 | FrontSlot 16 | 0    activity
//	14  bytes 40          | packets 24                    activity, counted with one addition
//	15  bytes/4096 36     | packets/1024 28               what overflowed word 14
type slot [slotWords]atomic.Uint64

const (
	wordSeq      = 0
	wordPartner  = 1
	wordKey      = 2
	wordPorts    = 6
	wordRewrite  = 7
	wordOut      = 11
	wordGens     = 12
	wordActivity = 13
	wordTally    = 14
	wordSpill    = 15

	usedMark = 1 << 7       // in wordPorts
	flagMask = usedMark - 1 // in wordPorts
	_        = uint(usedMark - flagEnd)
)

func low(w uint64) uint32  { return uint32(w) } // the low half is what is asked for
func high(w uint64) uint32 { return uint32(w >> 32) }

func flagsOf(ports uint64) Flags { return Flags(ports & flagMask) }

// key is a tuple as the words wordKey to wordPorts hold it, flags left out.
type key [5]uint64

// set fills the key in place: a returned array would be copied through memory.
func (w *key) set(k *packet.Tuple) {
	w[0], w[1] = binary.LittleEndian.Uint64(k.Src[0:8]), binary.LittleEndian.Uint64(k.Src[8:16])
	w[2], w[3] = binary.LittleEndian.Uint64(k.Dst[0:8]), binary.LittleEndian.Uint64(k.Dst[8:16])
	w[4] = uint64(k.SrcPort)<<48 | uint64(k.DstPort)<<32 | uint64(k.Proto)<<24 | uint64(k.Zone)<<8 | usedMark
}

func (w *key) tuple() packet.Tuple {
	return packet.Tuple{
		Src: addrOf(w[0], w[1]), Dst: addrOf(w[2], w[3]),
		SrcPort: uint16(w[4] >> 48), DstPort: uint16(w[4] >> 32), Proto: uint8(w[4] >> 24), Zone: uint16(w[4] >> 8), // the named bits
	}
}

func addrOf(a, b uint64) packet.Addr {
	var out packet.Addr
	binary.LittleEndian.PutUint64(out[0:8], a)
	binary.LittleEndian.PutUint64(out[8:16], b)
	return out
}

// read copies the slot to e when it holds key w, and returns the sequence
// number of that copy.
func (s *slot) read(w *key, e *Entry) (uint32, bool) {
	for range readTries {
		s0 := s[wordSeq].Load()
		if s0&1 != 0 {
			continue
		}
		ports := s[wordPorts].Load()
		if (ports^w[4])&^flagMask != 0 || s[wordKey].Load() != w[0] || s[wordKey+1].Load() != w[1] ||
			s[wordKey+2].Load() != w[2] || s[wordKey+3].Load() != w[3] {
			return 0, false
		}
		s.fill(e, s0, ports)
		if s[wordSeq].Load() == s0 {
			return low(s0), true
		}
	}
	return 0, false
}

// readTries bounds a reader that keeps meeting writers: it then reports a miss,
// and Insert, under the lock, tells it that the entry exists.
const readTries = 64

// fill copies everything but the key. The caller checks the sequence number.
func (s *slot) fill(e *Entry, s0, ports uint64) {
	e.Owner = high(s0)
	e.InGen = low(s[wordPartner].Load())
	e.Flags = flagsOf(ports)
	binary.LittleEndian.PutUint64(e.Rewrite.Src[0:8], s[wordRewrite].Load())
	binary.LittleEndian.PutUint64(e.Rewrite.Src[8:16], s[wordRewrite+1].Load())
	binary.LittleEndian.PutUint64(e.Rewrite.Dst[0:8], s[wordRewrite+2].Load())
	binary.LittleEndian.PutUint64(e.Rewrite.Dst[8:16], s[wordRewrite+3].Load())
	out := s[wordOut].Load()
	e.Rewrite.SrcPort, e.Rewrite.DstPort, e.Out = uint16(out>>48), uint16(out>>32), low(out) // the named bits
	gens := s[wordGens].Load()
	e.OutGen, e.FrontGen = high(gens), low(gens)
	a := activity(s[wordActivity].Load())
	e.LastSeen, e.State, e.FrontSlot = a.lastSeen(), a.state(), a.frontSlot()
	n, more := tally(s[wordTally].Load()), s[wordSpill].Load()
	e.Packets = n.packets() + more&(1<<spillShift-1)*spillPackets
	e.Bytes = n.bytes() + more>>spillShift*spillBytes
}

// snapshot copies the whole slot, key included; false when it is free or does
// not hold still.
func (s *slot) snapshot(w *key, e *Entry) (seq, partner uint32, ok bool) {
	for range readTries {
		s0 := s[wordSeq].Load()
		if s0&1 != 0 {
			continue
		}
		ports := s[wordPorts].Load()
		for i := range 4 {
			w[i] = s[wordKey+i].Load()
		}
		w[4] = ports &^ flagMask
		partner = high(s[wordPartner].Load())
		s.fill(e, s0, ports)
		if s[wordSeq].Load() == s0 {
			return low(s0), partner, ports&usedMark != 0
		}
	}
	return 0, 0, false
}

// begin makes the sequence number odd. The caller holds the stripe lock.
func (s *slot) begin() {
	s[wordSeq].Store(s[wordSeq].Load() | 1)
}

// end publishes what was written since begin.
func (s *slot) end(owner uint32) uint32 {
	seq := low(s[wordSeq].Load()|1) + 1
	if seq == 0 {
		seq = 2 // a Ref is never zero
	}
	s[wordSeq].Store(uint64(owner)<<32 | uint64(seq))
	return seq
}

// write fills the slot between begin and end.
func (s *slot) write(w *key, e *Entry, partner uint32) {
	for i := range 4 {
		s[wordKey+i].Store(w[i])
	}
	s[wordPorts].Store(w[4] | uint64(e.Flags&flagMask))
	s.writeVerdict(e, partner)
	s[wordActivity].Store(uint64(makeActivity(e.LastSeen, e.State, e.FrontSlot)))
	s.setTally(e.Packets, e.Bytes)
}

// writeVerdict fills the words that neither the key nor activity own.
func (s *slot) writeVerdict(e *Entry, partner uint32) {
	s[wordPartner].Store(uint64(partner)<<32 | uint64(e.InGen))
	s[wordRewrite].Store(binary.LittleEndian.Uint64(e.Rewrite.Src[0:8]))
	s[wordRewrite+1].Store(binary.LittleEndian.Uint64(e.Rewrite.Src[8:16]))
	s[wordRewrite+2].Store(binary.LittleEndian.Uint64(e.Rewrite.Dst[0:8]))
	s[wordRewrite+3].Store(binary.LittleEndian.Uint64(e.Rewrite.Dst[8:16]))
	s[wordOut].Store(uint64(e.Rewrite.SrcPort)<<48 | uint64(e.Rewrite.DstPort)<<32 | uint64(e.Out))
	s[wordGens].Store(uint64(e.OutGen)<<32 | uint64(e.FrontGen))
}

// activity is the word that packets change: last seen, state, FrontSlot.
type activity uint64

func makeActivity(seen uint32, st State, front uint16) activity {
	return activity(uint64(seen)<<32 | uint64(st)<<24 | uint64(front)<<8)
}

func (a activity) lastSeen() uint32  { return uint32(a >> 32) }
func (a activity) state() State      { return State(a >> 24) } // the named bits
func (a activity) frontSlot() uint16 { return uint16(a >> 8) } // the named bits

// tally is packets and bytes in one word, so that a packet costs one locked
// instruction and not two (6 ns of 38).
type tally uint64

const (
	tallyShift = 24
	tallyFull  = 1<<63 | 1<<(tallyShift-1) // a top bit: time to spill

	spillShift   = 28
	spillPackets = 1 << 10
	spillBytes   = 1 << 12
)

func (n tally) packets() uint64 { return uint64(n) & (1<<tallyShift - 1) }
func (n tally) bytes() uint64   { return uint64(n) >> tallyShift }

// spill moves whole units from the tally to the spill word.
func (s *slot) spill() {
	n := tally(s[wordTally].Load())
	if n&tallyFull == 0 {
		return
	}
	p, b := n.packets()/spillPackets, n.bytes()/spillBytes
	rest := n.bytes()%spillBytes<<tallyShift | n.packets()%spillPackets
	if s[wordTally].CompareAndSwap(uint64(n), rest) {
		s[wordSpill].Add(b<<spillShift + p)
	} // else a later packet does it: half of the range is left
}

// setTally stores totals.
func (s *slot) setTally(packets, bytes uint64) {
	s[wordTally].Store(bytes%spillBytes<<tallyShift | packets%spillPackets)
	s[wordSpill].Store(bytes/spillBytes<<spillShift | packets/spillPackets&(1<<spillShift-1))
}

// Tag words. A tag is one byte, never zero; zero means a free slot.

const (
	lowBytes  = 0x0101010101010101
	highBits  = 0x8080808080808080
	otherBits = 0x7f7f7f7f7f7f7f7f
)

func tagOf(h uint64) uint64 {
	tag := h >> 56
	if tag == 0 {
		return 1
	}
	return tag
}

// matchTags returns a word with the high bit of every byte set that equals tag.
func matchTags(word, tag uint64) uint64 {
	x := word ^ tag*lowBytes
	return ^(((x & otherBits) + otherBits) | x) & highBits
}

// firstTag returns the index of the lowest byte of a match.
func firstTag(m uint64) uint32 { return uint32(bits.TrailingZeros64(m)) / 8 } // 0 to 8

// setTag stores a tag; the caller holds the stripe lock of the bucket.
func (t *Table) setTag(i uint32, tag uint64) {
	word, shift := &t.tags[i/bucketSize], i%bucketSize*8
	word.Store(word.Load()&^(0xff<<shift) | tag<<shift)
}
