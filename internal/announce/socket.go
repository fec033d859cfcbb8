package announce

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// socket is a packet socket on one interface that receives questions alone.
type socket struct {
	file   *os.File
	index  int
	groups int // an IPv6 socket that is a member of groups; -1: none
	joined map[netip.Addr]bool
}

// openSocket opens one. It needs CAP_NET_RAW.
func openSocket(l Link, proto uint16) (*socket, error) {
	// Protocol 0 receives nothing until bind: not before the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket (it needs NET_RAW): %w", err)
	}
	s := &socket{index: l.Index, groups: -1, joined: make(map[netip.Addr]bool)}
	err = filter(fd, proto)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: l.Index})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up a packet socket: %w", err), unix.Close(fd))
	}
	s.file = os.NewFile(uintptr(fd), "announce "+l.Name)
	if proto == protoIPv6 {
		// Without IPv6 on the node there is nobody to ask, and nothing to join.
		if s.groups, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			s.groups = -1
		}
	}
	return s, nil
}

// filter lets requests through: all of ARP, which is little, and of IPv6
// neighbour solicitations.
func filter(fd int, proto uint16) error {
	prog := []bpf.Instruction{bpf.RetConstant{Val: maxMessage}}
	if proto == protoIPv6 {
		prog = []bpf.Instruction{
			bpf.LoadAbsolute{Off: ethLen + 6, Size: 1}, // next header
			bpf.JumpIf{Val: icmpv6, SkipFalse: 3},
			bpf.LoadAbsolute{Off: ethLen + ip6Len, Size: 1}, // type
			bpf.JumpIf{Val: typeNS, SkipFalse: 1},
			bpf.RetConstant{Val: maxMessage},
			bpf.RetConstant{Val: 0},
		}
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]})
}

func (s *socket) read(b []byte) (int, error) { return s.file.Read(b) }

func (s *socket) write(b []byte) error {
	_, err := s.file.Write(b)
	return err
}

// join makes the interface a member of the groups in which these addresses are asked
// for, so that switches and the interface itself let questions through. Where that
// fails, only what they let through anyway is answered: announcements tell the rest.
func (s *socket) join(addrs []netip.Addr) {
	if s.groups < 0 {
		return
	}
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		want[solicitedNode(a)] = true
	}
	set := func(option int, g netip.Addr) error {
		return unix.SetsockoptIPv6Mreq(s.groups, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: g.As16(), Interface: uint32(s.index)})
	}
	for g := range s.joined {
		if !want[g] && set(unix.IPV6_LEAVE_GROUP, g) == nil {
			delete(s.joined, g)
		}
	}
	for g := range want {
		if !s.joined[g] && set(unix.IPV6_JOIN_GROUP, g) == nil {
			s.joined[g] = true
		}
	}
}

func (s *socket) close() {
	_ = s.file.Close()
	if s.groups >= 0 {
		_ = unix.Close(s.groups)
		s.groups = -1
	}
}
