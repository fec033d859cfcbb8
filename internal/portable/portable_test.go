package portable_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/netctl/netctl/internal/portable"
)

func title() portable.Title { return portable.Title{Kind: "things", Version: 3} }

// stream writes messages.
func stream(t testing.TB, messages ...portable.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	w := portable.NewWriter(&b, title())
	for _, m := range messages {
		if err := w.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type field struct {
	number, v uint64
	b         string
}

func fields(t testing.TB, m portable.Message) []field {
	t.Helper()
	var out []field
	if err := m.Each(func(n, v uint64, b []byte) error {
		out = append(out, field{n, v, string(b)})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// sample has more than one chunk.
func sample() []portable.Message {
	var a portable.Message
	a.Uint(1, 7)
	a.Uint(2, 0)
	a.Bytes(3, []byte("bytes"))
	a.Bytes(4, nil)
	a.Uint(1<<60, 1<<63)
	out := []portable.Message{a, {}}
	for range 10 {
		var big portable.Message
		big.Bytes(1, bytes.Repeat([]byte{1}, 30_000))
		out = append(out, big)
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	want := sample()
	in := strings.NewReader(string(stream(t, want...)) + "more")
	s, err := portable.Read(iotest.OneByteReader(in), title(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Collect(s.Messages())
	if !slices.EqualFunc(got, want, func(a, b portable.Message) bool { return bytes.Equal(a, b) }) {
		t.Errorf("%d messages are not the %d that were written", len(got), len(want))
	}
	if f := fields(t, got[0]); !slices.Equal(f, []field{{1, 7, ""}, {3, 0, "bytes"}, {1 << 60, 1 << 63, ""}}) {
		t.Errorf("fields %v", f)
	}
	if rest, _ := io.ReadAll(in); string(rest) != "more" {
		t.Errorf("%q is left behind the stream, want \"more\"", rest)
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	good := stream(t, sample()[:2]...)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, err := portable.Read(bytes.NewReader(bad), title(), 1<<20); err == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
		if _, err := portable.Read(bytes.NewReader(good[:i]), title(), 1<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := portable.Read(bytes.NewReader(good), title(), len(good)-1); err == nil {
		t.Error("longer than the limit: accepted")
	}
	for name, want := range map[string]string{
		"netctl things 4\n":     `of version "4", and this netctl reads 3`,
		"netctl other 3\n":      "something else",
		strings.Repeat("x", 99): "something else",
	} {
		if _, err := portable.Read(strings.NewReader(name), title(), 1<<20); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}

func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	for _, m := range []portable.Message{{2}, {0x80}, {3, 9, 1}, {2, 0x80}, bytes.Repeat([]byte{0xff}, 11)} {
		if err := m.Each(func(_, _ uint64, _ []byte) error { return nil }); !errors.Is(err, portable.ErrMalformed) {
			t.Errorf("%v: %v", []byte(m), err)
		}
	}
}

func TestErrorsOfTheWriter(t *testing.T) {
	t.Parallel()
	w := portable.NewWriter(io.Discard, title())
	if err := w.Write(make(portable.Message, 2<<20)); err == nil || w.Close() == nil {
		t.Error("wrote a message that no reader takes")
	}
	broken := iotest.ErrReader(io.ErrClosedPipe)
	_, out := io.Pipe()
	out.Close()
	w = portable.NewWriter(out, title())
	if err := w.Close(); err == nil {
		t.Error("wrote into a closed pipe")
	}
	if _, err := portable.Read(broken, title(), 100); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read from a broken connection: %v", err)
	}
}

func TestLeaveAndTake(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "things")
	export := func(w io.Writer) error { _, err := io.WriteString(w, "four"); return err }
	count := func(r io.Reader) (int, error) { b, err := io.ReadAll(r); return len(b), err }
	take := func(wanted bool, want int) {
		t.Helper()
		if n, err := portable.Take(path, wanted, count); n != want || err != nil {
			t.Errorf("%d, %v; want %d", n, err, want)
		}
	}
	take(true, 0) // nothing was left
	for range 2 {
		if err := portable.Leave(path, export); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path + ".portable")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("left %v, %v; want mode 0600", info, err)
	}
	take(true, 4)
	take(true, 0) // only once
	if err := portable.Leave(path, export); err != nil {
		t.Fatal(err)
	}
	take(false, 0)
	take(true, 0)
	fail := func(io.Reader) (int, error) { return 0, io.ErrNoProgress }
	if err := portable.Leave(path, export); err != nil {
		t.Fatal(err)
	}
	if _, err := portable.Take(path, true, fail); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("taken: %v", err)
	}
	if err := portable.Leave(path, func(io.Writer) error { return io.ErrNoProgress }); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("left: %v", err)
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 0 {
		t.Errorf("files stay: %v, %v", list, err)
	}
	if err := portable.Leave(filepath.Join(path, "none"), export); err == nil {
		t.Error("left something in a directory that does not exist")
	}
}

// FuzzRead reads what anybody might send; whatever is accepted is written as it
// was read.
func FuzzRead(f *testing.F) {
	f.Add(stream(f, sample()[:2]...))
	f.Add(stream(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := portable.Read(bytes.NewReader(b), title(), 1<<16)
		if err != nil {
			return
		}
		messages := slices.Collect(s.Messages())
		for _, m := range messages {
			_ = m.Each(func(_, _ uint64, _ []byte) error { return nil })
		}
		again, err := portable.Read(bytes.NewReader(stream(t, messages...)), title(), 1<<20)
		if err != nil || len(slices.Collect(again.Messages())) != len(messages) {
			t.Errorf("again: %v", err)
		}
	})
}
