package rawport_test

import (
	"errors"
	"io"
	"net"
	"testing"
)

// The benchmarks compare what carries pods' connections to the outside: packets
// (raw) and sockets (netstack), each in an agent of its own. Run them with
// -count so that both take turns:
//
//	go test -run '^$' -bench . -count 5 ./internal/rawport
func modes(b *testing.B, run func(*testing.B, *world, family)) {
	for _, mode := range []string{"raw", "netstack"} {
		b.Run(mode, func(b *testing.B) {
			w := newWorldOf(b, mode, 1024)
			for _, f := range families() {
				b.Run(f.name, func(b *testing.B) { run(b, w, f) })
			}
		})
	}
}

// BenchmarkUp sends from the pod, BenchmarkDown to it, a megabyte at a time.
func BenchmarkUp(b *testing.B) {
	modes(b, func(b *testing.B, w *world, f family) {
		l := w.listen(f)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := l.Accept(); err == nil {
				_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
				c.Close()
			}
		}()
		stream(b, w.dial("tcp", l.Addr()))
		<-done
	})
}

func BenchmarkDown(b *testing.B) {
	modes(b, func(b *testing.B, w *world, f family) {
		l := w.listen(f)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := l.Accept(); err == nil {
				stream(b, c)
			}
		}()
		c := w.dial("tcp", l.Addr())
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
		<-done
	})
}

func stream(b *testing.B, c net.Conn) {
	const chunk = 1 << 20
	data := make([]byte, chunk)
	b.SetBytes(chunk)
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(data); err != nil {
			b.Error(err)
			break
		}
	}
	c.Close()
}

// BenchmarkRoundTrip sends a byte and waits for it.
func BenchmarkRoundTrip(b *testing.B) {
	modes(b, func(b *testing.B, w *world, f family) {
		l := w.listen(f)
		go echo(l)
		c := w.dial("tcp", l.Addr())
		one := make([]byte, 1)
		b.ResetTimer()
		for range b.N {
			if _, err := c.Write(one); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, one); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkConnect opens connections and has the server close them.
func BenchmarkConnect(b *testing.B) {
	modes(b, func(b *testing.B, w *world, f family) {
		l := w.listen(f)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		w.must(w.pod.Do(func() error {
			b.ResetTimer()
			for range b.N {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					return err
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					return err
				}
				c.Close()
			}
			return nil
		}))
	})
}
