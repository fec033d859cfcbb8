package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/cni/wire"
	"github.com/netctl/netctl/internal/kernel"
)

// tempSuffix names the socket until it is ready to take its place.
const tempSuffix = ".new"

// listener is a unix socket that takes the place of another atomically and
// removes on close only what is its own: during an upgrade two agents share
// the path for a moment.
type listener struct {
	*net.UnixListener
	path string
	self os.FileInfo // of the socket file
}

func listen(path string) (*listener, error) {
	if err := OwnDirectory(filepath.Dir(path)); err != nil {
		return nil, err
	}
	temp := path + tempSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove leftover cni socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on cni socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	self, err := place(temp, path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("place cni socket: %w", err), l.Close(), os.Remove(temp))
	}
	return &listener{UnixListener: l, path: path, self: self}, nil
}

// adopt makes a listener of a socket that another process has had at path, nil
// when what plugins find there is another one or none. It owns the descriptor.
func adopt(path string, fd int) *listener {
	f := os.NewFile(uintptr(fd), "cni")
	defer func() { _ = f.Close() }()
	self, err := os.Lstat(path)
	if err != nil || self.Mode().Type() != fs.ModeSocket || !isAt(fd, self) {
		return nil
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil
	}
	u.SetUnlinkOnClose(false)
	return &listener{UnixListener: u, path: path, self: self}
}

// siocUnixFile opens the file that a unix socket is bound to (linux/un.h).
const siocUnixFile = 0x89E0

// isAt reports whether a socket is the one whose file has that info. Without
// CAP_NET_ADMIN, which every agent has, nobody knows, and it is taken for that one.
func isAt(socket int, at os.FileInfo) bool {
	fd, err := unix.IoctlRetInt(socket, siocUnixFile)
	if err != nil {
		return errors.Is(err, unix.EPERM)
	}
	bound := os.NewFile(uintptr(fd), "cni")
	defer func() { _ = bound.Close() }()
	info, err := bound.Stat()
	return err == nil && os.SameFile(info, at)
}

func place(temp, path string) (os.FileInfo, error) {
	if err := os.Chmod(temp, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Lstat(temp)
	if err != nil {
		return nil, err
	}
	if old, err := os.Lstat(path); err == nil && old.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s exists and is no socket", path)
	}
	return self, os.Rename(temp, path)
}

// OwnDirectory makes the socket's directory ours: absent, it is created;
// present, it must belong to our user and becomes 0700. A directory that is
// obviously shared is refused rather than closed to others.
func OwnDirectory(dir string) error {
	shared := []string{"/", "/var/run", "/var/tmp", "/var/lib", "/usr/lib"}
	if filepath.Dir(dir) == "/" || slices.Contains(shared, dir) {
		return fmt.Errorf("cni socket directory %s is shared with others: use one of its own, such as %s", dir, filepath.Dir(wire.DefaultSocket))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create cni socket directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("cni socket directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != ownUser() || info.Mode()&fs.ModeSticky != 0 {
		return fmt.Errorf("cni socket directory %s belongs to another user or is shared: use one of its own", dir)
	}
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("protect cni socket directory: %w", err)
		}
	}
	return nil
}

func (l *listener) accept() (*net.UnixConn, error) { return l.AcceptUnix() }

// interrupt ends a pending accept.
func (l *listener) interrupt() { _ = l.SetDeadline(time.Unix(1, 0)) }

// close leaves the socket's file to whoever has a copy of the socket, if it stays.
func (l *listener) close(stays bool) {
	_ = l.Close()
	if stays {
		return
	}
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.self) {
		_ = os.Remove(l.path)
	}
}

// receive reads a request's frame and the descriptor that came with it, nil
// when none did. Every descriptor beyond the first is closed.
func receive(c *net.UnixConn) (body []byte, netns *os.File, err error) {
	var head [4]byte
	n, fds, err := kernel.RecvFDs(c, head[:])
	if err != nil {
		return nil, nil, fmt.Errorf("read request: %w", err)
	}
	if len(fds) > 0 {
		kernel.CloseFDs(fds[1:])
		netns = os.NewFile(uintptr(fds[0]), "netns")
	}
	for err == nil && n < len(head) {
		var more int
		more, err = c.Read(head[n:])
		n += more
	}
	if err == nil {
		body, err = wire.ReadBody(c, head)
	}
	if err != nil && netns != nil {
		_ = netns.Close()
		netns = nil
	}
	return body, netns, err
}

// checkNetns makes sure that f is a network namespace and not the agent's own,
// into which a pod's interface must never go.
func checkNetns(f *os.File, path string) *Error {
	if f == nil {
		return wire.Errorf(wire.CodeNotNetns, "the plugin sent no network namespace: let the agent install its own plugin binary")
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return wire.Errorf(wire.CodeNotNetns, "CNI_NETNS %.200q is not a network namespace: it must be a file of /proc/PID/ns/net or a bind mount of one", path)
	}
	var own, given unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/self/ns/net", &own), unix.Fstat(int(f.Fd()), &given)); err != nil {
		return wire.Errorf(wire.CodeInternal, "compare network namespaces: %v", err)
	}
	if own.Dev == given.Dev && own.Ino == given.Ino {
		return wire.Errorf(wire.CodeNetns, "CNI_NETNS %.200q is the node's own network namespace: a pod needs one of its own", path)
	}
	return nil
}
