package netstack_test

import (
	"fmt"
	"io"
	"net"
	"testing"
)

// BenchmarkBulk moves bytes between a pod and a host socket on loopback. The
// pod's own stack and the server are part of the cost.
func BenchmarkBulk(b *testing.B) {
	const chunk = 1 << 20
	f := families(b)[0]
	data := make([]byte, chunk)
	b.Run("up", func(b *testing.B) {
		done := make(chan struct{})
		port := listen(b, f, func(c *net.TCPConn) {
			defer close(done)
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
		})
		c := start(b, nil).mustDial(b, f, port)
		b.SetBytes(chunk)
		b.ResetTimer()
		for range b.N {
			if _, err := c.Write(data); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.CloseWrite()
		<-done
		report(b, "tcp_up", chunk)
	})
	b.Run("down", func(b *testing.B) {
		port := listen(b, f, func(c *net.TCPConn) {
			for range b.N {
				if _, err := c.Write(data); err != nil {
					return
				}
			}
		})
		c := start(b, nil).mustDial(b, f, port)
		b.SetBytes(chunk)
		b.ResetTimer()
		n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		if err != nil || n != int64(b.N)*chunk {
			b.Fatalf("got %d bytes, %v", n, err)
		}
		report(b, "tcp_down", chunk)
	})
}

// report prints the result as every benchmark of the project does.
func report(b *testing.B, name string, chunk int) {
	b.StopTimer()
	perByte := float64(b.Elapsed().Nanoseconds()) / float64(b.N) / float64(chunk)
	b.ReportMetric(perByte, "ns/byte")
	if b.N > 100 {
		fmt.Printf("figure netstack_%s %.3f ns/byte\n", name, perByte)
	}
}
