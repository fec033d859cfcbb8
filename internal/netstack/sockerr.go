package netstack

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/packet"
)

// errorBurst bounds how many queued errors are read at a time.
const errorBurst = 16

// reportErrors asks the kernel for every ICMP error about what a socket sends,
// not just the fatal ones, with its type and its sender. Without it (an error
// here is not fatal) only a closed port is noticed.
func reportErrors(raw syscall.RawConn, is4 bool) {
	_ = raw.Control(func(fd uintptr) {
		if is4 {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		} else {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
	})
}

// discoverMTU makes a socket treat datagrams as the pod's own packets would be
// treated: with don't-fragment, one that is too big is an error that says what
// would fit, and the pod's path MTU discovery works; without, it is fragmented.
func discoverMTU(raw syscall.RawConn, is4, dontFrag bool) {
	_ = raw.Control(func(fd uintptr) {
		level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_WANT
		if dontFrag {
			value = unix.IP_PMTUDISC_DO
		}
		if !is4 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER // same values
		}
		_ = unix.SetsockoptInt(int(fd), level, option, value) // both are always allowed
	})
}

// errors reads the socket's error queue, which must be emptied after every
// error or the socket stays readable.
func (s *socket) errors(key *packet.Tuple) []networkError {
	var out []networkError
	_ = s.raw.Control(func(fd uintptr) {
		var data [64]byte
		var control [256]byte
		for range errorBurst {
			n, cn, _, _, err := unix.Recvmsg(int(fd), data[:], control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			if s.echo != nil && !s.echo.sent(data[:n]) {
				continue // about somebody else's ping to the same host
			}
			if e := parseError(control[:cn], key.Dst.Is4()); e.kind != kindNone {
				out = append(out, e)
			}
		}
	})
	return out
}

// parseError reads a control message with a struct sock_extended_err
// (ip(7), IP_RECVERR) and the address behind it:
//
//	0        4      5    6    7   8      12     16
//	| errno  |origin|type|code|pad| info | data | sockaddr of the sender
func parseError(control []byte, is4 bool) networkError {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return networkError{}
	}
	for _, m := range messages {
		d := m.Data
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if len(d) < 16 || (is4 && !v4) || (!is4 && !v6) {
			continue
		}
		e := classify(syscall.Errno(binary.NativeEndian.Uint32(d)), d[4], d[5])
		if e.kind == kindNone {
			continue
		}
		if e.kind == kindTooBig {
			e.mtu = int(binary.NativeEndian.Uint32(d[8:]))
		}
		if d[4] != unix.SO_EE_ORIGIN_LOCAL {
			e.from = offender(d[16:])
		}
		return e
	}
	return networkError{}
}

// classify tells what happened from errno, origin and ICMP type.
func classify(errno syscall.Errno, origin, icmpType uint8) networkError {
	switch {
	case errno == syscall.EMSGSIZE:
		return networkError{kind: kindTooBig}
	case origin == unix.SO_EE_ORIGIN_ICMP && icmpType == 11, origin == unix.SO_EE_ORIGIN_ICMP6 && icmpType == 3:
		return networkError{kind: kindTimeExceeded}
	}
	if code, ok := unreachable(errno); ok {
		return networkError{kind: kindUnreachable, code: code}
	}
	return networkError{}
}

// offender reads a struct sockaddr_in or sockaddr_in6.
func offender(b []byte) netip.Addr {
	if len(b) < 8 {
		return netip.Addr{}
	}
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(b[4:8]))
	case unix.AF_INET6:
		if len(b) >= 24 {
			return netip.AddrFrom16([16]byte(b[8:24])).Unmap()
		}
	}
	return netip.Addr{}
}
