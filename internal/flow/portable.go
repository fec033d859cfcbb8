package flow

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/portable"
)

// This file is the table for another version of the program: see the package's
// comment on versions. Numbers of fields, states and flags are for ever.

//nolint:gochecknoglobals // a description known at compile time
var streamTitle = portable.Title{Kind: "flows", Version: 1}

// The fields of a message. What it is about is the first.
const (
	fieldAbout = 1 // aboutTable or aboutConnection; others are skipped

	fieldEpoch = 2 // of aboutTable, which comes first: whose seconds the times are

	fieldForward = 2 // of aboutConnection: messages
	fieldReverse = 3
	fieldOwner   = 4
	fieldState   = 5

	aboutTable      = 1
	aboutConnection = 2
)

// The fields of a direction.
const (
	fieldSrc = 1 + iota
	fieldDst
	fieldSrcPort
	fieldDstPort
	fieldProto
	fieldZone
	fieldNewSrc
	fieldNewDst
	fieldNewSrcPort
	fieldNewDstPort
	fieldOut
	fieldInGen
	fieldOutGen
	fieldFrontGen
	fieldFrontSlot
	fieldFlags
	fieldLastSeen
	fieldPackets
	fieldBytes
)

// pair is a connection: the tuples and entries of both directions.
type pair struct {
	k [2]packet.Tuple
	e [2]Entry
}

// Export writes every connection for Import, by this or another version of the
// program. Connections that come, go or change meanwhile may be written as they
// were or left out: a table at rest is written whole.
func (t *Table) Export(w io.Writer) error {
	return t.export(w, func(*pair) bool { return true })
}

// ExportSince is Export of the connections in which a packet was seen at a time or
// later: what has come or changed since an Export that began then, or a little after.
func (t *Table) ExportSince(w io.Writer, at uint32) error {
	return t.export(w, func(p *pair) bool { return after(p.e[0].LastSeen, at) >= 0 || after(p.e[1].LastSeen, at) >= 0 })
}

func (t *Table) export(w io.Writer, wanted func(*pair) bool) error {
	out := portable.NewWriter(w, streamTitle)
	var m, dir portable.Message
	m.Uint(fieldAbout, aboutTable)
	m.Bytes(fieldEpoch, []byte(t.epoch))
	err := out.Write(m)
	t.eachPair(func(p *pair) bool {
		if !wanted(p) {
			return true
		}
		m = m[:0]
		m.Uint(fieldAbout, aboutConnection)
		for i, field := range [2]uint64{fieldForward, fieldReverse} {
			dir = appendDirection(dir[:0], &p.k[i], &p.e[i])
			m.Bytes(field, dir)
		}
		m.Uint(fieldOwner, uint64(p.e[0].Owner))
		m.Uint(fieldState, uint64(p.e[0].State))
		err = out.Write(m)
		return err == nil
	})
	if err := out.Close(); err != nil {
		return fmt.Errorf("export the flow table: %w", err)
	}
	return nil
}

// eachPair calls f for every connection until it returns false.
func (t *Table) eachPair(f func(p *pair) bool) {
	var p pair
	t.each(func(i, seq uint32, w *key, e *Entry) bool {
		if e.Flags&FlagReverse != 0 {
			return true
		}
		p.k[0], p.e[0] = w.tuple(), *e
		if _, ok := t.Pair(makeRef(i, seq), &p.k[1], &p.e[1]); !ok {
			return true
		}
		return f(&p)
	})
}

func appendDirection(m portable.Message, k *packet.Tuple, e *Entry) portable.Message {
	m.Bytes(fieldSrc, k.Src[:])
	m.Bytes(fieldDst, k.Dst[:])
	m.Bytes(fieldNewSrc, e.Rewrite.Src[:])
	m.Bytes(fieldNewDst, e.Rewrite.Dst[:])
	for _, f := range [...]struct{ field, v uint64 }{
		{fieldSrcPort, uint64(k.SrcPort)},
		{fieldDstPort, uint64(k.DstPort)},
		{fieldProto, uint64(k.Proto)},
		{fieldZone, uint64(k.Zone)},
		{fieldNewSrcPort, uint64(e.Rewrite.SrcPort)},
		{fieldNewDstPort, uint64(e.Rewrite.DstPort)},
		{fieldOut, uint64(e.Out)},
		{fieldInGen, uint64(e.InGen)},
		{fieldOutGen, uint64(e.OutGen)},
		{fieldFrontGen, uint64(e.FrontGen)},
		{fieldFrontSlot, uint64(e.FrontSlot)},
		{fieldFlags, uint64(e.Flags &^ FlagReverse)},
		{fieldLastSeen, uint64(e.LastSeen)},
		{fieldPackets, e.Packets},
		{fieldBytes, e.Bytes},
	} {
		m.Uint(f.field, f.v)
	}
	return m
}

// Import adds the connections that Export wrote and returns how many. One that
// the table has is replaced, so what changed since an earlier Import can be had
// with another.
//
// A stream that is torn, damaged or too long, that says what cannot be or is of
// another epoch changes nothing and is an error: all of it is checked before the
// first connection is taken. What this version does not know is skipped; a
// connection in a state, or with a flag, that it does not know is left out, for
// its next packet to be judged anew; so is one for which there is no room, since
// nothing is evicted for it.
func (t *Table) Import(r io.Reader) (int, error) {
	n, err := t.importFrom(r)
	if err != nil {
		return n, fmt.Errorf("import into the flow table: %w", err)
	}
	return n, nil
}

func (t *Table) importFrom(r io.Reader) (int, error) {
	s, err := portable.Read(r, streamTitle, maxStream+int(t.nslots)*slotBytes) // at most 16 GiB
	if err != nil {
		return 0, err
	}
	for _, add := range []bool{false, true} {
		n, begun := 0, false
		for m := range s.Messages() {
			d := decoder{table: t, begun: begun}
			if err := m.Each(d.field); err != nil {
				return 0, err
			}
			ok, err := d.done()
			if err != nil {
				return 0, err
			}
			begun = d.begun
			if add && ok && t.replace(&d.p) {
				n++
			}
		}
		if !begun {
			return 0, errNotBegun
		}
		if add {
			return n, nil
		}
	}
	return 0, nil
}

// maxStream bounds what Import reads, above the size of the table's slots.
const maxStream = 64 << 20

var (
	errNotBegun = errors.New("damaged: it does not say whose clock its times are of")
	errEpoch    = errors.New("from another boot")
)

// decoder reads one message.
type decoder struct {
	table *Table
	begun bool // the epoch was compared

	about   uint64
	epoch   string
	dirs    [2][]byte
	owner   uint64
	state   uint64
	p       pair
	unknown bool
}

func (d *decoder) field(field, v uint64, b []byte) error {
	switch {
	case field == fieldAbout:
		d.about = v
	case d.about == aboutTable && field == fieldEpoch:
		d.epoch = string(b)
	case d.about != aboutConnection:
	case field == fieldForward:
		d.dirs[0] = b
	case field == fieldReverse:
		d.dirs[1] = b
	case field == fieldOwner:
		d.owner = v
	case field == fieldState:
		d.state = v
	}
	return nil
}

// done judges the message, and reports whether it is a connection for the table.
func (d *decoder) done() (bool, error) {
	switch d.about {
	case aboutTable:
		if d.begun = true; d.epoch != d.table.epoch {
			return false, errEpoch
		}
		return false, nil
	case aboutConnection:
	default:
		return false, nil
	}
	if !d.begun {
		return false, errNotBegun
	}
	for i := range d.dirs {
		if err := d.direction(i); err != nil {
			return false, err
		}
	}
	if d.p.k[0] == d.p.k[1] || d.state == 0 || d.owner > math.MaxUint32 {
		return false, fmt.Errorf("damaged: connection %v in state %d of owner %d", d.p.k[0], d.state, d.owner)
	}
	for i := range d.p.e {
		e := &d.p.e[i]
		e.State, e.Owner = State(min(d.state, uint64(numStates))), uint32(d.owner) // both were checked
	}
	d.p.e[1].Flags |= FlagReverse
	return !d.unknown && d.state < uint64(numStates), nil
}

// direction reads one side of a connection.
func (d *decoder) direction(i int) error {
	k, e := &d.p.k[i], &d.p.e[i]
	seen := 0
	err := portable.Message(d.dirs[i]).Each(func(field, v uint64, b []byte) error {
		switch field {
		case fieldSrc:
			seen |= 1
			return setAddr(&k.Src, b)
		case fieldDst:
			seen |= 2
			return setAddr(&k.Dst, b)
		case fieldNewSrc:
			seen |= 4
			return setAddr(&e.Rewrite.Src, b)
		case fieldNewDst:
			seen |= 8
			return setAddr(&e.Rewrite.Dst, b)
		default:
			return d.number(k, e, field, v)
		}
	})
	if err == nil && seen != 15 {
		err = errors.New("damaged: a connection without its addresses")
	}
	return err
}

// number stores a field that is no address.
func (d *decoder) number(k *packet.Tuple, e *Entry, field, v uint64) error {
	fits := true
	switch field {
	case fieldSrcPort:
		fits = set(&k.SrcPort, v)
	case fieldDstPort:
		fits = set(&k.DstPort, v)
	case fieldProto:
		fits = set(&k.Proto, v)
	case fieldZone:
		fits = set(&k.Zone, v)
	case fieldNewSrcPort:
		fits = set(&e.Rewrite.SrcPort, v)
	case fieldNewDstPort:
		fits = set(&e.Rewrite.DstPort, v)
	case fieldOut:
		fits = set(&e.Out, v)
	case fieldInGen:
		fits = set(&e.InGen, v)
	case fieldOutGen:
		fits = set(&e.OutGen, v)
	case fieldFrontGen:
		fits = set(&e.FrontGen, v)
	case fieldFrontSlot:
		fits = set(&e.FrontSlot, v)
	case fieldLastSeen:
		fits = set(&e.LastSeen, v)
	case fieldFlags:
		e.Flags = Flags(v & uint64(flagEnd-1) &^ uint64(FlagReverse)) // known ones
		d.unknown = d.unknown || v >= uint64(flagEnd)
	case fieldPackets:
		e.Packets = v
	case fieldBytes:
		e.Bytes = v
	}
	if !fits {
		return fmt.Errorf("damaged: field %d of a direction is %d", field, v)
	}
	return nil
}

// set stores v, and reports whether it fits.
func set[T uint8 | uint16 | uint32](to *T, v uint64) bool {
	*to = T(v) // compared below
	return uint64(*to) == v
}

func setAddr(to *packet.Addr, b []byte) error {
	if len(b) != len(to) {
		return fmt.Errorf("damaged: an address of %d bytes", len(b))
	}
	copy(to[:], b)
	return nil
}

// replace puts a connection into the table as it is, in place of the one with
// its tuples, and reports whether there was room.
func (t *Table) replace(p *pair) bool {
	homes := [2]home{t.homeOf(&p.k[0]), t.homeOf(&p.k[1])}
	for range insertTries {
		ref, res, _ := t.insertOnce(&homes, &p.e)
		if res != Exists {
			return res == Inserted
		}
		var k packet.Tuple
		var e Entry
		if _, ok := t.Pair(ref, &k, &e); ok && k != p.k[1] {
			return false // another connection of its opener
		}
		t.remove(ref)
	}
	return false
}
