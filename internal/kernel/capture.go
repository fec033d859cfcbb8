package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Frame is one captured frame.
type Frame struct {
	Data     []byte // borrowed: valid until the buffer is used again; without a virtio-net header
	Length   int    // on the wire; more than len(Data) when the buffer was short
	Outgoing bool   // sent by this host
	EtherTyp uint16 // in host byte order
}

// Capture reads copies of all frames that pass an interface, both ways
// (AF_PACKET). On a veth or a bridge they begin with an Ethernet header, on a
// TUN with the IP header. It needs CAP_NET_RAW in the namespace. Read belongs
// to one goroutine; Close may be called by any and ends a Read.
type Capture struct {
	file *os.File
	raw  syscall.RawConn
}

// OpenCapture starts capturing; frames queue up until they are read and are
// lost when there are too many.
func OpenCapture(ns *Namespace, name string) (*Capture, error) {
	fd := -1
	err := ns.Do(func() error {
		link, err := linkByName(name)
		if err != nil {
			return err
		}
		// Protocol 0 captures nothing until bind names the interface.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("capture on %q: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), "capture "+name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("capture on %q: %w", name, err)
	}
	return &Capture{file: file, raw: raw}, nil
}

// Read waits for a frame and puts it into buf. After Close the error wraps
// os.ErrClosed, after the deadline os.ErrDeadlineExceeded.
func (c *Capture) Read(buf []byte) (Frame, error) {
	var f Frame
	var recvErr error
	err := c.raw.Read(func(fd uintptr) bool {
		var from unix.Sockaddr
		var n int
		n, from, recvErr = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
		if recvErr == unix.EAGAIN || recvErr == unix.EINTR {
			return false
		}
		f = Frame{Data: buf[:min(max(n, 0), len(buf))], Length: n}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok {
			f.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
			f.EtherTyp = htons(ll.Protocol)
		}
		return true
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
	case err != nil: // only the poller's own, unexported error remains
		err = os.ErrClosed
	default:
		err = recvErr
	}
	if err != nil {
		return Frame{}, fmt.Errorf("read capture: %w", err)
	}
	return f, nil
}

// SetDeadline bounds all Reads; the zero time means no bound.
func (c *Capture) SetDeadline(t time.Time) error { return c.file.SetReadDeadline(t) }

// Close ends the capture.
func (c *Capture) Close() error { return c.file.Close() }

// htons swaps where the network's byte order is not the machine's.
func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
