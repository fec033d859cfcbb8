package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sender is what one Send needs; they are pooled.
type sender struct {
	hdrs  [MaxSegments]mmsghdr
	iovs  [MaxSegments]unix.Iovec
	name  unix.RawSockaddrInet6
	oob   [controlSize]byte
	first int // of hdrs to send
	want  int
	errno syscall.Errno
	call  func(fd uintptr) // write, made once: a method value allocates
	mmsg  sendmmsg
}

// sendmmsg is sendmmsg(2).
type sendmmsg func(fd uintptr, hdrs []mmsghdr) (n int, errno syscall.Errno)

// sendmmsgRaw is the system's. It is raw because it does not wait: told of it, the
// runtime would have sysmon look after the processor every 20 microseconds, which
// took a tenth of the agent's time.
func sendmmsgRaw(fd uintptr, hdrs []mmsghdr) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func newSender(mmsg sendmmsg) *sender {
	t := &sender{mmsg: mmsg}
	t.call = t.write
	return t
}

// write calls sendmmsg until everything went, or an error came.
func (t *sender) write(fd uintptr) {
	t.errno = 0
	for t.first < t.want {
		n, errno := t.mmsg(fd, t.hdrs[t.first:t.want])
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			t.errno = errno
			return
		}
		t.first += n
	}
}

// Send sends buf as datagrams of size bytes each, the last maybe shorter: at
// most MaxSegments and MaxPiece bytes. It does not wait, see ErrBusy.
func (s *Sockets) Send(buf []byte, size int, to netip.AddrPort) error {
	q := s.to(to.Addr())
	if q == nil {
		return fmt.Errorf("no socket of the family of %s", to.Addr())
	}
	t, ok := s.senders.Get().(*sender)
	if !ok {
		t = newSender(s.mmsg)
	}
	defer s.senders.Put(t)
	namelen := t.address(to)
	var narrow error
	if s.gso.Load() && len(buf) > size {
		t.whole(buf, size, namelen)
		err := q.send(t)
		switch {
		case errors.Is(err, syscall.EIO): // a card without checksum offload: never again
			if s.gso.Swap(false) {
				s.refused.Add(1)
			}
		case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EMSGSIZE): // too large for this way: cut here, and in the network
			narrow = ErrNarrow
		default:
			return err
		}
	}
	t.single(buf, size, namelen)
	if err := q.send(t); err != nil {
		return err
	}
	return narrow
}

// LongestWhole returns the longest datagram that the kernel believes to reach an
// address in one piece: its routes' MTU, and what ICMP has told it of them. 0: it
// cannot say.
func (s *Sockets) LongestWhole(to netip.AddrPort) int {
	family, level, option, headers := unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU, 48
	var addr unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		family, level, option, headers = unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU, 28
		addr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if unix.Connect(fd, addr) != nil { // sends nothing: it only chooses the route
		return 0
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	if err != nil || mtu <= headers {
		return 0
	}
	return mtu - headers
}

// send hands the messages to the kernel.
func (q *queue) send(t *sender) error {
	if err := q.raw.Control(t.call); err != nil {
		return net.ErrClosed
	}
	clear(t.iovs[:t.want]) // the buffer is borrowed
	switch t.errno {
	case 0:
		return nil
	case syscall.EAGAIN, syscall.ENOBUFS:
		return ErrBusy
	default:
		return os.NewSyscallError("sendmmsg", t.errno)
	}
}

// whole makes one message of all datagrams.
func (t *sender) whole(buf []byte, size int, namelen uint32) {
	t.message(0, buf, namelen)
	putSegment(t.oob[:], size)
	t.hdrs[0].hdr.Control = &t.oob[0]
	t.hdrs[0].hdr.SetControllen(controlSize)
	t.first, t.want = 0, 1
}

// putSegment writes the control message that has a piece cut into datagrams of
// size bytes.
func putSegment(oob []byte, size int) {
	const length, level, kind, value = 0, 8, 12, unix.SizeofCmsghdr
	binary.NativeEndian.PutUint64(oob[length:], value+2)
	binary.NativeEndian.PutUint32(oob[level:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(oob[kind:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(oob[value:], uint16(size)) // at most MaxPiece
}

// single makes one message of each datagram.
func (t *sender) single(buf []byte, size int, namelen uint32) {
	n := 0
	for ; len(buf) > 0 && n < MaxSegments; n++ {
		k := min(size, len(buf))
		t.message(n, buf[:k], namelen)
		buf = buf[k:]
	}
	t.first, t.want = 0, n
}

func (t *sender) message(i int, b []byte, namelen uint32) {
	t.iovs[i] = unix.Iovec{Base: unsafe.SliceData(b)}
	t.iovs[i].SetLen(len(b))
	h := &t.hdrs[i].hdr
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&t.name)), namelen
	h.Iov, h.Iovlen = &t.iovs[i], 1
	h.Control, h.Flags = nil, 0
	h.SetControllen(0)
}

// address writes the destination and returns its length.
func (t *sender) address(to netip.AddrPort) uint32 {
	if a := to.Addr(); a.Is4() {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&t.name)) = unix.RawSockaddrInet4{ // the smaller of the two
			Family: unix.AF_INET, Port: ntohs(to.Port()), Addr: a.As4(),
		}
		return unix.SizeofSockaddrInet4
	}
	t.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: ntohs(to.Port()), Addr: to.Addr().As16()}
	return unix.SizeofSockaddrInet6
}
