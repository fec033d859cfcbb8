package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	mdns "github.com/miekg/dns"
)

// load asks a server from one socket. The questions are packed before the clock runs.
type load struct {
	conn    *net.UDPConn
	queries [][]byte
	next    int
}

const (
	// outstanding is how many questions are on their way at a time.
	outstanding = 64
	// lostAfter is how long an answer is waited for; on the loopback address nothing
	// takes that long but what was dropped for want of room.
	lostAfter = time.Second
)

func newLoad(addr netip.AddrPort, names func(i int) (string, uint16)) (*load, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	// Answers must not be lost on our side: the default holds some 250.
	if err := conn.SetReadBuffer(4 << 20); err != nil {
		return nil, err
	}
	l := &load{conn: conn}
	const different = 4096
	for i := range different {
		m := new(mdns.Msg)
		name, qtype := names(i)
		m.SetQuestion(name, qtype)
		m.SetEdns0(1232, false)
		b, err := m.Pack()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		l.queries = append(l.queries, b)
	}
	return l, nil
}

func (l *load) close() { _ = l.conn.Close() }

// send sends the next question and returns its id.
func (l *load) send() (uint16, error) {
	b := l.queries[l.next%len(l.queries)]
	id := uint16(l.next)
	binary.BigEndian.PutUint16(b, id)
	l.next++
	_, err := l.conn.Write(b)
	return id, err
}

var errAnswer = errors.New("an answer that is none")

// receive returns the id of the next answer.
func (l *load) receive(buf []byte) (uint16, error) {
	n, err := l.conn.Read(buf)
	if err != nil {
		return 0, err
	}
	if n < 12 || buf[3]&0xf != 0 && buf[3]&0xf != mdns.RcodeNameError {
		return 0, errAnswer
	}
	return binary.BigEndian.Uint16(buf), nil
}

// flood keeps questions outstanding for a time and counts the answers.
func (l *load) flood(length time.Duration) (answers int, took time.Duration, err error) {
	buf := make([]byte, 4096)
	began := time.Now()
	for range outstanding {
		if _, err := l.send(); err != nil {
			return 0, 0, err
		}
	}
	for time.Since(began) < length {
		if err := l.conn.SetReadDeadline(time.Now().Add(lostAfter)); err != nil {
			return 0, 0, err
		}
		switch _, err := l.receive(buf); {
		case errors.Is(err, os.ErrDeadlineExceeded): // all were lost: begin again
			for range outstanding - 1 {
				if _, err := l.send(); err != nil {
					return 0, 0, err
				}
			}
		case err != nil:
			return 0, 0, err
		default:
			answers++
		}
		if _, err := l.send(); err != nil {
			return 0, 0, err
		}
	}
	took = time.Since(began)
	l.drain(buf)
	return answers, took, nil
}

// drain reads what is still on its way.
func (l *load) drain(buf []byte) {
	for l.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)) == nil {
		if _, err := l.receive(buf); err != nil {
			return
		}
	}
}

// singly asks one question at a time and returns how long each took.
func (l *load) singly(length time.Duration) ([]time.Duration, error) {
	buf := make([]byte, 4096)
	var out []time.Duration
	for began := time.Now(); time.Since(began) < length; {
		start := time.Now()
		want, err := l.send()
		if err != nil {
			return nil, err
		}
		if err := l.conn.SetReadDeadline(start.Add(lostAfter)); err != nil {
			return nil, err
		}
		for {
			id, err := l.receive(buf)
			if err != nil {
				return nil, err
			}
			if id == want {
				break
			}
		}
		out = append(out, time.Since(start))
	}
	return out, nil
}

// pairs asks A and AAAA for so many names from the one socket, as libc does, with a
// window of questions on their way. It returns how long the slowest answer took and
// how many never came.
func (l *load) pairs(count, window int) (slowest time.Duration, lost int, err error) {
	const giveUp = 5 * time.Second // what libc waits
	sent := make(map[uint16]time.Time, window)
	buf := make([]byte, 4096)
	left := 2 * count
	for left > 0 || len(sent) > 0 {
		for left > 0 && len(sent) <= window-2 {
			for range 2 {
				at := time.Now()
				id, err := l.send()
				if err != nil {
					return 0, 0, err
				}
				sent[id] = at
				left--
			}
		}
		if err := l.conn.SetReadDeadline(time.Now().Add(giveUp)); err != nil {
			return 0, 0, err
		}
		id, err := l.receive(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			lost += len(sent)
			clear(sent)
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		if at, ok := sent[id]; ok {
			slowest = max(slowest, time.Since(at))
			delete(sent, id)
		}
	}
	return slowest, lost, nil
}
