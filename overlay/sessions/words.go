package sessions

import (
	"encoding/binary"
	"hash/fnv"
	"sync/atomic"
)

// seal is the checksum of a slot's immutable words, and never zero.
func seal(slot []atomic.Uint64) uint64 { return checksum(slot[1:sealed]) | 1 }

func checksum(w []atomic.Uint64) uint64 {
	h := fnv.New64a()
	var b [8]byte
	for i := range w {
		binary.LittleEndian.PutUint64(b[:], w[i].Load())
		_, _ = h.Write(b[:]) // a hash never fails
	}
	return h.Sum64()
}

// digest names a text, such as the epoch, in one word.
func digest(s []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(s) // a hash never fails
	return h.Sum64()
}

func putKey(w []atomic.Uint64, key *[KeySize]byte) {
	for i := range KeySize / 8 {
		w[i].Store(binary.LittleEndian.Uint64(key[i*8:]))
	}
}

func getKey(w []atomic.Uint64, key *[KeySize]byte) {
	for i := range KeySize / 8 {
		binary.LittleEndian.PutUint64(key[i*8:], w[i].Load())
	}
}
