package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
)

// listen serves on a loopback port until the test ends.
func listen(t *testing.T, s *dns.Server) netip.AddrPort {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan []netip.AddrPort, 1), make(chan error, 1)
	go func() {
		done <- s.Listen(ctx, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, func(a []netip.AddrPort) { ready <- a })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Listen: %v", err)
		}
	})
	select {
	case a := <-ready:
		return a[0]
	case err := <-done:
		done <- err
		t.Fatal(err)
		return netip.AddrPort{}
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{}, newUpstream(t, always("192.0.2.1")))
	addr := listen(t, s)
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"svc1.testns.svc.cluster.local.", network + ".example.org."} {
			m := new(mdns.Msg)
			m.SetQuestion(name, mdns.TypeA)
			r, _, err := (&mdns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(m, addr.String())
			if err != nil || len(r.Answer) != 1 || r.Answer[0].Header().Name != name {
				t.Errorf("%s %s: %v %v", network, name, r, err)
			}
		}
	}
	if err := s.Listen(t.Context(), []netip.AddrPort{addr}, nil); err == nil || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("the port is taken, got %v", err)
	}
}

// stream serves one end of a pipe and returns the other.
func stream(t *testing.T, s *dns.Server) (client net.Conn, ended chan struct{}) {
	t.Helper()
	client, server := net.Pipe()
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		s.ServeTCP(server)
	}()
	t.Cleanup(func() { client.Close(); <-ended })
	return client, ended
}

// from is a connection of somebody.
type from struct {
	net.Conn
	addr netip.Addr
}

func (c from) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.addr, 5000)) }

// TestGreedyStreamsLeaveRoom: a client that opens all streams it can leaves
// enough for the others.
func TestGreedyStreamsLeaveRoom(t *testing.T) {
	t.Parallel()
	s := dns.New(dns.Config{IdleTimeout: time.Minute})
	s.Publish(dns.Compile(cluster()))
	var ended atomic.Int32
	open := func(client netip.Addr) net.Conn {
		mine, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.ServeTCP(from{theirs, client})
			ended.Add(1)
		}()
		t.Cleanup(func() { _ = mine.Close(); <-done })
		return mine
	}
	const greedy, each, bound = 6, 200, 128
	for i := range greedy * each {
		client := pod(i % greedy)
		if i >= greedy*each/2 {
			client = netip.AddrFrom16(client.As16()) // the mapped form is the same client
		}
		open(client)
	}
	const refused = greedy * (each - bound)
	deadline := time.Now().Add(10 * time.Second)
	for ended.Load() < refused && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if n := ended.Load(); n != refused || s.Stats().Streams != greedy*bound {
		t.Errorf("%d streams refused and %d served, want %d and %d", n, s.Stats().Streams, refused, greedy*bound)
	}
	c := open(pod(1000))
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(framed(query(t, "svc1.testns.svc.cluster.local", mdns.TypeA, 0))); err != nil {
		t.Fatal("the modest client's stream: ", err)
	}
	if m := readFramed(t, c); len(m.Answer) != 1 {
		t.Errorf("got %v", m)
	}
}

func framed(q []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
}

func readFramed(t *testing.T, c net.Conn) *mdns.Msg {
	t.Helper()
	var n uint16
	if err := binary.Read(c, binary.BigEndian, &n); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	m := new(mdns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestStreamPipelining(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := run(t, dns.Config{AttemptTimeout: 8 * time.Second, TotalTimeout: 8 * time.Second}, newUpstream(t, func(q *mdns.Msg, n string) [][]byte {
		<-release
		return always("192.0.2.1")(q, n)
	}))
	c, _ := stream(t, s)
	const n = 300 // more than may wait
	go func() {
		for i := range n {
			name := fmt.Sprintf("w%d.example.org", i)
			if i%2 == 0 {
				name = "svc1.testns.svc.cluster.local"
			}
			q := query(t, name, mdns.TypeA, 0)
			binary.BigEndian.PutUint16(q, uint16(i))
			if _, err := c.Write(framed(q)); err != nil {
				return
			}
		}
	}()
	seen := map[uint16]bool{}
	for i := range n {
		if i == 10 { // answers overtake those that wait for upstream
			for id := range seen {
				if id%2 != 0 {
					t.Errorf("%d was answered before upstream did", id)
				}
			}
			close(release)
		}
		m := readFramed(t, c)
		if seen[m.Id] || len(m.Answer) != 1 {
			t.Errorf("%d: %v", i, m)
		}
		seen[m.Id] = true
	}
}

func TestStreamEnds(t *testing.T) {
	t.Parallel()
	good := framed(query(t, "svc1.testns.svc.cluster.local", mdns.TypeA, 0))
	response := query(t, "svc1.testns.svc.cluster.local", mdns.TypeA, 0)
	response[2] |= 0x80
	tests := []struct {
		name    string
		send    []byte
		replies int
	}{
		{"nothing", nil, 0},
		{"half a length", good[:1], 0},
		{"half a question", good[:20], 0},
		{"too short", []byte{0, 3, 1, 2, 3}, 0},
		{"a response", framed(response), 0},
		{"one question, then nothing", good, 1},
		{"one question and a half", append(append([]byte(nil), good...), good[:30]...), 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := dns.New(dns.Config{IdleTimeout: 150 * time.Millisecond})
			s.Publish(dns.Compile(cluster()))
			c, ended := stream(t, s)
			go func() { _, _ = c.Write(tt.send) }()
			for range tt.replies {
				readFramed(t, c)
			}
			if n, err := c.Read(make([]byte, 1)); err == nil || n != 0 {
				t.Errorf("read %d bytes, want the end", n)
			}
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				t.Error("ServeTCP did not return")
			}
		})
	}
}

// TestStreamHalfClosed: a client that has said all still gets what it waits for.
func TestStreamHalfClosed(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := run(t, dns.Config{AttemptTimeout: 5 * time.Second, TotalTimeout: 5 * time.Second}, newUpstream(t, func(q *mdns.Msg, n string) [][]byte {
		<-release
		return always("192.0.2.1")(q, n)
	}))
	addr := listen(t, s)
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(framed(query(t, "www.example.org", mdns.TypeA, 0))); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(release)
	if m := readFramed(t, c); len(m.Answer) != 1 {
		t.Errorf("got %v", m)
	}
}

func TestResolvConf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "behind.conf")
	var c clock
	vip := netip.MustParseAddr("10.96.0.10")
	errOwn := errors.New("that is this server's own address")
	r := dns.NewResolvConf(dns.ResolvConfConfig{
		Paths: []string{first, second}, Now: c.Now,
		Refuse: func(a netip.Addr) error {
			if a == vip {
				return errOwn
			}
			return nil
		},
	})
	age := 0
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		age++ // a new time of change, whatever the file system's clock does
		at := time.Unix(int64(1_000_000+age), 0)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		c.advance(2 * time.Second)
	}
	check := func(want string, problems ...string) {
		t.Helper()
		if got := fmt.Sprint(r.Upstreams()); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		text := fmt.Sprint(r.Err())
		if len(problems) == 0 && r.Err() != nil {
			t.Errorf("error %v", r.Err())
		}
		for _, p := range problems {
			if !strings.Contains(text, p) {
				t.Errorf("error %q does not say %q", text, p)
			}
		}
	}
	check("[]", "no usable nameserver", first)
	write(first, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n")
	check("[192.0.2.1:53 [2001:db8::1]:53]")
	write(first, "nameserver 127.0.0.53\nnameserver 10.96.0.10\n")
	check("[]", "127.0.0.53: a loopback address", "10.96.0.10: "+errOwn.Error(), "no usable nameserver")
	write(second, "nameserver 198.51.100.7\n")
	check("[198.51.100.7:53]", "127.0.0.53")
	write(first, "nameserver ::1\nnameserver 0.0.0.0\nnameserver 192.0.2.2\n")
	check("[192.0.2.2:53]", "::1: a loopback", "0.0.0.0: not the address")
	for _, p := range []string{first, second} { // being replaced
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	c.advance(2 * time.Second)
	check("[192.0.2.2:53]", "no usable nameserver")
	write(first, "nameserver 192.0.2.3\n")
	c.advance(-1500 * time.Millisecond)
	check("[192.0.2.2:53]", "no usable nameserver") // not yet looked at again
	c.advance(1500 * time.Millisecond)
	check("[192.0.2.3:53]")
}
