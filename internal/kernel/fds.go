package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// RecvFDs receives one message with n bytes of payload and up to MaxFDs
// descriptors, which the caller owns. They are close-on-exec and non-blocking,
// whatever the sender's runtime did to them. When the sender is gone the error
// wraps io.EOF. On an error no descriptor stays open.
func RecvFDs(c *net.UnixConn, payload []byte) (n int, fds []int, err error) {
	control := make([]byte, unix.CmsgSpace(MaxFDs*4))
	n, controlLen, flags, _, err := c.ReadMsgUnix(payload, control)
	if err != nil {
		return 0, nil, fmt.Errorf("receive descriptors: %w", err)
	}
	fds, err = parseRights(control[:controlLen])
	if err == nil && flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		err = ErrTruncated
	}
	for _, fd := range fds {
		if err == nil {
			err = setReceived(fd)
		}
	}
	if err != nil {
		CloseFDs(fds)
		return 0, nil, fmt.Errorf("receive descriptors: %w", err)
	}
	return n, fds, nil
}

// SendFDs sends one message with copies of up to MaxFDs descriptors, which stay
// the caller's. The payload must not be empty.
func SendFDs(c *net.UnixConn, payload []byte, fds ...int) error {
	if len(fds) > MaxFDs || len(payload) == 0 {
		return fmt.Errorf("send descriptors: %d of them with %d bytes: want at most %d and at least one", len(fds), len(payload), MaxFDs)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(payload, rights, nil); err != nil {
		return fmt.Errorf("send descriptors: %w", err)
	}
	return nil
}

// DupFD returns a close-on-exec copy of a descriptor. O_NONBLOCK is shared and
// stays as it is.
func DupFD(fd int) (int, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("copy descriptor %d: %w", fd, err)
	}
	return dup, nil
}

// DupOf returns a copy of a socket's or file's descriptor, which is the caller's.
// Unlike File() it leaves the socket non-blocking.
func DupOf(c syscall.Conn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("copy descriptor: %w", err)
	}
	dup, dupErr := -1, error(nil)
	if err := raw.Control(func(fd uintptr) { dup, dupErr = DupFD(int(fd)) }); err != nil {
		return -1, fmt.Errorf("copy descriptor: %w", err)
	}
	return dup, dupErr
}

// MemoryFile returns a file of that name that has no place but memory and holds data,
// to be read from its beginning. Its content never reaches a disk.
func MemoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(data, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write a file in memory: %w", err), f.Close())
	}
	return f, nil
}

// setReceived puts O_NONBLOCK back: it belongs to the file description, which
// is shared, and File(), Fd() and ExtraFiles on the other side clear it. Files
// that cannot be non-blocking (O_PATH) are fine as they are.
func setReceived(fd int) error {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil && !errors.Is(err, unix.EBADF) {
		return err
	}
	return nil
}

// parseRights returns the descriptors of all control messages.
func parseRights(control []byte) ([]int, error) {
	if len(control) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		// Not unix.ParseUnixRights: it panics on a length that is no
		// multiple of four.
		for data := msgs[i].Data; len(data) >= 4; data = data[4:] {
			fds = append(fds, int(int32(binary.NativeEndian.Uint32(data))))
		}
	}
	return fds, nil
}

// CloseFDs closes descriptors that nobody wants.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// PeerUID returns the user that the process at the other end of the socket had
// when it connected.
func PeerUID(c *net.UnixConn) (uint32, error) {
	uid, _, err := Peer(c)
	return uid, err
}

// Peer returns the user and the process that were at the other end of the socket when
// it was connected. The process is 0 when it is not seen from here.
func Peer(c *net.UnixConn) (uid uint32, pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("ask who the peer is: %w", err)
	}
	var cred *unix.Ucred
	var optErr error
	err = raw.Control(func(s uintptr) { cred, optErr = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, optErr); err != nil {
		return 0, 0, fmt.Errorf("ask who the peer is: %w", err)
	}
	return cred.Uid, int(cred.Pid), nil
}
