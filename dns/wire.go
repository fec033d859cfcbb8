package dns

import "encoding/binary"

// The layout of a message (RFC 1035 §4.1):
//
//	0      2       4       6       8       10      12
//	+------+-------+-------+-------+-------+-------+----------+------------
//	|  id  | flags |QDCOUNT|ANCOUNT|NSCOUNT|ARCOUNT| question | records ...
//	+------+-------+-------+-------+-------+-------+----------+------------
const (
	headerLen = 12
	optLen    = 11 // root name, type, size, extended code and flags, length 0

	maxName   = 255
	maxLabel  = 63
	maxLabels = 128

	flagQR     = 0x8000
	flagAA     = 0x0400
	flagTC     = 0x0200
	flagRD     = 0x0100
	flagAD     = 0x0020
	flagCD     = 0x0010
	maskOpcode = 0x7800
	maskRcode  = 0x000f

	rcodeSuccess  = 0
	rcodeFormat   = 1
	rcodeServer   = 2
	rcodeName     = 3
	rcodeNotImp   = 4
	rcodeRefused  = 5
	rcodeVersion  = 16 // BADVERS: its upper bits travel in OPT
	extVersion    = rcodeVersion >> 4
	classIN       = 1
	typeA         = 1
	typeNS        = 2
	typeCNAME     = 5
	typeSOA       = 6
	typePTR       = 12
	typeHINFO     = 13
	typeTXT       = 16
	typeAAAA      = 28
	typeSRV       = 33
	typeOPT       = 41
	typeTKEY      = 249
	typeTSIG      = 250
	typeIXFR      = 251
	typeAXFR      = 252
	typeMAILB     = 253
	typeMAILA     = 254
	typeANY       = 255
	pointerToName = 0xc00c // the name of the question
)

// name is a domain name on the wire, lower-cased, with the start of each label.
type name struct {
	wire   [maxName]byte
	off    [maxLabels]uint8
	len    int // bytes, the root label included
	labels int // without the root label
}

// parse reads an uncompressed name from the start of b and returns how many
// bytes it takes, 0 when it is malformed or compressed.
func (n *name) parse(b []byte) int {
	p, k := 0, 0
	for p < len(b) && p < maxName {
		c := int(b[p])
		if c == 0 {
			n.wire[p] = 0
			n.len, n.labels = p+1, k
			return p + 1
		}
		end := p + 1 + c
		if c > maxLabel || end >= maxName || end > len(b) {
			return 0
		}
		n.off[k] = uint8(p)
		k++
		n.wire[p] = byte(c)
		src, dst := b[p+1:end], n.wire[p+1:end]
		for i, x := range src {
			if x-'A' < 26 {
				x |= 0x20
			}
			dst[i] = x
		}
		p = end
	}
	return 0
}

// label returns the i-th label from the left.
func (n *name) label(i int) []byte {
	o := int(n.off[i])
	return n.wire[o+1 : o+1+int(n.wire[o])]
}

// start returns where the i-th label starts; for the number of labels that is
// the root label.
func (n *name) start(i int) int {
	if i >= n.labels {
		return n.len - 1
	}
	return int(n.off[i])
}

// from returns the name without its first i labels.
func (n *name) from(i int) []byte { return n.wire[n.start(i):n.len] }

// client is what a reply must know of the query it answers.
type client struct {
	flags uint16
	end   int // of the question section in the query
	limit int // bytes of the longest reply
	opt   bool
	do    bool
	udp   bool
}

// question is a parsed query.
type question struct {
	client
	name  name
	qtype uint16
}

// fault says why a query is not looked up.
type fault uint8

const (
	faultNone    fault = iota
	faultDrop          // not a query
	faultHeader        // FORMERR, and the question is not known
	faultFormat        // FORMERR
	faultOpcode        // NOTIMP
	faultType          // NOTIMP: a type that is no data
	faultRefused       // REFUSED: class or zone transfer
	faultVersion       // BADVERS
)

// parse reads a query. It never trusts a length and does not allocate.
func (q *question) parse(b []byte, udp bool) fault {
	if len(b) < headerLen || b[2]&(flagQR>>8) != 0 {
		return faultDrop
	}
	q.flags = binary.BigEndian.Uint16(b[2:])
	q.udp = udp
	q.limit = plainUDP
	if !udp {
		q.limit = maxMessage
	}
	if q.flags&maskOpcode != 0 {
		return faultOpcode
	}
	if binary.BigEndian.Uint16(b[4:]) != 1 { // RFC 9619
		return faultHeader
	}
	n := q.name.parse(b[headerLen:])
	p := headerLen + n
	if n == 0 || p+4 > len(b) {
		return faultHeader
	}
	q.qtype = binary.BigEndian.Uint16(b[p:])
	class := binary.BigEndian.Uint16(b[p+2:])
	q.end = p + 4
	if f := q.parseRest(b); f != faultNone {
		return f
	}
	switch {
	case class != classIN || q.qtype == typeAXFR || q.qtype == typeIXFR:
		return faultRefused
	case q.qtype == 0 || q.qtype == typeOPT:
		return faultFormat
	case q.qtype >= typeTKEY && q.qtype <= typeMAILA:
		return faultType
	}
	return faultNone
}

// parseRest reads what follows the question: at most one OPT and records that
// are skipped. Bytes behind the last record are an error.
func (q *question) parseRest(b []byte) fault {
	if binary.BigEndian.Uint32(b[6:]) == 0 {
		// Nearly every query: nothing more, or one OPT. A third of the time of
		// an answer went into the general case below.
		extra, rest := binary.BigEndian.Uint16(b[10:]), b[q.end:]
		switch {
		case extra == 0 && len(rest) == 0:
			return faultNone
		case extra == 1 && len(rest) >= optLen && rest[0] == 0 && rest[1] == 0 && rest[2] == typeOPT &&
			len(rest) == optLen+int(binary.BigEndian.Uint16(rest[9:])):
			return q.setOPT(rest[1:])
		}
	}
	if binary.BigEndian.Uint16(b[6:]) != 0 ||
		binary.BigEndian.Uint16(b[8:]) != 0 && q.qtype != typeIXFR {
		return faultFormat
	}
	end, opt := q.end, 0
	var r record
	for it := recordsOf(b, q.end); it.left(); end = r.end {
		if !it.next(&r) {
			return faultFormat
		}
		if r.rtype != typeOPT {
			continue
		}
		if opt != 0 || r.section != 2 || r.fixed != r.start+1 { // RFC 6891 §6.1.1: one, owner is the root
			return faultFormat
		}
		opt = r.fixed
	}
	switch {
	case end != len(b):
		return faultFormat
	case opt != 0:
		return q.setOPT(b[opt:])
	}
	return faultNone
}

// setOPT reads an OPT record from its type on (RFC 6891 §6.1.2).
//
//	type 2 | size 2 | extended code 1 | version 1 | DO and zeros 2 | length 2
func (q *question) setOPT(b []byte) fault {
	q.opt = true
	q.do = b[6]&0x80 != 0
	if q.udp {
		q.limit = min(max(int(binary.BigEndian.Uint16(b[2:])), plainUDP), MaxUDP)
	}
	if b[5] != 0 {
		return faultVersion
	}
	return faultNone
}

// record is where one resource record lies in a message.
type record struct {
	section int // 0 answer, 1 authority, 2 additional
	start   int
	fixed   int // of type, class, TTL, length: behind the owner name
	data    int
	end     int
	rtype   uint16
}

// records walks over the resource records of a message.
type records struct {
	msg     []byte
	off     int
	count   [3]uint16
	section int
}

// recordsOf starts at off, which is behind the question. msg has a header.
func recordsOf(msg []byte, off int) records {
	return records{msg: msg, off: off, count: [3]uint16{
		binary.BigEndian.Uint16(msg[6:]), binary.BigEndian.Uint16(msg[8:]), binary.BigEndian.Uint16(msg[10:]),
	}}
}

// left reports whether the header promises another record.
func (r *records) left() bool {
	for r.section < 3 && r.count[r.section] == 0 {
		r.section++
	}
	return r.section < 3
}

// next reads the record that left promised; false when it is malformed.
func (r *records) next(rec *record) bool {
	p := skipName(r.msg, r.off)
	if p == 0 || p+10 > len(r.msg) {
		return false
	}
	end := p + 10 + int(binary.BigEndian.Uint16(r.msg[p+8:]))
	if end > len(r.msg) {
		return false
	}
	*rec = record{
		section: r.section, start: r.off, fixed: p, data: p + 10, end: end,
		rtype: binary.BigEndian.Uint16(r.msg[p:]),
	}
	r.count[r.section]--
	r.off = end
	return true
}

// skipName returns the end of the name at off, 0 when it is malformed. A
// pointer must point back, so that no chain of them can loop.
func skipName(msg []byte, off int) int {
	for p, n := off, 0; p < len(msg); {
		c := int(msg[p])
		switch {
		case c == 0:
			return p + 1
		case c >= 0xc0:
			if p+2 > len(msg) {
				return 0
			}
			if to := (c&0x3f)<<8 | int(msg[p+1]); to < headerLen || to >= off {
				return 0
			}
			return p + 2
		case c > maxLabel:
			return 0
		}
		p += 1 + c
		if n += 1 + c; n >= maxName {
			return 0
		}
	}
	return 0
}

// truncate cuts a message at a record so that it is no longer than limit. The
// additional section goes first and silently (RFC 2181 §9); TC is set when a
// record of the answer or authority section had to go. Pointers point back,
// so what stays is whole.
func truncate(msg []byte, question, limit int) []byte {
	if len(msg) <= limit {
		return msg
	}
	var kept [3]uint16
	end, cut := question, false
	var r record
	for it := recordsOf(msg, question); it.left(); {
		if !it.next(&r) || r.end > limit {
			cut = it.section < 2 || r.section < 2
			break
		}
		kept[r.section]++
		end = r.end
	}
	for i, n := range kept {
		binary.BigEndian.PutUint16(msg[6+2*i:], n)
	}
	if cut {
		msg[2] |= flagTC >> 8
	}
	return msg[:end]
}

// start writes header and question of a reply: counts are 0.
func (c *client) start(out, query []byte, flags uint16) []byte {
	out = append(out[:0], query[:c.end]...)
	binary.BigEndian.PutUint16(out[2:], flags|flagQR|c.flags&(flagRD|flagCD))
	clear(out[6:headerLen])
	return out
}

// finish appends OPT when the client sent one; rcode is the whole response
// code, of which OPT carries the upper bits.
func (c *client) finish(out []byte, rcode uint16) []byte {
	if !c.opt {
		return out
	}
	binary.BigEndian.PutUint16(out[10:], binary.BigEndian.Uint16(out[10:])+1)
	do := byte(0)
	if c.do {
		do = 0x80
	}
	return append(out, 0, 0, typeOPT, MaxUDP>>8, MaxUDP&0xff, byte(rcode>>4), 0, do, 0, 0, 0)
}

// room is how long a reply may be before finish.
func (c *client) room() int {
	if c.opt {
		return c.limit - optLen
	}
	return c.limit
}

// fail writes a reply without records. It is never longer than the query.
func (c *client) fail(out, query []byte, rcode uint16) []byte {
	if c.end == 0 { // the question is not known: the header alone
		out = append(out[:0], query[:headerLen]...)
		binary.BigEndian.PutUint16(out[2:], flagQR|c.flags&(maskOpcode|flagRD|flagCD)|rcode&maskRcode)
		clear(out[4:headerLen])
		return out
	}
	return c.finish(c.start(out, query, rcode&maskRcode), rcode)
}
