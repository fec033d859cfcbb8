package shim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// The one netlink message that the loopback plugin needs, by hand: a netlink
// library would cost more start-up time than all the rest of the program.
//
//	nlmsghdr 16 bytes: length 4, type 2, flags 2, sequence 4, port 4
//	ifinfomsg 16 bytes: family 1, pad 1, type 2, index 4, flags 4, change 4
const (
	headLen = syscall.SizeofNlMsghdr
	linkLen = headLen + syscall.SizeofIfInfomsg
	// loopbackIndex is lo's in every network namespace: the kernel makes it
	// first and refuses to remove or renumber it.
	loopbackIndex = 1
	replyLen      = 8192 // more than RTM_NEWLINK of one interface
)

var errShortReply = errors.New("netlink reply is too short")

// setLoopback sets lo of the thread's namespace up or down.
func setLoopback(up bool) error {
	var flags uint32
	if up {
		flags = syscall.IFF_UP
	}
	_, err := linkRequest(syscall.RTM_NEWLINK, syscall.NLM_F_ACK, flags, syscall.IFF_UP)
	return err
}

// loopbackUp reports whether lo of the thread's namespace is up.
func loopbackUp() (bool, error) {
	reply, err := linkRequest(syscall.RTM_GETLINK, 0, 0, 0)
	if err != nil {
		return false, err
	}
	return linkUp(reply)
}

func linkUp(reply []byte) (bool, error) {
	if len(reply) < linkLen || binary.NativeEndian.Uint16(reply[4:]) != syscall.RTM_NEWLINK {
		return false, errShortReply
	}
	return binary.NativeEndian.Uint32(reply[headLen+8:])&syscall.IFF_UP != 0, nil
}

func linkRequest(kind, extra uint16, flags, change uint32) ([]byte, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer func() { _ = syscall.Close(fd) }()
	tv := syscall.NsecToTimeval(loopbackWait.Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv); err != nil {
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	msg := make([]byte, linkLen)
	binary.NativeEndian.PutUint32(msg[0:], linkLen)
	binary.NativeEndian.PutUint16(msg[4:], kind)
	binary.NativeEndian.PutUint16(msg[6:], syscall.NLM_F_REQUEST|extra)
	binary.NativeEndian.PutUint32(msg[8:], 1)
	binary.NativeEndian.PutUint32(msg[headLen+4:], loopbackIndex)
	binary.NativeEndian.PutUint32(msg[headLen+8:], flags)
	binary.NativeEndian.PutUint32(msg[headLen+12:], change)
	if err := syscall.Sendto(fd, msg, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send netlink: %w", err)
	}
	reply := make([]byte, replyLen)
	n, _, err := syscall.Recvfrom(fd, reply, 0)
	if err != nil {
		return nil, fmt.Errorf("receive netlink: %w", err)
	}
	return reply[:n], replyError(reply[:n])
}

// replyError returns the error that a reply carries. An acknowledgement is an
// error message with number zero.
func replyError(reply []byte) error {
	if len(reply) < headLen {
		return errShortReply
	}
	if binary.NativeEndian.Uint16(reply[4:]) != syscall.NLMSG_ERROR {
		return nil
	}
	if len(reply) < headLen+4 {
		return errShortReply
	}
	if errno := -int32(binary.NativeEndian.Uint32(reply[headLen:])); errno != 0 {
		return syscall.Errno(errno)
	}
	return nil
}
