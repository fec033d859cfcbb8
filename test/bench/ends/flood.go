package ends

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// A flood is datagrams as fast as they get through: a sender that never has more
// than a window of them under way. Without it, a sender that outruns the network
// spends the machine's time on packets that are thrown away, and what arrives says
// little about the network.
//
// The first byte of a datagram says what it is. The server tells its count after
// every so many data, and when it is asked.
const (
	floodData  = 0
	floodBegin = 1 // forget what you have counted, and tell
	floodTell  = 2

	window     = 256
	tellEvery  = 32
	floodQuiet = 20 * time.Millisecond // without an answer, what is under way is lost
	tellTries  = 100

	firstFlowPort = 20000 // below those that the kernel gives
)

// serveFlood starts the server of floods. Senders take turns.
func serveFlood() error {
	fd, err := socket(syscall.SOCK_DGRAM)
	if err == nil {
		const rcvbufforce = 33 // SO_RCVBUFFORCE (socket(7)), which syscall lacks
		err = errors.Join(limit(fd, 0), syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, rcvbufforce, 8<<20),
			syscall.Bind(fd, &syscall.SockaddrInet4{Port: SinkPort}))
	}
	if err != nil {
		return fmt.Errorf("serve UDP port %d: %w", SinkPort, err)
	}
	go countFlood(fd)
	return nil
}

func countFlood(fd int) {
	buf := make([]byte, 1<<16)
	var count uint64
	var home syscall.Sockaddr // where the flood began; all of its flows are one count
	for {
		n, from, err := syscall.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ECONNREFUSED):
			continue
		case err != nil:
			fmt.Fprintln(os.Stderr, "end: flood:", err)
			return
		case n == 0:
			continue
		}
		switch buf[0] {
		case floodBegin:
			count, home = 0, from
		case floodData:
			if count++; count%tellEvery != 0 || home == nil {
				continue
			}
			from = home
		}
		var reply [9]byte
		reply[0] = buf[0]
		binary.BigEndian.PutUint64(reply[1:], count)
		_ = syscall.Sendto(fd, reply[:], 0, from) // the sender asks again
	}
}

// flood sends datagrams until the time is over.
func (r Request) flood() (Result, error) {
	fds := make([]int, 0, r.Flows)
	defer func() {
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
	}()
	for i := range r.Flows {
		fd, err := socket(syscall.SOCK_DGRAM)
		if err == nil && r.Flows > 1 {
			// Many flows are the same ones each time: what is on the way remembers them for
			// minutes, and may let a pod have only so many.
			err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: firstFlowPort + i})
		}
		if err == nil {
			err = errors.Join(limit(fd, floodQuiet), syscall.Connect(fd, sockaddr(r.To)))
		}
		if err != nil {
			return Result{}, fmt.Errorf("connect with %s: %w", r.To, err)
		}
		fds = append(fds, fd)
	}
	if _, err := tell(fds[0], floodBegin); err != nil {
		return Result{}, err
	}
	f := flooding{fds: fds, data: make([]byte, r.Size)}
	start := time.Now()
	for f.sent%64 != 0 || time.Since(start) < r.For {
		if err := f.next(); err != nil {
			return Result{}, err
		}
	}
	took := time.Since(start)
	arrived, err := tell(fds[0], floodTell)
	return Result{
		Packets: float64(arrived), Bytes: float64(arrived) * float64(r.Size),
		Lost: float64(f.sent) - float64(arrived), Took: took,
	}, err
}

// flooding is a flood under way.
type flooding struct {
	fds   []int
	data  []byte
	sent  uint64
	freed uint64 // of these, how many are known to have arrived or taken for lost
	lost  uint64
}

// next sends a datagram, after waiting until the window has room for it.
func (f *flooding) next() error {
	fd := f.fds[f.sent%uint64(len(f.fds))]
	for f.sent-f.freed >= window {
		if err := f.hear(f.fds[0]); err != nil {
			return err
		}
	}
	if _, err := syscall.Write(fd, f.data); err != nil && !errors.Is(err, syscall.EINTR) && !errors.Is(err, syscall.ENOBUFS) {
		return fmt.Errorf("send datagram %d: %w", f.sent+1, err)
	}
	f.sent++
	return nil
}

// hear waits for the server's count.
func (f *flooding) hear(fd int) error {
	var reply [9]byte
	n, err := syscall.Read(fd, reply[:])
	switch {
	case errors.Is(err, syscall.EINTR):
		return nil
	case errors.Is(err, syscall.EAGAIN):
		f.lost, f.freed = f.lost+f.sent-f.freed, f.sent
		return nil
	case err != nil:
		return fmt.Errorf("after %d datagrams: %w", f.sent, err)
	case n == len(reply) && reply[0] == floodData:
		f.freed = min(max(f.freed, binary.BigEndian.Uint64(reply[1:])+f.lost), f.sent)
	}
	return nil
}

// tell asks the server until it answers.
func tell(fd int, what byte) (uint64, error) {
	for range tellTries {
		if _, err := syscall.Write(fd, []byte{what}); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return 0, fmt.Errorf("ask for the count: %w", err)
		}
		for {
			var reply [9]byte
			n, err := syscall.Read(fd, reply[:])
			if err != nil {
				break // it was lost, or the server is slow
			}
			if n == len(reply) && reply[0] == what {
				return binary.BigEndian.Uint64(reply[1:]), nil
			}
		}
	}
	return 0, errors.New("nobody tells how many datagrams have arrived")
}
