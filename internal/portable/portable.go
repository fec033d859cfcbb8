// Package portable writes what a process knows so that another version of the
// program can read it. A mapped file has a layout, which changes; this encoding
// names every field by a number, so that a reader skips what it does not know and
// takes what is missing for zero.
//
//	stream   "netctl KIND VERSION\n" | chunks | 0, 4 bytes | CRC-32C of all before, 4 bytes
//	chunk    length, 4 bytes big-endian | messages
//	message  length | fields
//	field    number*2   | value            a number
//	         number*2+1 | length | bytes   anything else, messages too
//
// Lengths, numbers and values without a size are varints as in encoding/binary.
// A stream ends where it says, so that more may follow it on a connection.
//
// # Rules
//
//   - A field keeps its number and its meaning for ever; a new meaning is a new
//     number. Only what an old reader must not read at all is a new VERSION.
//   - Read gives nothing of a stream that is cut, damaged, too long or of
//     another kind or version: what it gives is whole.
//   - What the fields say is untrusted all the same, and checked by whoever gives
//     them a meaning.
//
// Tests: round trips, every kind of damage, and a fuzz target of the reader.
package portable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
)

const (
	// chunkSize is where a chunk ends, maxChunk what a reader takes.
	chunkSize  = 64 << 10
	maxChunk   = 1 << 20
	maxMessage = maxChunk - binary.MaxVarintLen32
	maxTitle   = 64
)

//nolint:gochecknoglobals // a table known at compile time
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Message is a list of fields.
type Message []byte //nolint:recvcheck // only appending changes it

// Uint appends a number. Zero is left out: it is what a reader takes for it.
func (m *Message) Uint(field, v uint64) {
	if v != 0 {
		*m = binary.AppendUvarint(binary.AppendUvarint(*m, field<<1), v)
	}
}

// Bytes appends bytes. None are left out.
func (m *Message) Bytes(field uint64, b []byte) {
	if len(b) > 0 {
		*m = binary.AppendUvarint(binary.AppendUvarint(*m, field<<1|1), uint64(len(b)))
		*m = append(*m, b...)
	}
}

// ErrMalformed is what is wrong with a message whose fields do not add up.
var ErrMalformed = errors.New("malformed message")

// Each calls f with the fields in their order, numbers as v and everything else
// as b, which is part of the message. It ends with f's first error.
func (m Message) Each(f func(field, v uint64, b []byte) error) error {
	for rest := []byte(m); len(rest) > 0; {
		tag, n := binary.Uvarint(rest)
		if n <= 0 {
			return ErrMalformed
		}
		rest = rest[n:]
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return ErrMalformed
		}
		rest = rest[n:]
		var b []byte
		if tag&1 != 0 {
			if v > uint64(len(rest)) {
				return ErrMalformed
			}
			b, rest, v = rest[:v:v], rest[v:], 0
		}
		if err := f(tag>>1, v, b); err != nil {
			return err
		}
	}
	return nil
}

// Title names a kind of stream and the version of its rules.
type Title struct {
	Kind    string
	Version int
}

func (t Title) line() string { return fmt.Sprintf("netctl %s %d\n", t.Kind, t.Version) }

// Writer writes a stream.
type Writer struct {
	w     io.Writer
	chunk []byte // its length first
	sum   uint32
	err   error
}

// NewWriter begins a stream.
func NewWriter(w io.Writer, t Title) *Writer {
	out := &Writer{w: w, chunk: make([]byte, 4, chunkSize)}
	out.write([]byte(t.line()))
	return out
}

// Write adds a message. An error is Close's as well.
func (w *Writer) Write(m Message) error {
	if len(m) > maxMessage && w.err == nil {
		w.err = fmt.Errorf("a message of %d bytes is longer than %d", len(m), maxMessage)
	}
	if len(w.chunk)+len(m)+binary.MaxVarintLen32 > chunkSize {
		w.flush()
	}
	w.chunk = append(binary.AppendUvarint(w.chunk, uint64(len(m))), m...)
	return w.err
}

func (w *Writer) flush() {
	if len(w.chunk) > 4 {
		binary.BigEndian.PutUint32(w.chunk, uint32(len(w.chunk)-4)) // at most maxChunk
		w.write(w.chunk)
	}
	w.chunk = w.chunk[:4]
}

func (w *Writer) write(b []byte) {
	if w.err == nil {
		w.sum = crc32.Update(w.sum, castagnoli, b)
		_, w.err = w.w.Write(b)
	}
}

// Close ends the stream. It does not close what it writes to.
func (w *Writer) Close() error {
	w.flush()
	w.write(make([]byte, 4))
	w.write(binary.BigEndian.AppendUint32(nil, w.sum))
	return w.err
}

// Stream is what was read: whole, in memory.
type Stream struct{ chunks [][]byte }

// Read reads a stream of a kind to its end and not further. It fails when the
// stream is longer than limit bytes.
func Read(r io.Reader, t Title, limit int) (*Stream, error) {
	in := &summed{r: r, left: limit}
	if err := in.title(t); err != nil {
		return nil, err
	}
	var s Stream
	for {
		var head [4]byte
		if err := in.read(head[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 {
			break
		}
		if n > maxChunk {
			return nil, fmt.Errorf("%s: damaged: a chunk of %d bytes", t.Kind, n)
		}
		chunk := make([]byte, n)
		if err := in.read(chunk); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Kind, err)
		}
		if err := checkChunk(chunk); err != nil {
			return nil, fmt.Errorf("%s: damaged: %w", t.Kind, err)
		}
		s.chunks = append(s.chunks, chunk)
	}
	want := in.sum
	var sum [4]byte
	if err := in.read(sum[:]); err != nil {
		return nil, fmt.Errorf("%s: %w", t.Kind, err)
	}
	if binary.BigEndian.Uint32(sum[:]) != want {
		return nil, fmt.Errorf("%s: damaged: the checksum does not match", t.Kind)
	}
	return &s, nil
}

// Messages returns the messages in their order.
func (s *Stream) Messages() iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for _, chunk := range s.chunks {
			for len(chunk) > 0 {
				n, head := binary.Uvarint(chunk) // was checked
				end := head + int(n)             // at most the chunk
				if !yield(Message(chunk[head:end:end])) {
					return
				}
				chunk = chunk[end:]
			}
		}
	}
}

// checkChunk checks that a chunk consists of messages.
func checkChunk(b []byte) error {
	for len(b) > 0 {
		n, head := binary.Uvarint(b)
		if head <= 0 || n > uint64(len(b)-head) { // not negative
			return ErrMalformed
		}
		b = b[head+int(n):] // at most its length
	}
	return nil
}

// summed reads a bounded number of bytes and sums them up.
type summed struct {
	r    io.Reader
	left int
	sum  uint32
}

func (s *summed) read(b []byte) error {
	if s.left -= len(b); s.left < 0 {
		return errors.New("longer than it may be")
	}
	if _, err := io.ReadFull(s.r, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("cut short: %w", io.ErrUnexpectedEOF)
		}
		return err
	}
	s.sum = crc32.Update(s.sum, castagnoli, b)
	return nil
}

// title reads the first line, byte by byte: there may be less than it should be.
func (s *summed) title(want Title) error {
	var line []byte
	for !bytes.HasSuffix(line, []byte("\n")) && len(line) < maxTitle {
		var b [1]byte
		if err := s.read(b[:]); err != nil {
			return fmt.Errorf("%s: %w", want.Kind, err)
		}
		line = append(line, b[0])
	}
	if string(line) == want.line() {
		return nil
	}
	if bytes.HasPrefix(line, []byte("netctl "+want.Kind+" ")) {
		return fmt.Errorf("%s: of version %q, and this netctl reads %d", want.Kind, bytes.TrimSpace(line[len("netctl "+want.Kind+" "):]), want.Version)
	}
	return fmt.Errorf("%s: something else: it begins with %q", want.Kind, line)
}
