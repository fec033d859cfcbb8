package proxy

import (
	"encoding/binary"
)

// generations is the number of generation slots. A change of one frontend asks
// the flows of 1/4096 of the others to be judged once more, which costs each a
// microsecond and changes nothing.
const generations = 4096

// slot returns the generation slot of a key.
func (k frontKey) slot() uint16 {
	h := newDigest()
	h.key(k)
	return uint16(h.sum() >> 32 % generations)
}

// digest is FNV-1a with the types that frontends are made of. It only has to
// tell changes apart: who can choose endpoints can change them anyway.
type digest struct{ h uint64 }

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func newDigest() *digest { return &digest{h: fnvOffset} }

func (d *digest) bytes(b []byte) {
	for _, c := range b {
		d.h = (d.h ^ uint64(c)) * fnvPrime
	}
}

func (d *digest) number(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	d.bytes(b[:])
}

func (d *digest) text(s string) {
	d.number(uint64(len(s)))
	d.bytes([]byte(s))
}

func (d *digest) key(k frontKey) {
	d.bytes(k.addr[:])
	d.number(uint64(k.port)<<16 | uint64(k.proto)<<8 | uint64(k.family))
}

func (d *digest) backends(list []Backend) {
	d.number(uint64(len(list)))
	for i := range list {
		d.bytes(list[i].Addr[:])
		d.number(uint64(list[i].Port))
	}
}

// sum is the hash, mixed so that every bit depends on the last byte too.
func (d *digest) sum() uint64 {
	h := d.h
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// seal computes the hash of a finished frontend.
func (f *Frontend) seal() *Frontend {
	d := newDigest()
	d.text(f.Service.Namespace)
	d.text(f.Service.Name)
	d.text(f.Port)
	d.key(f.key)
	d.number(uint64(f.kind))
	d.backends(f.backends)
	d.backends(f.outside)
	d.backends(f.serving)
	if f.split {
		d.number(1)
	}
	for _, p := range f.sources {
		d.text(p.String())
	}
	d.number(uint64(f.timeout))
	if f.maglev { // which of the backends it is only matters to what comes
		d.number(2)
	}
	f.sum, f.slot = d.sum(), f.key.slot()
	return f
}

// count adds a frontend to the generations, or with -1 takes it out: they are
// sums, so that the order of frontends does not matter.
func (t *Table) count(f *Frontend, sign int32) {
	g := &t.generations[f.slot]
	*g += uint32(sign) * uint32(f.sum>>32^f.sum&(1<<32-1)) // modulo 2^32; 32 bits by the mask
}

func (t *Table) countPort(p *nodePort, sign int32) {
	t.count(p.own, sign)
	t.count(p.other, sign)
	for _, f := range p.nodes {
		t.count(f, sign)
	}
}
