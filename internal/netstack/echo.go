package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/netctl/netctl/internal/packet"
)

// errNoPing: the kernel allows this process neither a ping socket (sysctl
// net.ipv4.ping_group_range) nor a raw one (CAP_NET_RAW).
var errNoPing = errors.New("no ping or raw socket")

// echoID is an identifier that a raw socket uses towards a destination.
type echoID struct {
	dst packet.Addr
	id  uint16
}

// echoSocket knows how a socket of a flow of pings carries them. A ping socket
// lets the kernel choose the identifier; on a raw socket we choose it and a
// filter in the kernel picks our replies.
type echoSocket struct {
	is4, raw bool
	id       uint16 // raw only
	set      *datagrams
	key      echoID
	once     sync.Once
}

// receiveEcho sends an echo request; other ICMP has no way out.
func (d *datagrams) receiveEcho(p *packet.Packet) {
	request := uint8(header.ICMPv4Echo)
	if !p.Is4() {
		request = uint8(header.ICMPv6EchoRequest)
	}
	if !p.IsEcho() || p.ICMPType != request || p.ICMPCode != 0 {
		d.stack.counters.drop(DropICMP)
		return
	}
	if !p.Partial && !verified(p) {
		d.stack.counters.drop(DropChecksum)
		return
	}
	f := d.flow(p)
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mark(p)
	f.sendEcho(p.IP()[p.L4:])
}

// sendEcho sends the ICMP message as the socket needs it. The socket may not be
// open: then write does the rest later.
func (f *flow) sendEcho(message []byte) {
	buf := f.set.stack.buffer()
	defer f.set.stack.buffers.Put(buf)
	f.send(buf[:copy(buf[:], message)])
}

// prepare completes a message for the socket, in place.
func (e *echoSocket) prepare(message []byte) {
	if !e.raw {
		return // the kernel writes identifier and checksum
	}
	binary.BigEndian.PutUint16(message[4:], e.id)
	if e.is4 {
		setChecksum(message, 0)
	}
}

// parse reads what the socket received.
func (e *echoSocket) parse(b []byte) (seq uint16, body []byte, ok bool) {
	if e.raw && e.is4 {
		if len(b) < header.IPv4MinimumSize || len(b) < int(b[0]&0xf)*4 {
			return 0, nil, false
		}
		b = b[int(b[0]&0xf)*4:]
	}
	reply := uint8(header.ICMPv4EchoReply)
	if !e.is4 {
		reply = uint8(header.ICMPv6EchoReply)
	}
	if len(b) < 8 || b[0] != reply || (e.raw && binary.BigEndian.Uint16(b[4:]) != e.id) {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(b[6:]), b[8:], true
}

// sent reports whether an ICMP error that quotes b is about this socket.
func (e *echoSocket) sent(b []byte) bool {
	return !e.raw || len(b) < 6 || binary.BigEndian.Uint16(b[4:]) == e.id
}

// release gives the identifier back.
func (e *echoSocket) release() {
	if !e.raw {
		return
	}
	e.once.Do(func() {
		e.set.idMu.Lock()
		defer e.set.idMu.Unlock()
		delete(e.set.ids, e.key)
	})
}

// dialEcho opens a ping socket, or a raw one where that is not allowed.
func (d *datagrams) dialEcho(key *packet.Tuple) (socket, error) {
	e := &echoSocket{is4: key.Dst.Is4(), set: d}
	fd, err := e.create(unix.SOCK_DGRAM)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EPROTONOSUPPORT) {
		e.raw = true
		fd, err = e.create(unix.SOCK_RAW)
	}
	if err != nil {
		return socket{}, errors.Join(errNoPing, err)
	}
	if e.raw {
		d.claimID(e, key.Dst)
		err = e.filter(fd)
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(key.Dst))
	}
	if err != nil {
		unix.Close(fd)
		e.release()
		return socket{}, fmt.Errorf("ping socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "ping") // non-blocking: goes to the poller
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		e.release()
		return socket{}, err
	}
	reportErrors(raw, e.is4)
	return socket{conn: file, raw: raw, echo: e}, nil
}

func (e *echoSocket) create(kind int) (int, error) {
	kind |= unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	if e.is4 {
		return unix.Socket(unix.AF_INET, kind, unix.IPPROTO_ICMP)
	}
	return unix.Socket(unix.AF_INET6, kind, unix.IPPROTO_ICMPV6)
}

// claimID finds an identifier that no other flow uses towards the destination.
func (d *datagrams) claimID(e *echoSocket, dst packet.Addr) {
	d.idMu.Lock()
	defer d.idMu.Unlock()
	id := uint16(rand.Uint32())
	for {
		e.id, e.key = id, echoID{dst, id}
		if _, used := d.ids[e.key]; !used {
			d.ids[e.key] = struct{}{}
			return
		}
		id++ // ends: there are fewer pings than identifiers
	}
}

// filter lets only echo replies with our identifier reach a raw socket, which
// would otherwise get every ICMP message of the destination. IPv4 raw sockets
// see the IP header, IPv6 ones do not.
func (e *echoSocket) filter(fd int) error {
	match := func(reply uint8) []bpf.Instruction {
		return []bpf.Instruction{
			bpf.LoadIndirect{Off: 0, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(reply), SkipTrue: 3},
			bpf.LoadIndirect{Off: 4, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(e.id), SkipTrue: 1},
			bpf.RetConstant{Val: 1 << 18},
			bpf.RetConstant{Val: 0},
		}
	}
	var program []bpf.Instruction
	if e.is4 {
		program = append([]bpf.Instruction{bpf.LoadMemShift{Off: 0}}, match(uint8(header.ICMPv4EchoReply))...)
	} else {
		program = append([]bpf.Instruction{
			bpf.LoadConstant{Dst: bpf.RegX, Val: 0},
		}, match(uint8(header.ICMPv6EchoReply))...)
	}
	code, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	insns := make([]unix.SockFilter, len(code))
	for i, c := range code {
		insns[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(insns)), Filter: &insns[0]})
}

func sockaddr(a packet.Addr) unix.Sockaddr {
	addr := a.Netip()
	if addr.Is4() {
		return &unix.SockaddrInet4{Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Addr: addr.As16()}
}
