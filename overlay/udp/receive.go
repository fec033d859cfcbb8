package udp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Batch is how many pieces one Receive takes at most.
const Batch = 8

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// controlSize holds one control message with an integer.
const controlSize = 24

// receiver is what one queue's goroutine needs for recvmmsg.
type receiver struct {
	hdrs  [Batch]mmsghdr
	iovs  [Batch]unix.Iovec
	names [Batch]unix.RawSockaddrInet6 // the larger of the two kinds
	oobs  [Batch][controlSize]byte
	want  int
	got   int
	errno syscall.Errno
	call  func(fd uintptr) bool // read, made once: a method value allocates
}

func (r *receiver) init() { r.call = r.read }

// read calls recvmmsg; false: nothing was there. It is raw for the reason that
// sendmmsgRaw is.
func (r *receiver) read(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(r.want), unix.MSG_DONTWAIT, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno == syscall.EAGAIN {
			return false
		}
		r.got, r.errno = int(n), errno
		return true
	}
}

// Receive waits for datagrams and fills bufs with pieces: sizes[i] bytes that
// are datagrams of segments[i] bytes each, the last maybe shorter, all from
// from[i]. It returns how many pieces there are, or net.ErrClosed; after any other
// error, such as want of memory, the next call may well succeed.
func (s *Sockets) Receive(queue int, bufs [][]byte, sizes, segments []int, from []netip.AddrPort) (int, error) {
	q := s.queues[queue]
	r := &q.rx
	r.want = min(Batch, len(bufs))
	for i := range r.want {
		r.iovs[i] = unix.Iovec{Base: unsafe.SliceData(bufs[i])}
		r.iovs[i].SetLen(len(bufs[i]))
		h := &r.hdrs[i].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&r.names[i])), unix.SizeofSockaddrInet6
		h.Iov, h.Iovlen = &r.iovs[i], 1
		h.Control, h.Flags = &r.oobs[i][0], 0
		h.SetControllen(controlSize)
	}
	if err := q.raw.Read(r.call); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = net.ErrClosed
		}
		return 0, err
	}
	if r.errno != 0 {
		if r.errno == syscall.EBADF {
			return 0, net.ErrClosed
		}
		return 0, os.NewSyscallError("recvmmsg", r.errno)
	}
	for i := range r.got {
		h := &r.hdrs[i]
		sizes[i] = int(h.n)
		segments[i] = groSize(r.oobs[i][:min(int(h.hdr.Controllen), controlSize)], sizes[i])
		from[i] = addrPort(&r.names[i])
	}
	return r.got, nil
}

// groSize reads the size of the joined datagrams from the control message.
func groSize(oob []byte, whole int) int {
	const length, level, kind, value = 0, 8, 12, unix.SizeofCmsghdr
	if len(oob) < value+4 || binary.NativeEndian.Uint64(oob[length:]) < value+4 ||
		binary.NativeEndian.Uint32(oob[level:]) != unix.IPPROTO_UDP || binary.NativeEndian.Uint32(oob[kind:]) != unix.UDP_GRO {
		return whole
	}
	if n := int(binary.NativeEndian.Uint32(oob[value:])); n > 0 && n < whole {
		return n
	}
	return whole
}

// addrPort reads a socket address of either family.
func addrPort(raw *unix.RawSockaddrInet6) netip.AddrPort {
	if raw.Family == unix.AF_INET {
		raw4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw)) // the smaller of the two
		return netip.AddrPortFrom(netip.AddrFrom4(raw4.Addr), ntohs(raw4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(raw.Addr).Unmap(), ntohs(raw.Port))
}

// ntohs turns a port in network order, as the kernel has it, into a number; and
// back.
func ntohs(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}
