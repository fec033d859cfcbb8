package dns

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/netctl/netctl/internal/quota"
)

// ServeTCP answers the questions of a stream, each with its length in front
// (RFC 1035 §4.2.2), and closes the connection before it returns: when the
// client closed it, was idle, sent what is no query, or does not read. Answers
// may come in another order than the questions (RFC 7766 §7); at most 64
// questions of a stream wait at a time, then it is not read until one is
// answered. Beyond 1024 streams, and 128 of the same remote address, a new one
// is closed at once. The connection must support deadlines.
func (s *Server) ServeTCP(conn net.Conn) {
	defer conn.Close()
	client := remote(conn)
	if s.streams.Take(client) == quota.None {
		return
	}
	defer s.streams.Give(client)
	w := &streamWriter{
		conn: conn, replies: make(chan []byte, maxPipeline), slots: make(chan struct{}, maxPipeline), stop: make(chan struct{}),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.run()
	}()
	s.readStream(conn, client, w)
	w.drain(s.forward.total + time.Second)
	close(w.stop)
	<-done
}

// remote returns who is at the other end. Connections that do not know that
// count as one client.
func remote(conn net.Conn) netip.Addr {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || a == nil {
		return netip.Addr{}
	}
	return a.AddrPort().Addr().Unmap()
}

// readStream reads questions until there is no next one.
func (s *Server) readStream(conn net.Conn, client netip.Addr, w *streamWriter) {
	var length [2]byte
	in := bufio.NewReader(conn)
	buf := make([]byte, 0, plainUDP)
	for {
		// One deadline for the whole message: bytes that drip in do not help.
		if conn.SetReadDeadline(time.Now().Add(s.idle)) != nil {
			return
		}
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n < headerLen {
			return
		}
		if cap(buf) < n {
			buf = make([]byte, 0, n)
		}
		if _, err := io.ReadFull(in, buf[:n]); err != nil {
			return
		}
		w.slots <- struct{}{}
		reply, st := s.Answer(client, buf[:n], false, make([]byte, 0, plainUDP))
		switch st {
		case Answered:
			w.send(reply)
		case Forward:
			s.Forward(client, buf[:n], false, func(msg []byte) { w.send(append([]byte(nil), msg...)) })
		default: // not a query: this is not a client
			<-w.slots
			return
		}
	}
}

// streamWriter writes the replies of a stream one by one. A question takes a
// slot before it is answered and the written reply gives it back, so that send
// never blocks, even when the writer is gone.
type streamWriter struct {
	conn    net.Conn
	replies chan []byte
	slots   chan struct{}
	stop    chan struct{}
}

func (w *streamWriter) send(msg []byte) { w.replies <- msg }

// drain waits until every question has its answer: then all slots are free.
func (w *streamWriter) drain(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for range maxPipeline {
		select {
		case w.slots <- struct{}{}:
		case <-timer.C:
			return
		}
	}
}

// run writes until stop. After an error it only gives slots back.
func (w *streamWriter) run() {
	failed := false
	for {
		select {
		case msg := <-w.replies:
			if !failed && len(msg) > 0 && w.write(msg) != nil {
				failed = true
				_ = w.conn.Close() // ends the reader, too
			}
			<-w.slots
		case <-w.stop:
			return
		}
	}
}

func (w *streamWriter) write(msg []byte) error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.conn.Write(append(b, msg...))
	return err
}
