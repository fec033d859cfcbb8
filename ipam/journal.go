package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"net/netip"
	"unicode/utf8"
)

// The record of a pool is two files of lines:
//
//	snapshot   everything up to a sequence number; replaced as a whole
//	journal    what happened since, one line appended per change
//
// A line is eight hex digits of CRC-32C, a space, a JSON object and a newline.
// Each has a sequence number; the journal's lines up to the snapshot's number
// are ignored, so a kill between replacing the snapshot and emptying the
// journal does no harm. A line that does not check is skipped, and counted.
//
// What is forced to the disk: the snapshot, before it replaces the old one. The
// journal is not: a line is in the kernel's hands when append returns, which is
// all that the death of a process can ask for; and when the machine dies, so do
// the pods whose addresses it held.

// op is what a line says.
type op string

const (
	opHeader op = "snapshot" // first line of a snapshot
	opAdd    op = "add"      // a lease
	opFree   op = "free"     // snapshot: a released address, oldest first; journal: the end of a lease
)

// line is one line of either file.
type line struct {
	Op   op           `json:"op"`
	Seq  uint64       `json:"seq"`
	Time int64        `json:"t,omitempty"` // Unix milliseconds
	CID  string       `json:"cid,omitempty"`
	If   string       `json:"if,omitempty"`
	UID  string       `json:"uid,omitempty"`
	Addr []netip.Addr `json:"a,omitempty"`
	// of the header
	Version int `json:"version,omitempty"`
	Lines   int `json:"lines,omitempty"` // how many follow
}

// recordVersion is the version of the format. A newer one is refused.
const recordVersion = 1

// maxLine bounds a line; identities are bounded by checkID.
const maxLine = 4096

//nolint:gochecknoglobals // a table known at compile time
var crcTable = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the eight digits that a line begins with.
func checksum(text []byte) string {
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], crc32.Checksum(text, crcTable))
	return hex.EncodeToString(sum[:])
}

// appendLine appends a line's text to b.
func appendLine(b []byte, l line) ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return b, err
	}
	if len(text)+10 > maxLine {
		return b, errors.New("line too long")
	}
	b = append(b, checksum(text)...)
	b = append(b, ' ')
	b = append(b, text...)
	return append(b, '\n'), nil
}

// errLine is a line that does not check.
var errLine = errors.New("damaged line")

// parseLine reads a line without its newline.
func parseLine(b []byte) (line, error) {
	var l line
	if len(b) < 10 || len(b) > maxLine || b[8] != ' ' {
		return l, errLine
	}
	if string(b[:8]) != checksum(b[9:]) || !utf8.Valid(b) {
		return l, errLine
	}
	if err := json.Unmarshal(b[9:], &l); err != nil {
		return l, errLine
	}
	return l, l.check()
}

// check reports whether a line makes sense by itself.
func (l line) check() error {
	seen4, seen6 := false, false
	for _, a := range l.Addr {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || (a.Is4() && seen4) || (a.Is6() && seen6) {
			return errLine
		}
		seen4, seen6 = seen4 || a.Is4(), seen6 || a.Is6()
	}
	switch l.Op {
	case opHeader:
		return nil
	case opAdd:
		if len(l.Addr) == 0 {
			return errLine
		}
		return checkID(ID{l.CID, l.If})
	case opFree:
		if len(l.Addr) == 0 {
			return errLine
		}
		return nil
	default:
		return errLine
	}
}

// readLines calls f with every line that checks, in order, and returns how many
// did not and where the last complete one ends. A tail without a newline is an
// append that was cut short: it did not happen, and is not damage.
func readLines(data []byte, f func(line)) (bad int, end int) {
	for len(data) > end {
		i := bytes.IndexByte(data[end:], '\n')
		if i < 0 {
			return bad, end
		}
		if l, err := parseLine(data[end : end+i]); err != nil {
			bad++
		} else {
			f(l)
		}
		end += i + 1
	}
	return bad, end
}
