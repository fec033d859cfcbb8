package proxy

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/portable"
)

// This file is the affinities for another version of the program, whose file has
// another layout. Numbers of fields are for ever.

//nolint:gochecknoglobals // a description known at compile time
var affinityTitle = portable.Title{Kind: "affinities", Version: 1}

// The fields of a message. What it is about is the first.
const (
	fieldAbout = 1 // aboutAll or aboutClient; others are skipped

	fieldEpoch = 2 // of aboutAll, which comes first: whose seconds the times are

	fieldPin     = 2 // of aboutClient
	fieldClient  = 3
	fieldBackend = 4
	fieldPort    = 5
	fieldSeen    = 6

	aboutAll    = 1
	aboutClient = 2

	// maxClientStream bounds what Import reads: 64 MiB above what its entries
	// need.
	maxClientStream = 64 << 20
	clientBytes     = 96
)

// Export writes every client for Import, by this or another version of the
// program.
func (a *Affinity) Export(w io.Writer) error {
	var all []imported // a copy: nobody waits for w under a lock
	a.each(func(e *pinned) bool {
		all = append(all, imported{client: e.client(), backend: e.backend(), seen: e.last().seen()})
		return true
	})
	out := portable.NewWriter(w, affinityTitle)
	var m portable.Message
	m.Uint(fieldAbout, aboutAll)
	m.Bytes(fieldEpoch, []byte(a.cfg.Epoch))
	_ = out.Write(m) // Close has the error
	for i := range all {
		d := &all[i]
		addr := addrOf(d.client.addr)
		m = m[:0]
		m.Uint(fieldAbout, aboutClient)
		m.Uint(fieldPin, d.client.pin)
		m.Bytes(fieldClient, addr[:])
		m.Bytes(fieldBackend, d.backend.Addr[:])
		m.Uint(fieldPort, uint64(d.backend.Port))
		m.Uint(fieldSeen, uint64(d.seen))
		_ = out.Write(m) // Close has the error
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("export the affinities: %w", err)
	}
	return nil
}

// Import adds the clients that Export wrote and returns how many. Of a client
// that is known already what is newer stays. A stream that is torn, damaged or
// too long, that says what cannot be or is of another epoch changes nothing and
// is an error; what this version does not know is skipped.
func (a *Affinity) Import(r io.Reader) (int, error) {
	n, err := a.importFrom(r)
	if err != nil {
		return 0, fmt.Errorf("import affinities: %w", err)
	}
	return n, nil
}

func (a *Affinity) importFrom(r io.Reader) (int, error) {
	s, err := portable.Read(r, affinityTitle, maxClientStream+a.file.Units()*clientBytes)
	if err != nil {
		return 0, err
	}
	var found []imported
	begun := false
	for m := range s.Messages() {
		var d imported
		if err := m.Each(d.field); err != nil {
			return 0, err
		}
		switch {
		case d.about == aboutAll && d.epoch != a.cfg.Epoch:
			return 0, errors.New("from another boot")
		case d.about == aboutAll:
			begun = true
		case d.about == aboutClient && (!begun || !d.hasClient || !d.hasBackend):
			return 0, errors.New("damaged: a client without its addresses, or before the clock that its time is of")
		case d.about == aboutClient:
			found = append(found, d)
		}
	}
	if !begun {
		return 0, errors.New("damaged: it does not say whose clock its times are of")
	}
	n := 0
	for i := range found {
		if a.put(&found[i]) {
			n++
		}
	}
	return n, nil
}

// imported is a message as far as it was read.
type imported struct {
	about   uint64
	epoch   string
	client  client
	backend Backend
	seen    uint32

	hasClient, hasBackend bool
}

func (d *imported) field(field, v uint64, b []byte) (err error) {
	switch {
	case field == fieldAbout:
		d.about = v
	case d.about == aboutAll && field == fieldEpoch:
		d.epoch = string(b)
	case d.about != aboutClient:
	case field == fieldPin:
		d.client.pin = v
	case field == fieldClient:
		var addr packet.Addr
		d.hasClient, err = true, setAddr(&addr, b)
		d.client.addr = wordsOf(addr)
	case field == fieldBackend:
		d.hasBackend, err = true, setAddr(&d.backend.Addr, b)
	case field == fieldPort:
		d.backend.Port, err = uint16(v), atMost(v, math.MaxUint16) // checked
	case field == fieldSeen:
		d.seen, err = uint32(v), atMost(v, math.MaxUint32) // checked
	}
	return err
}

func setAddr(to *packet.Addr, b []byte) error {
	if len(b) != len(to) {
		return fmt.Errorf("damaged: an address of %d bytes", len(b))
	}
	copy(to[:], b)
	return nil
}

func atMost(v, bound uint64) error {
	if v > bound {
		return fmt.Errorf("damaged: %d is more than %d", v, bound)
	}
	return nil
}

// put takes a client in, unless what is there is newer.
func (a *Affinity) put(d *imported) bool {
	s, set := a.home(&d.client)
	a.lock(s)
	defer a.unlock(s)
	e, _ := choosePinned(set, &d.client, d.seen)
	was := e.last()
	if was.used() && int32(d.seen-was.seen()) < 0 { // wraps on purpose
		return false
	}
	if !was.used() {
		s.head[wordUsed].Add(1)
	}
	e.write(&d.client, d.backend, d.seen)
	return true
}
